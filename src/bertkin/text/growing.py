"""A vocabulary that grows by a corpus's own words, and leaves every id it had where it was.

A word becomes one token the way its kind of tokenizer would have learnt it, not as a string that is looked for before
anything else (an "added token"), so words that contain it, white space and capital letters are treated as ever:

    wordpiece   an entry of the vocabulary: the longest match is taken first
    bpe         an entry, and words that are entries are taken whole, before any merge (`ignore_merges`)
    unigram     an entry a hair likelier than its pieces together
    word        an entry
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bertkin.errors import UserError
from bertkin.text.tokenizer import Tokenizer

READ = 200_000_000
"""Characters of the corpus that are looked through for words."""
SHORTEST = 3
"""Letters of the shortest word that is taken."""
LEAST = 2
"""Occurrences of the rarest."""


@dataclass(frozen=True)
class Word:
    """A word that the tokenizer cuts, and what it is cut into."""

    text: str
    """As the vocabulary writes it, such as Ġword or ▁word."""
    pieces: tuple[int, ...]
    """Ids of its pieces, two or more (of a word tokenizer: [UNK])."""
    count: int


def own_words(tokenizer: Tokenizer, texts: Iterable[str], most: int) -> list[Word]:
    """The words that would save most tokens if they were one: up to `most`, the best first.

    Whole words of letters alone, whose pieces are all known.

    Raises:
        UserError: a tokenizer that does not cut text into words, or one of single characters.
    """
    if most < 1:
        raise UserError(f"cannot grow by {most} words", where="--data.grow-vocab", mend="ask for 1 or more")
    plain = json.loads(tokenizer.backend.to_str())
    _check(plain)
    seen: Counter[str] = Counter()
    read = 0
    for text in texts:
        seen.update(text.split())
        read += len(text)
        if read >= READ:
            break
    backend, found = tokenizer.backend, Counter[str]()
    for word, count in seen.items():
        led = f" {word}"
        led = backend.normalizer.normalize_str(led) if backend.normalizer else led
        for piece, (start, end) in backend.pre_tokenizer.pre_tokenize_str(led):
            letters = led[start:end].strip(" ▁")
            if len(letters) >= SHORTEST and letters.isalpha():
                found[piece] += count
    vocabulary, unknown = backend.get_vocab(), tokenizer._specials.get("unk", -1)
    words = []
    whole = plain["model"]["type"] == "WordLevel"
    for text, count in found.items():
        if count < LEAST or text in vocabulary:
            continue
        pieces = tuple(token.id for token in backend.model.tokenize(text))
        if (whole and pieces) or (len(pieces) > 1 and unknown not in pieces):
            words.append(Word(text, pieces, count))
    words.sort(key=lambda word: (-word.count * max(len(word.pieces) - 1, 1), word.text))
    return words[:most]


def _check(plain: dict[str, Any]) -> None:
    steps = json.dumps(plain["pre_tokenizer"])
    kind = plain["model"]["type"]
    if kind == "WordLevel" and '"Split"' in steps and '"."' in steps:
        raise UserError("a tokenizer of single characters has no words", where="--data.grow-vocab", mend="leave it out")
    if plain["pre_tokenizer"] is None or (kind == "BPE" and '"Metaspace"' in steps and '"split": false' in steps):
        what = "this tokenizer does not cut text into words before it looks for pieces"
        raise UserError(what, where="--data.grow-vocab", mend="leave it out")


def grown(tokenizer: Tokenizer, words: Sequence[Word]) -> Tokenizer:
    """The tokenizer with each word as one token: ids from its old vocabulary size on, in order."""
    plain = json.loads(tokenizer.backend.to_str())
    model, first = plain["model"], tokenizer.vocab_size
    added = {token["id"]: token["content"] for token in plain["added_tokens"]}
    if model["type"] == "Unigram":
        entries, least = model["vocab"], min(score for _, score in model["vocab"])
        scores = [score for _, score in entries]
        # An entry's id is its place. Special tokens beyond the list get places in it, which never match text.
        entries += [[added.get(number, f"<{number}>"), least] for number in range(len(entries), first)]
        for word in words:
            together = sum(scores[piece] if piece < len(scores) else least for piece in word.pieces)
            entries.append([word.text, math.floor(together * 4096 + 1) / 4096])
    else:
        taken = set(model["vocab"].values())
        model["vocab"] |= {content: number for number, content in added.items() if number not in taken}
        model["vocab"] |= {word.text: first + i for i, word in enumerate(words)}
        if model["type"] == "BPE":
            model["ignore_merges"] = True
    backend = Tokenizer.from_str(json.dumps(plain, ensure_ascii=False)).backend
    return Tokenizer(backend, tokenizer._names)
