"""Documents of several fields, any of which can be written given the others (Grover: Zellers et al. 2019).

A document becomes its fields one after the other, each between two special tokens of its own:

    <|title|> A cat is found <|/title|> <|body|> On Monday … <|/body|> <|date|> 2019-04-01 <|/date|>

in an order drawn by a hash of the document: always the same for one document, every order alike for many. So a store is
one sequence of tokens as ever, a row is still a function of its number, and over a corpus each field is written after
each choice of the others. Fields that a document lacks are left out.

On its way from a file to the store a framed document is a string whose fields are set apart by control characters; the
names of marks in a text, such as <|title|>, stay plain text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bertkin.errors import UserError
from bertkin.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from bertkin.text.encoder import Encoded, Encoder

Field = str | tuple[str, ...]
"""What is read of a record: one field as it is, or several, framed."""

OPEN, CLOSE = "<|{}|>", "<|/{}|>"
_FIELD, _TEXT = "\x1e", "\x1f"
_CONTROL = str.maketrans({_FIELD: " ", _TEXT: " "})


def parse_fields(text: str | None) -> tuple[str, ...]:
    """Names of fields, written title,body; () for none.

    Raises:
        UserError: a name that is empty, there twice, or has a character that no mark can have.
    """
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(f"{name!r} is no name of a field", where="--fields", mend="write them as title,body")
    if len(set(names)) < len(names):
        raise UserError(f"a field is there twice in {text!r}", where="--fields", mend="name each once")
    return names


def frame(values: Mapping[str, Any], names: Sequence[str], where: str, mend: str) -> str:
    """A record's fields as one document, in the order that its content draws; "" where all are empty.

    Args:
        values: of the record. Text, numbers, and lists of them will do; None is as if it were not there.
        where, mend: for what is wrong with them.

    Raises:
        UserError: none of the fields is there, or one holds something else.
    """
    if not any(name in values for name in names):
        raise UserError(f"none of the fields {', '.join(names)}", where=where, mend=mend)
    texts = {name: text_of(values.get(name), name, where) for name in names}
    whole = _TEXT.join(texts[name] for name in names).encode("utf-8", "surrogatepass")

    def lot(name: str) -> bytes:
        return hashlib.blake2b(whole, key=name.encode()[:64], digest_size=8).digest()

    held = [name for name in names if texts[name] and not texts[name].isspace()]
    return "".join(f"{_FIELD}{name}{_TEXT}{texts[name]}" for name in sorted(held, key=lot))


def text_of(value: Any, name: str, where: str) -> str:
    """What a field holds, as text: a list parted by commas, nothing as "".

    Raises:
        UserError: it holds something else.
    """
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        value = ", ".join(map(str, value))
    if not isinstance(value, str | int | float):
        raise UserError(f"field {name!r} holds a {type(value).__name__}, not text", where=where, mend="leave it out")
    text = str(value).translate(_CONTROL)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def parts(document: str) -> list[tuple[str, str]]:
    """The fields of a framed document, (name, text), in its order."""
    found = [part.partition(_TEXT) for part in document.split(_FIELD)[1:]]
    return [(name, text) for name, _, text in found]


def plain(document: str) -> str:
    """The text of a framed document, a field a line; of any other, itself."""
    return "\n".join(text for _, text in parts(document)) if document.startswith(_FIELD) else document


def check_found(names: Sequence[str], documents: Iterable[str], where: str) -> None:
    """See that every field is in some document; no more is read than that takes.

    Raises:
        UserError: naming those that no document has.
    """
    missing = set(names)
    for document in documents:
        missing -= {name for name, _ in parts(document)}
        if not missing:
            return
    absent = " or ".join(name for name in names if name in missing)
    raise UserError(f"no document has a field {absent}", where=where, mend="check the names of --fields")


# Marks.


def frames_of(tokenizer: Tokenizer) -> dict[str, tuple[int, int]]:
    """Ids of the tokens that open and close each field the tokenizer knows."""
    added = {t.content: number for number, t in tokenizer.backend.get_added_tokens_decoder().items() if t.special}
    found = {}
    for content, number in added.items():
        match = re.fullmatch(r"<\|/(.+)\|>", content)
        if match and OPEN.format(match.group(1)) in added:
            found[match.group(1)] = (added[OPEN.format(match.group(1))], number)
    return found


def with_frames(tokenizer: Tokenizer, names: Sequence[str]) -> Tokenizer:
    """The tokenizer with marks for these fields, as special tokens after all others; itself if it has them."""
    known = frames_of(tokenizer)
    wanted = [name for name in names if name not in known]
    if not wanted:
        return tokenizer
    backend = Tokenizer.from_str(tokenizer.backend.to_str()).backend
    backend.add_special_tokens([mark.format(name) for name in wanted for mark in (OPEN, CLOSE)])
    return Tokenizer(backend, tokenizer._names)


# Ids.


def encode_framed(encoder: Encoder, documents: Sequence[str], frames: Mapping[str, tuple[int, int]]) -> Encoded:
    """Encode framed documents: each field's text by itself, between its marks."""
    from bertkin.text.encoder import Encoded

    split = [parts(document) for document in documents]
    owner = np.repeat(np.arange(len(split)), [len(held) for held in split])
    named = np.array([frames[name] for held in split for name, _ in held], np.int64).reshape(-1, 2)
    inner = encoder.encode([text for held in split for _, text in held])
    counts = inner.lengths
    starts = np.cumsum(counts + 2) - (counts + 2)
    ids = np.empty(int((counts + 2).sum()), inner.ids.dtype)
    ids[starts], ids[starts + counts + 1] = named[:, 0], named[:, 1]
    ids[np.arange(len(inner.ids)) + np.repeat(2 * np.arange(len(counts)) + 1, counts)] = inner.ids
    ends = np.cumsum(counts)
    part = np.searchsorted(ends, inner.sentences, side="right")
    later = inner.sentences > (ends - counts)[part]  # a field's first sentence begins with its mark
    sentences = np.concatenate([starts, inner.sentences[later] + 2 * part[later] + 1])

    def per_document(values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, values, minlength=len(split)).astype(np.int64)

    return Encoded(ids, per_document(counts + 2), np.sort(sentences), per_document(inner.words))
