"""Training the six kinds of tokenizer, with the library's trainers, so that the same text gives the same vocabulary.

The library's trainer breaks ties by the order in which it meets continuations (##a, ##b, ...), which is that of a
randomly seeded hash table: two trainings differ. Without a continuation prefix it is deterministic. So for WordPiece
and BPE every letter that begins a word is replaced by a private code point of its own before training, and back again
afterwards, when pieces that begin with another letter get their ##: the same algorithm, the same pieces up to ties.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from bertkin.config import TokenizerKind
from bertkin.errors import UserError, nearest
from bertkin.text.cutting import how_to_cut
from bertkin.text.sentences import count_words

if typing.TYPE_CHECKING:
    import tokenizers

NormalForm = Literal["NFC", "NFD", "NFKC", "NFKD"]

BERT_MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_MARKS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
SENTINEL = "<extra_id_{}>"
"""How T5 writes the token that stands for the hidden span of this number."""

ALL_OF_IT = 256_000_000
"""Characters of text that training reads whole; beyond, it reads half as densely each time the text doubles."""
UNIGRAM_CAP = 64_000_000
"""Characters of text that Unigram training, which holds its text in memory, reads at most."""
LONGEST_LINE = 1 << 20
"""Characters handed to the trainer at once, so that a long document costs no memory."""
MOST_WORDS = 400_000
"""Words whose pieces are remembered while training."""


def default_vocab_size(words: int) -> int:
    """8,192 near 10M words, 16,384 near 100M, 32,768 above."""
    return 8_192 if words < 30_000_000 else 16_384 if words < 200_000_000 else 32_768


def train_backend(
    texts: Iterable[str],
    kind: TokenizerKind,
    vocab_size: int | None,
    lowercase: bool,
    strip_accents: bool | None,
    normal_form: NormalForm | None,
    split_chinese: bool,
    sentinels: int = 0,
) -> tokenizers.Tokenizer:
    """A trained backend; see `bertkin.text.tokenizer.train_tokenizer`."""
    kinds = typing.get_args(TokenizerKind)
    if kind not in kinds:
        raise UserError(f"{kind!r} is not a kind of tokenizer", mend=nearest(kind, kinds))
    if sentinels < 0:
        raise UserError(f"{sentinels} sentinels", mend="ask for 0 or more; T5 has 100")
    if vocab_size is not None and vocab_size - sentinels < 6:
        beside = f" beside {sentinels} sentinels" if sentinels else ""
        raise UserError(f"a vocabulary of {vocab_size} has no room for text{beside}", mend="ask for thousands")

    def size(words: int) -> int:  # what is left for the others
        return (vocab_size or default_vocab_size(words)) - sentinels

    backend = _dressed(kind, lowercase, strip_accents, normal_form, split_chinese)
    feed = _Feed(texts, held=kind == "unigram")
    if kind == "unigram":  # it keeps its text, so we may as well, and know the words before choosing the size
        kept = list(feed)
        backend.train_from_iterator(kept, _trainer(kind, size(feed.words)))
        del kept
        backend = _with_round_scores(backend)
    elif kind in ("wordpiece", "bpe"):
        backend = _train_pieces(backend, feed, size(1 << 60))
    else:
        backend.train_from_iterator(iter(feed), _trainer(kind, size(1 << 60)))
    if feed.words == 0:
        raise UserError("the corpus has no text to train a tokenizer on", mend="give more text")
    if vocab_size is None:
        backend = _cut_vocabulary(backend, size(feed.words))
    filled = backend.get_vocab_size(with_added_tokens=True) + sentinels
    if vocab_size is not None and filled < vocab_size:
        raise UserError(
            f"a vocabulary of {vocab_size:,} is more than the corpus can fill ({filled:,})",
            mend=f"ask for {filled} or fewer, or give more text",
        )
    add_cls_and_sep(backend)
    if sentinels:
        backend.add_special_tokens([SENTINEL.format(number) for number in reversed(range(sentinels))])
        _add_sep(backend)
    return backend


class _Feed:
    """Pieces of `texts` for a trainer, thinned out when there is much; counts the words of all it passed over."""

    def __init__(self, texts: Iterable[str], held: bool) -> None:
        self.texts, self.held, self.words = texts, held, 0

    def __iter__(self) -> Iterator[str]:
        read = given = 0
        cap = UNIGRAM_CAP if self.held else ALL_OF_IT
        for number, text in enumerate(self.texts):
            self.words += count_words(text)
            every = 1 << max(0, (read // cap).bit_length())  # 1 for the first `cap`, then 2, 4, 4, 8, ...
            read += len(text)
            if number % every or (self.held and given >= cap):
                continue
            given += len(text)
            for start in range(0, len(text), LONGEST_LINE):
                yield text[start : start + LONGEST_LINE]


def _trainer(kind: str, size: int) -> Any:
    from tokenizers import pre_tokenizers, trainers

    marks = list(BERT_MARKS)
    if kind == "byte-bpe":
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        return trainers.BpeTrainer(
            vocab_size=size, special_tokens=list(ROBERTA_MARKS), initial_alphabet=alphabet, show_progress=False
        )
    if kind == "unigram":
        return trainers.UnigramTrainer(vocab_size=size, special_tokens=marks, unk_token="[UNK]", show_progress=False)
    if kind in ("character", "word"):
        return trainers.WordLevelTrainer(vocab_size=size, special_tokens=marks, show_progress=False)
    return trainers.BpeTrainer(vocab_size=size, special_tokens=marks, show_progress=False)


class _Initial(dict[int, str]):
    """For `str.translate`: a private code point for each letter, given out as they come, the short ones first."""

    def __missing__(self, letter: int) -> str:
        number = len(self)
        self[letter] = private = chr(0xE000 + number if number < 0x1900 else 0xF0000 + number)
        return private


def _is_private(letter: str) -> bool:
    return "\ue000" <= letter <= "\uf8ff" or letter >= "\U000f0000"


def _train_pieces(dressed: tokenizers.Tokenizer, feed: _Feed, size: int) -> tokenizers.Tokenizer:
    """Train the WordPiece or BPE model of `dressed` on words whose first letters are private code points."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    plain = json.loads(dressed.to_str())
    cutting = how_to_cut(plain)
    initial = _Initial()
    known: dict[str, str] = {}

    def disguised(text: str) -> str:
        normal = dressed.normalizer.normalize_str(text)
        words = [word for word, _ in dressed.pre_tokenizer.pre_tokenize_str(normal)]
        return " ".join(word[0].translate(initial) + word[1:] for word in words)

    def fed() -> Iterator[str]:
        seen: set[str] = {" "}
        for text in feed:
            words = cutting.words(text)
            if words is None:
                fresh = [disguised(text)]
                yield fresh[0]
            else:
                new = [word for word in dict.fromkeys(words) if word not in known]
                fresh = [disguised(word) for word in new]
                known.update(zip(new, fresh, strict=True))
                yield " ".join(map(known.__getitem__, words))
                if len(known) > MOST_WORDS:
                    known.clear()
            unseen = sorted(letter for letter in set("".join(fresh)) - seen if not _is_private(letter))
            seen.update(unseen)  # the library has every letter in both forms, even one that begins no word
            yield " ".join(letter.translate(initial) for letter in unseen)

    trained = Backend(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trained.train_from_iterator(fed(), _trainer("bpe", size))
    letters = {ord(private): chr(letter) for letter, private in initial.items()}

    def written(piece: str) -> str:
        continues = piece not in BERT_MARKS and ord(piece[0]) not in letters
        return "##" + piece if continues else piece.translate(letters)

    model = json.loads(trained.to_str())["model"]
    plain["model"]["vocab"] = {written(piece): number for piece, number in model["vocab"].items()}
    if plain["model"]["type"] == "BPE":
        plain["model"]["merges"] = [[written(left), written(right)] for left, right in model["merges"]]
    backend = Backend.from_str(json.dumps(plain, ensure_ascii=False))
    backend.add_special_tokens(list(BERT_MARKS))
    return backend


def _dressed(
    kind: str, lowercase: bool, strip_accents: bool | None, normal_form: NormalForm | None, split_chinese: bool
) -> tokenizers.Tokenizer:
    """An untrained backend of `kind`, with everything around its model."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    if kind == "byte-bpe":
        backend = Backend(models.BPE())
        _dress_as_roberta(backend, normal_form)
    elif kind == "unigram":
        backend = Backend(models.Unigram())
        _dress_as_sentencepiece(backend, lowercase, strip_accents, normal_form, split_chinese)
    elif kind == "bpe":
        backend = Backend(models.BPE(unk_token="[UNK]", continuing_subword_prefix="##"))
        dress_as_bert(backend, False, bool(strip_accents), normal_form, split_chinese)
    else:
        empty: Any = models.WordLevel(vocab={}, unk_token="[UNK]")
        if kind == "wordpiece":
            empty = models.WordPiece(vocab={}, unk_token="[UNK]", max_input_chars_per_word=100)
        backend = Backend(empty)
        dress_as_bert(backend, lowercase, strip_accents, normal_form, split_chinese)
        if kind == "character":
            _cut_into_characters(backend)
    return backend


def _normal_form(name: NormalForm | None) -> list[Any]:
    from tokenizers import normalizers

    if name is None:
        return []
    if name not in typing.get_args(NormalForm):
        raise UserError(f"{name!r} is not a Unicode normal form", mend=nearest(name, typing.get_args(NormalForm)))
    return [getattr(normalizers, name)()]


def dress_as_bert(
    backend: tokenizers.Tokenizer,
    lowercase: bool,
    strip_accents: bool | None,
    normal_form: NormalForm | None,
    split_chinese: bool,
) -> None:
    from tokenizers import decoders, normalizers, pre_tokenizers

    bert = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=split_chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    first = _normal_form(normal_form)
    backend.normalizer = normalizers.Sequence([*first, bert]) if first else bert
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")


def _cut_into_characters(backend: tokenizers.Tokenizer) -> None:
    from tokenizers import Regex, decoders, pre_tokenizers

    one = pre_tokenizers.Split(Regex("."), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), one])
    backend.decoder = decoders.Fuse()


def _dress_as_roberta(backend: tokenizers.Tokenizer, normal_form: NormalForm | None) -> None:
    from tokenizers import decoders, normalizers, pre_tokenizers

    first = _normal_form(normal_form)
    if first:
        backend.normalizer = normalizers.Sequence(first)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()


def _dress_as_sentencepiece(
    backend: tokenizers.Tokenizer,
    lowercase: bool,
    strip_accents: bool | None,
    normal_form: NormalForm | None,
    split_chinese: bool,
) -> None:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    strip = lowercase if strip_accents is None else strip_accents
    steps: list[Any] = _normal_form(normal_form or "NFKC")
    steps.append(
        normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=split_chinese, strip_accents=strip, lowercase=lowercase
        )
    )
    steps += [normalizers.Replace(Regex(r"\s+\z"), ""), normalizers.Replace(Regex(r"\s+"), " ")]
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first", split=True)


def add_cls_and_sep(backend: tokenizers.Tokenizer) -> None:
    """Make the backend put [CLS] A [SEP] (B [SEP]) around what it encodes, where its vocabulary has those."""
    from tokenizers.processors import TemplateProcessing

    for cls, sep, pair in (("[CLS]", "[SEP]", "{c} $A {s} $B:1 {s}:1"), ("<s>", "</s>", "{c} $A {s} {s} $B {s}")):
        numbers = [backend.token_to_id(cls), backend.token_to_id(sep)]
        if None not in numbers:
            backend.post_processor = TemplateProcessing(
                single=f"{cls} $A {sep}",
                pair=pair.format(c=cls, s=sep),
                special_tokens=list(zip((cls, sep), numbers, strict=True)),
            )
            return


def _add_sep(backend: tokenizers.Tokenizer) -> None:
    """Make the backend put A [SEP] (B [SEP]) around what it encodes, as T5 does."""
    from tokenizers.processors import TemplateProcessing

    sep = "[SEP]" if backend.token_to_id("[SEP]") is not None else "</s>"
    backend.post_processor = TemplateProcessing(
        single=f"$A {sep}", pair=f"$A {sep} $B {sep}", special_tokens=[(sep, backend.token_to_id(sep))]
    )


def _cut_vocabulary(backend: tokenizers.Tokenizer, size: int) -> tokenizers.Tokenizer:
    """The tokenizer that training for `size` tokens would have made: pieces are learnt in the order of their ids."""
    from tokenizers import Tokenizer as Backend

    plain = json.loads(backend.to_str())
    model = plain["model"]
    if model["type"] == "Unigram" or len(model["vocab"]) <= size:
        return backend
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < size}
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        whole = [left + right.removeprefix(prefix) for left, right in model["merges"]]
        model["merges"] = [pair for pair, token in zip(model["merges"], whole, strict=True) if token in model["vocab"]]
    return Backend.from_str(json.dumps(plain, ensure_ascii=False))


def _with_round_scores(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Unigram's scores as multiples of 1/4096, which survive being written and read; others come back a last digit off,
    and ties between segmentations fall the other way."""
    from tokenizers import Tokenizer as Backend

    plain = json.loads(backend.to_str())
    plain["model"]["vocab"] = [[token, round(score * 4096) / 4096] for token, score in plain["model"]["vocab"]]
    return Backend.from_str(json.dumps(plain, ensure_ascii=False))
