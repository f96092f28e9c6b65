"""Where sentences begin, as character offsets: a small splitter of our own, for Latin and CJK punctuation.

A sentence ends after . ! ? … (and the quotes and brackets that close on it) before white space, after 。！？ and their
like wherever they stand, and at a blank line. A full stop does not end it after an initial (J. Smith), a common
abbreviation (Dr., e.g.), or before a lower-case letter; so "3.14", "example.com" and "U.S. troops" stay whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

CLOSERS = "\"')\\]}’”»›」』】）》〉］｝"
CJK_ENDERS = "。！？｡．‼⁇⁈⁉"

# One pass: a Latin ender with its closers before white space; a CJK ender with its closers; or a blank line.
_END = re.compile(rf"[.!?…][.!?…]*[{CLOSERS}]*(?=\s)|[{CJK_ENDERS}]+[{CJK_ENDERS}!?…]*[{CLOSERS}]*|\n[^\S\n]*(?=\n)")
_SPACE = re.compile(r"\s*")
_WORD_BEFORE = re.compile(r"[^\s(\[{\"'“‘«]*\Z")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")

ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof rev fr hon st sr jr gen col maj capt lt sgt cpl adm cmdr gov sen rep pres supt insp "
    "vs etc eg ie cf al ca approx dept univ assn bros inc ltd co corp est no nos vol vols fig figs eq eqs ch chap sec "
    "pp ed eds trans ibid op cit jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri sat "
    "ave blvd rd mt ft hrs min oz lb lbs bzw usw nr str z.b d.h u.a p.ex m mme mlle".split()
)


def sentence_starts(text: str) -> list[int]:
    """Character offsets at which the sentences of `text` begin, increasing; white space between belongs to none.

    Every start but the first lies just after white space or just after a CJK full stop.
    """
    first = _SPACE.match(text).end()  # type: ignore[union-attr]
    if first == len(text):
        return []
    starts = [first]
    for match in _END.finditer(text, first):
        end = match.end()
        start = _SPACE.match(text, end).end()  # type: ignore[union-attr]
        if start < len(text) and start > starts[-1] and _ends(text, match.start(), end, start):
            starts.append(start)
    return starts


def _ends(text: str, mark: int, end: int, following: int) -> bool:
    """Does the mark at `mark`, closed at `end`, end a sentence when the text goes on at `following`?"""
    kind = text[mark]
    if kind == "\n" or kind not in ".!?…":
        return True
    if "\n\n" in text[end:following]:
        return True
    after = text[following]
    if after.islower():  # "he asked?" she said; a full stop inside an abbreviation; three dots in mid-sentence
        return False
    if kind != "." or end - mark > 1:
        return True
    word = _WORD_BEFORE.search(text, max(0, mark - 24), mark).group()  # type: ignore[union-attr]
    if len(word) == 1 and word.isalpha():
        return not word.isupper()
    return word.lower() not in ABBREVIATIONS and not re.fullmatch(r"(?:[A-Za-z]\.)+[A-Za-z]", word)


def sentences(text: str) -> Iterator[str]:
    """The sentences of `text`, without the white space between them."""
    starts = sentence_starts(text)
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        yield text[start:end].rstrip()


def count_words(text: str) -> int:
    """Words of `text`: what stands between white space, and each Chinese character."""
    if text.isascii():
        return len(text.split())
    characters = len(_CHINESE.findall(text))
    return len(_CHINESE.sub(" ", text).split()) + characters if characters else len(text.split())
