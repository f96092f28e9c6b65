"""Tokenizers: six kinds trained on any corpus, and whatever `transformers` ships.

Everything here is a thin, typed face on Hugging Face's `tokenizers`. A saved folder opens in `transformers`
(`AutoTokenizer.from_pretrained`) and gives the same ids; a folder saved by `transformers` opens here.

    wordpiece   BERT's own: longest match first, continuations written ##ing (Devlin et al. 2019)
    bpe         merges in the order they were learnt, on words, continuations written ##ing (Sennrich et al. 2016)
    byte-bpe    RoBERTa's and GPT-2's: merges over bytes, nothing is ever unknown (Radford et al. 2019)
    unigram     SentencePiece's: the most probable segmentation, word starts written ▁ (Kudo 2018)
    character   one character a token, the usual choice for Chinese
    word        words between blanks and punctuation
"""

from __future__ import annotations

import hashlib
import json
import os
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from bertkin.config import TokenizerKind
from bertkin.errors import UserError, disk_errors
from bertkin.text.sentences import count_words, sentences
from bertkin.text.training import (
    BERT_MARKS,
    SENTINEL,
    NormalForm,
    add_cls_and_sep,
    default_vocab_size,
    dress_as_bert,
    train_backend,
)

if typing.TYPE_CHECKING:
    import tokenizers

__all__ = ["NormalForm", "Report", "Tokenizer", "default_vocab_size", "report", "train_tokenizer"]

ROLES = ("pad", "unk", "cls", "sep", "mask")
USUAL_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "bos": ("<s>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
}
STAND_INS = {"cls": ("bos", "eos"), "sep": ("eos",), "pad": ("eos",)}
"""Who plays a role that a tokenizer has no token for: GPT-2's <|endoftext|> begins, ends and fills up."""


