"""A token store's split in memory, and hypothesis strategies that make them: what tests of batches read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from bertkin.text.batches import Bools, Ints, Specials

N_SPECIAL = 5  # [PAD] [UNK] [CLS] [SEP] [MASK] are 0 … 4


@dataclass(frozen=True)
class MemorySplit:
    """Same attributes as `bertkin.text.store.Split`."""

    tokens: np.ndarray
    documents: Ints
    sentences: Ints
    marks: np.ndarray | None = None

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def n_documents(self) -> int:
        return len(self.documents) - 1


def split_of(lengths: list[int], *, vocab: int | None = None, sentence: int = 7, seed: int = 0) -> MemorySplit:
    """Documents of these lengths. Without `vocab` every token of the split is another one, so that what is in a row
    says where it came from; with it, tokens are random. Sentences are about `sentence` tokens long."""
    generator = np.random.default_rng(seed)
    documents = np.append(0, np.cumsum(lengths)).astype(np.int64)
    n = int(documents[-1])
    tokens = np.arange(N_SPECIAL, N_SPECIAL + n) if vocab is None else generator.integers(N_SPECIAL, vocab, n)
    inner = np.flatnonzero(generator.random(n) < 1 / sentence)
    return MemorySplit(tokens.astype(np.uint32), documents, np.union1d(documents[:-1], inner))


def specials_of(vocab: int, *, word_start: float = 0.7, seed: int = 0) -> Specials:
    word_starts: Bools = np.random.default_rng(seed).random(vocab) < word_start
    return Specials(
        cls=2, sep=3, mask=4, pad=0, special_ids=np.arange(N_SPECIAL), vocab_size=vocab, word_starts=word_starts
    )


def distinct(lengths: list[int], **options: int) -> tuple[MemorySplit, Specials]:
    """A split in which every token is another one, and a vocabulary to match."""
    split = split_of(lengths, **options)
    return split, specials_of(split.n_tokens + N_SPECIAL)


document_lengths = st.lists(st.integers(1, 60), min_size=1, max_size=25)
long_lengths = st.lists(st.integers(20, 400), min_size=2, max_size=20)
seeds = st.integers(0, 2**31 - 1)


def realistic(documents: int, *, seed: int = 0, mean: float = 6.5, vocab: int = 2000) -> MemorySplit:
    """Documents whose lengths spread like an encyclopedia's (log-normal)."""
    lengths = np.random.default_rng(seed).lognormal(mean, 1.0, documents).astype(int) + 1
    return split_of(lengths.tolist(), vocab=vocab, sentence=25, seed=seed)
