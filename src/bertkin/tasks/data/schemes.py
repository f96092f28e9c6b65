"""Entities as tags and back: IOB1, IOB2, BIOES (also called BILOU, IOBES) and BMES.

    spans_of(tags)                    tags, in whichever scheme, to spans, as conlleval finds them
    tags_of(spans, length, scheme)    spans to tags
    convert(tags, scheme)             tags to tags
    as_called(tags, labels)           tags to those that a model answers with

The schemes differ in what the words of an entity are called:

    scheme   one word   first   inside   last   first, right after another of the same type
    iob1     I          I       I        I      B
    iob2     B          B       I        I      B
    bioes    S          B       I        E      B
    bmes     S          B       M        E      B

A letter may stand without a type (B, M, E, S of word segmentation); its spans have type "".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from bertkin.errors import UserError, nearest

TAG = re.compile(r"O|([BIEMSLU])(?:-(.+))?", re.DOTALL)
LETTERS = {"L": "E", "U": "S"}
"""BILOU's letters in BIOES."""


class Span(NamedTuple):
    """Words `start` up to, not including, `end` are an entity."""

    start: int
    end: int
    type: str


def parts(tag: str) -> tuple[str, str]:
    """The letter of a tag and its type; a tag of no scheme is one word of its own type, and "O" has none."""
    match = TAG.fullmatch(tag)
    if match is None:
        return "S", tag
    letter = match[1] or "O"
    return LETTERS.get(letter, letter), match[2] or ""


def is_scheme(tags: Iterable[str]) -> bool:
    """Whether tags could be of one of the schemes: all have a letter, and there is more than "O"."""
    seen = set(tags)
    matches = [TAG.fullmatch(tag) for tag in seen]
    typed = [bool(match[2]) for match in matches if match and match[1]]
    return all(matches) and bool(typed) and len(set(typed)) == 1


def spans_of(tags: Sequence[str]) -> tuple[Span, ...]:
    """The entities of a sentence, in order, whatever the scheme.

    Read as the CoNLL shared tasks' conlleval does: an entity begins at B and S, after an E or S, after an O, and
    where the type changes; so an I without a beginning begins one.
    """
    found: list[Span] = []
    before, kind, start = "O", "", 0
    for at, tag in enumerate((*tags, "O")):
        letter, new = parts(tag)
        inside = before != "O"
        goes_on = inside and before not in "ES" and letter not in "OBS" and new == kind
        if inside and not goes_on:
            found.append(Span(start, at, kind))
        if letter != "O" and not goes_on:
            start = at
        before, kind = letter, new
    return tuple(found)


def tags_of(spans: Iterable[tuple[int, int, str]], length: int, scheme: str = "iob2") -> tuple[str, ...]:
    """The tags of a sentence of `length` words.

    Raises:
        UserError: spans that overlap, are empty or lie outside the sentence, or no such scheme.
    """
    if scheme not in NAMES:
        raise UserError(f"no scheme {scheme!r}", mend=nearest(scheme, NAMES))
    tags = ["O"] * length
    ordered = sorted(spans)
    for start, end, _ in ordered:
        if not 0 <= start < end <= length:
            raise UserError(f"an entity at words {start} to {end} of a sentence of {length}", mend="correct its place")
    for one, two in pairwise(ordered):
        if one[1] > two[0]:
            raise UserError(f"entities that overlap (words {one[0]} to {one[1]} and {two[0]} to {two[1]})")
    last_end, last_type = -1, ""
    for start, end, kind in ordered:
        touches = last_end == start and last_type == kind
        for at in range(start, end):
            tags[at] = _named(_letter(scheme, at == start, at == end - 1, touches), kind)
        last_end, last_type = end, kind
    return tuple(tags)


NAMES = ("iob1", "iob2", "bioes", "bmes")


def _letter(scheme: str, first: bool, last: bool, touches: bool) -> str:
    if scheme == "iob1":
        return "B" if first and touches else "I"
    if scheme == "iob2":
        return "B" if first else "I"
    if first:
        return "S" if last else "B"
    return "E" if last else "M" if scheme == "bmes" else "I"


def _named(letter: str, kind: str) -> str:
    return f"{letter}-{kind}" if kind else letter


def convert(tags: Sequence[str], scheme: str = "iob2") -> tuple[str, ...]:
    """Tags of any scheme in another."""
    return tags_of(spans_of(tags), len(tags), scheme)


def guess_scheme(sentences: Iterable[Sequence[str]]) -> str:
    """Which scheme sentences are tagged in, or "" for plain tags.

    Letters tell BIOES and BMES. IOB1 and IOB2 have the same letters: it is IOB1 where entities that touch no other begin
    with I more often than with B.
    """
    sentences = list(sentences)
    letters: set[str] = set()
    if not is_scheme(tag for tags in sentences for tag in tags):
        return ""
    begins_inside = begins = 0
    for tags in sentences:
        letters.update(parts(tag)[0] for tag in tags)
        last = Span(0, 0, "")
        for span in spans_of(tags):
            touches = last.end == span.start and last.type == span.type
            begins_inside += parts(tags[span.start])[0] == "I"
            begins += not touches and parts(tags[span.start])[0] == "B"
            last = span
    if "M" in letters:
        return "bmes"
    if letters & {"E", "S"}:
        return "bioes"
    return "iob1" if begins_inside > begins else "iob2"


def as_called(tags: Sequence[str], labels: Iterable[str]) -> tuple[str, ...]:
    """The tags of a sentence, in whichever scheme, as they are called among the labels of a model."""
    letters = {match[1] for match in map(TAG.fullmatch, labels) if match}
    telling = (("bmes", "M"), ("bioes", "ESLU"), ("iob2", "B"))
    scheme = next((name for name, those in telling if letters & {*those}), "iob1")
    names = {other: one for one, other in LETTERS.items() if one in letters} | ({} if "B" in letters else {"B": "I"})
    return tuple(names.get(tag[0], tag[0]) + tag[1:] for tag in convert(tags, scheme))


def faults(tags: Sequence[str], scheme: str) -> tuple[int, ...]:
    """Words whose tag cannot stand where it does in `scheme`: an I after an O in IOB2, a B that never ends in BMES."""
    if not scheme:
        return ()
    whole = convert(tags, scheme)
    return tuple(at for at, (tag, right) in enumerate(zip(tags, whole, strict=True)) if parts(tag) != parts(right))