class Tokenizer:
    """Text to ids and back.

    Attributes:
        backend: the `tokenizers.Tokenizer` that does the work.
        vocab_size: number of ids, special tokens included.
        fingerprint: hexadecimal hash of everything that decides which ids come out.
    """

    def __init__(self, backend: tokenizers.Tokenizer, names: dict[str, str] | None = None) -> None:
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._names = names or {}

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, {self.vocab_size:,} tokens)"

    # Special tokens.

    def has(self, role: str) -> bool:
        """Whether a token plays `role`, be it a stand-in."""
        return role in self._specials

    def special(self, role: str) -> int:
        """Id of the token that plays `role` (pad, unk, cls, sep, mask).

        A tokenizer without [CLS] begins a text with its bos token, or else its eos token; one without [SEP] ends it
        with eos, and one without [PAD] fills up with it.

        Raises:
            UserError: the tokenizer has no such token.
        """
        found = self._specials.get(role)
        if found is None:
            usual = " or ".join(USUAL_NAMES[role])
            raise UserError(
                f"the tokenizer has no {role} token ({usual})", mend="choose a tokenizer made for masked models"
            )
        return found

    @cached_property
    def _specials(self) -> dict[str, int]:
        own = self._own
        found = {}
        for role in ROLES:
            for player in (role, *STAND_INS.get(role, ())):
                if player in own:
                    found[role] = own[player]
                    break
        return found

    @cached_property
    def _own(self) -> dict[str, int]:
        """The roles that have a token of their own, bos and eos among them."""
        found = {}
        for role, usual in USUAL_NAMES.items():
            for name in (self._names.get(role), *usual):
                number = self.backend.token_to_id(name) if name else None
                if number is not None:
                    found[role] = number
                    break
        return found

    @cached_property
    def sentinels(self) -> np.ndarray:
        """Ids of <extra_id_0>, <extra_id_1>, … (T5's, each stands for a hidden span), int64 [n]; empty without them."""
        numbers = takewhile(
            lambda number: number is not None, map(self.backend.token_to_id, map(SENTINEL.format, count()))
        )
        return np.array(list(numbers), dtype=np.int64)

    @property
    def pad_id(self) -> int:
        return self.special("pad")

    @property
    def unk_id(self) -> int:
        return self.special("unk")

    @property
    def cls_id(self) -> int:
        return self.special("cls")

    @property
    def sep_id(self) -> int:
        return self.special("sep")

    @property
    def mask_id(self) -> int:
        return self.special("mask")

    @cached_property
    def special_ids(self) -> np.ndarray:
        """Sorted ids of all special tokens, int64 [n]: they are never hidden and never drawn at random."""
        added = self.backend.get_added_tokens_decoder()
        marked = {number for number, token in added.items() if token.special}
        return np.array(sorted(marked | set(self._specials.values())), dtype=np.int64)

    # Encoding.

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without [CLS] and [SEP]; the name of a special token, such as [MASK], becomes that token."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids`, special tokens included."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def token(self, number: int) -> str:
        """How token `number` is written in the vocabulary."""
        token = self.backend.id_to_token(int(number))
        return f"<{number}>" if token is None else token

    @property
    def prefix(self) -> str:
        """What a token begins with that goes on with a word (WordPiece: ##); "" where tokens do not say so."""
        found: str = self._json["model"].get("continuing_subword_prefix") or ""
        return found

    @cached_property
    def word_starts(self) -> np.ndarray:
        """bool [vocabulary]: does the token begin a word? The first token of a text always does."""
        tokens = [self.token(number) for number in range(self.vocab_size)]
        if self.prefix:
            starts = np.array([not token.startswith(self.prefix) for token in tokens])
        elif '"ByteLevel"' in json.dumps(self._json["pre_tokenizer"]):  # Ġ, Ċ, ĉ, č: bytes of white space in front
            starts = np.array([token[:1] in ("Ġ", "Ċ", "ĉ", "č") for token in tokens])
        elif any(token.startswith("▁") for token in tokens):
            starts = np.array([token.startswith("▁") for token in tokens])
        else:
            starts = np.ones(self.vocab_size, dtype=bool)
        starts[self.special_ids] = True
        return starts

    # What it is.

    @cached_property
    def _json(self) -> dict[str, Any]:
        return typing.cast(dict[str, Any], json.loads(self.backend.to_str()))

    @property
    def kind(self) -> str:
        """Name of the model inside: WordPiece, BPE, Unigram or WordLevel."""
        return typing.cast(str, self._json["model"]["type"])

    @cached_property
    def fingerprint(self) -> str:
        """blake2b of the canonical tokenizer.json."""
        parts: dict[str, Any] = {
            name: self._json.get(name) for name in ("added_tokens", "normalizer", "pre_tokenizer", "model")
        }
        if self.kind == "Unigram":  # its scores move in their last digit each time they are written and read
            scores = [[token, round(score, 6)] for token, score in parts["model"]["vocab"]]
            parts["model"] = {**parts["model"], "vocab": scores}
        plain = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    # On disk.

    def save(self, folder: str | Path, max_length: int = 512, *, segments: bool = True, goes_on: bool = False) -> Path:
        """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json into `folder`.

        Args:
            segments: whether the model it is for reads the second of two texts as another segment.
            goes_on: whether that model goes on with a single text, which then gets no end.

        Raises:
            UserError: the disk refuses.
        """
        folder = Path(folder)
        own = self._own
        roles = {role: own[role] for role in ROLES if role in own}
        if "pad" in self._specials:
            roles["pad"] = self._specials["pad"]
        for role, other in (("bos", "cls"), ("eos", "sep")):  # whoever writes text looks for these
            if role in own or other in own:
                roles[role] = own.get(role, own.get(other, 0))
        names: dict[str, Any] = {f"{role}_token": self.token(number) for role, number in roles.items()}
        if len(self.sentinels):
            names["additional_special_tokens"] = [self.token(number) for number in self.sentinels]
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_length,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]
            if segments and names.get("cls_token") == "[CLS]"
            else ["input_ids", "attention_mask"],
            **names,
        }
        files = {
            "tokenizer.json": _ended(self.backend, goes_on),
            "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
            "special_tokens_map.json": json.dumps(names, indent=2, ensure_ascii=False) + "\n",
        }
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                aside = folder / f".{name}.{os.getpid()}"
                try:
                    aside.write_text(content, encoding="utf-8")
                    aside.replace(folder / name)
                except BaseException:
                    aside.unlink(missing_ok=True)
                    raise
        return folder

    @classmethod
    def load(cls, path: str | Path, rows: int | None = None) -> Tokenizer:
        """Open a tokenizer.json, or a folder with one (or, as older BERTs have, with only a vocab.txt).

        Args:
            rows: of the table of the model that it belongs to.

        Raises:
            UserError: there is none, it is damaged, or it has tokens that the model has no row for.
        """
        found = cls._load(Path(path).expanduser())
        if rows is not None and found.vocab_size > rows:
            what = f"the tokenizer has {found.vocab_size:,} tokens, the model's table {rows:,} rows"
            raise UserError(what, where=path, mend="put back the tokenizer that the model was trained with")
        return found

    @classmethod
    def _load(cls, path: Path) -> Tokenizer:
        if not path.exists():
            raise UserError("no such tokenizer", where=path, mend="give a tokenizer.json or a folder that holds one")
        folder = path if path.is_dir() else path.parent
        file = path / "tokenizer.json" if path.is_dir() else path
        settings = _settings(folder)
        if not file.exists() and (folder / "vocab.txt").exists():
            return cls(_from_vocab(folder / "vocab.txt", settings), _named(settings))
        if file.name == "vocab.txt":
            return cls(_from_vocab(file, settings), _named(settings))
        if not file.exists():
            raise UserError("holds no tokenizer.json", where=path, mend="train one: bertkin tokenizer train")
        return cls(_from_json(file), _named(settings))

    @classmethod
    def from_str(cls, text: str) -> Tokenizer:
        """The tokenizer that a tokenizer.json's content describes."""
        from tokenizers import Tokenizer as Backend

        return cls(Backend.from_str(text))


def _settings(folder: Path) -> dict[str, Any]:
    """What a transformers folder says besides: special_tokens_map.json under tokenizer_config.json; {} when absent."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise UserError(f"not JSON ({error})", where=folder / name, mend="save the tokenizer again") from None
        if isinstance(content, dict):
            settings.update(content)
    return settings


def _named(settings: dict[str, Any]) -> dict[str, str]:
    names = {}
    for role in USUAL_NAMES:
        token = settings.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            names[role] = token
    return names


def _from_json(file: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_str(file.read_text(encoding="utf-8"))
        if backend.get_vocab_size(with_added_tokens=True) == 0:
            raise ValueError("its vocabulary is empty")
        return backend
    except Exception as error:  # tokenizers raises bare Exception
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"not a tokenizer ({why})", where=file, mend="train or download it again") from None


def _from_vocab(file: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    try:
        tokens = file.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", where=file, mend="download it again") from None
    vocabulary = {token.rstrip("\r"): number for number, token in enumerate(tokens) if token.rstrip("\r")}
    if "[UNK]" not in vocabulary:
        raise UserError("no [UNK] among its tokens", where=file, mend="give a BERT vocabulary, one token a line")
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordPiece

    backend = Backend(WordPiece(vocab=vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    dress_as_bert(
        backend,
        lowercase=bool(settings.get("do_lower_case", True)),
        strip_accents=settings.get("strip_accents"),
        normal_form=None,
        split_chinese=bool(settings.get("tokenize_chinese_chars", True)),
    )
    backend.add_special_tokens([mark for mark in BERT_MARKS if mark in vocabulary])
    add_cls_and_sep(backend)
    return backend


def train_tokenizer(
    texts: Iterable[str],
    *,
    kind: TokenizerKind = "wordpiece",
    vocab_size: int | None = None,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    normal_form: NormalForm | None = None,
    split_chinese: bool = True,
    sentinels: int = 0,
) -> Tokenizer:
    """Train a tokenizer on a stream of texts, read once.

    Args:
        texts: documents; beyond 256 MB (Unigram: 64 MB) they are thinned out, so that memory and time stay bounded.
        kind: see the head of this module.
        vocab_size: ids, special tokens included; by default `default_vocab_size` of the words seen, or fewer where
            the text cannot fill it.
        lowercase: ignored by bpe and byte-bpe, which keep what they read.
        strip_accents: by default whenever lowercasing, as BERT.
        normal_form: Unicode normal form applied first.
        split_chinese: make every Chinese character a word of its own.
        sentinels: how many <extra_id_N> the vocabulary ends with, the last of them <extra_id_0>. A tokenizer with
            them is T5's: in `transformers` it puts [SEP] after a text, and no [CLS] before.

    Raises:
        UserError: no text, or a vocabulary larger than the text can fill.
    """
    return Tokenizer(
        train_backend(texts, kind, vocab_size, lowercase, strip_accents, normal_form, split_chinese, sentinels)
    )


@dataclass(frozen=True)
class Report:
    """How well a tokenizer fits a text."""

    vocab_size: int
    words: int
    tokens: int
    coverage: float
    """Share of the words that are written without an unknown token."""
    unknown_rate: float
    """Share of the tokens that are unknown."""
    fertility: float
    """Tokens a word."""
    characters_per_token: float
    used: float
    """Share of the vocabulary that occurs in the text."""
    longest_split: list[tuple[str, list[str]]] = field(default_factory=list)
    """Words cut into the most pieces."""
    samples: list[tuple[str, list[str]]] = field(default_factory=list)
    """Sentences and their pieces."""

    def lines(self) -> list[str]:
        """The report as lines of plain text."""
        out = [
            f"vocabulary           {self.vocab_size:,} tokens, {self.used:.1%} of them occur in the text",
            f"coverage             {self.coverage:.2%} of {self.words:,} words have no unknown part",
            f"unknown tokens       {self.unknown_rate:.3%} of {self.tokens:,}",
            f"fertility            {self.fertility:.3f} tokens a word",
            f"characters a token   {self.characters_per_token:.2f}",
        ]
        if self.longest_split:
            out.append("words cut the most")
            out += [f"  {word}  →  {' '.join(pieces)}" for word, pieces in self.longest_split]
        if self.samples:
            out.append("samples")
            for sentence, pieces in self.samples:
                out += [f"  {sentence}", f"    → {' '.join(pieces)}"]
        return out


def report(tokenizer: Tokenizer, texts: Iterable[str], *, characters: int = 2_000_000, samples: int = 3) -> Report:
    """Measure `tokenizer` on about the first `characters` of `texts`.

    Raises:
        UserError: there is no text.
    """
    from collections import Counter

    words: Counter[str] = Counter()
    read = 0
    shown: list[str] = []
    for text in texts:
        text = text[: max(0, characters - read)]
        read += len(text)
        words.update(text.split())
        if len(shown) < samples:
            shown += [s for s in sentences(text) if 20 <= len(s) <= 120][: samples - len(shown)]
        if read >= characters:
            break
    if not words:
        raise UserError("no text to report on", mend="give a text")
    distinct = list(words)
    encoded = tokenizer.encode_batch(distinct)
    unknown = tokenizer._specials.get("unk", -1)
    counts = np.array([words[word] for word in distinct])
    lengths = np.array([len(ids) for ids in encoded])
    unknowns = np.array([ids.count(unknown) for ids in encoded])
    tokens = int((counts * lengths).sum())
    n_words = int(sum(count_words(word) * count for word, count in words.items()))
    lost = int(counts[unknowns > 0].sum())
    order = sorted(range(len(distinct)), key=lambda i: (-lengths[i], distinct[i]))
    longest = [i for i in order if distinct[i].isalpha() and lengths[i] > 1 and len(distinct[i]) <= 40][:8]
    return Report(
        vocab_size=tokenizer.vocab_size,
        words=n_words,
        tokens=tokens,
        coverage=1 - lost / sum(words.values()),
        unknown_rate=int((counts * unknowns).sum()) / max(tokens, 1),
        fertility=tokens / max(n_words, 1),
        characters_per_token=sum(len(word) * count for word, count in words.items()) / max(tokens, 1),
        used=len({number for ids in encoded for number in ids}) / tokenizer.vocab_size,
        longest_split=[(distinct[i], [tokenizer.token(n) for n in encoded[i]]) for i in longest],
        samples=[(s, [tokenizer.token(n) for n in tokenizer.encode(s)]) for s in shown],
    )


def _ended(backend: tokenizers.Tokenizer, goes_on: bool) -> str:
    """tokenizer.json whose template puts no end after a single text that is gone on with; else one that was left out so
    is there again, as it is after two texts."""
    content = json.loads(backend.to_str())
    marks = content["post_processor"]
    if marks and marks["type"] == "TemplateProcessing":
        single = marks["single"]
        last = max(at for at, part in enumerate(single) if "Sequence" in part)
        if goes_on:
            del single[last + 1 :]
        elif last == len(single) - 1 and "SpecialToken" in marks["pair"][-1]:
            single.append({"SpecialToken": marks["pair"][-1]["SpecialToken"] | {"type_id": 0}})
    return json.dumps(content, indent=2, ensure_ascii=False)
