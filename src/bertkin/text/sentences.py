"""Where sentences begin, as character offsets: a small splitter of our own, for Latin and CJK punctuation.

A sentence ends after . ! ? … (and the quotes and brackets that close on it) before white space, after 。！？ and their
like wherever they stand, and at a blank line. A full stop does not end it after an initial (J. Smith), a common
abbreviation (Dr., e.g.), or before a lower-case letter; so "3.14", "example.com" and "U.S. troops" stay whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

_LATIN = ".!?…"
_CJK = "。！？｡．‼⁇⁈⁉"
_CLOSERS = "\"')\\]}’”»›」』】）》〉］｝"
_LOWER = "a-zß-öø-ÿα-ωа-џ"

_ABBREVIATIONS = """
    mr mrs ms dr prof rev fr hon st sr jr gen col maj capt lt sgt cpl adm cmdr gov sen rep pres supt insp vs etc eg ie
    cf al ca approx dept univ assn bros inc ltd co corp est nos vol vols fig figs eq eqs ch chap sec pp ed eds trans
    ibid op cit jan feb mar apr jun jul aug sep sept oct nov dec ave blvd rd mt
    ft hrs min oz lb lbs bzw usw nr str mme mlle
"""


def _not_after_abbreviations() -> str:
    """Look-behinds at a full stop, one for each length of abbreviation, as they must have a fixed width."""
    by_length: dict[int, list[str]] = {}
    for word in _ABBREVIATIONS.split():
        by_length.setdefault(len(word), []).append(word)
    return "".join(rf"(?<!\b(?i:{'|'.join(words)})\.)" for words in by_length.values())


# One regular expression decides everything, for speed; it begins with a character class, so that the search is fast.
# After a Latin ender: more enders (or, alone, no initial, no abbreviation before it), what closes on it, white space,
# and no lower-case letter. After a CJK ender: what closes on it. After a line end: a blank line.
_END = re.compile(
    rf"[{_LATIN}{_CJK}\n](?:"
    rf"(?<=[{_LATIN}])(?<![{_LATIN}].)(?:[{_LATIN}]++|(?<=[^.])"
    rf"|(?<!\b[A-Z]\.)(?<!\.[A-Za-z]\.){_not_after_abbreviations()})"
    rf"[{_CLOSERS}]*+\s++(?![{_LOWER}])"
    rf"|(?<=[{_CJK}])[{_CJK}{_LATIN}]*+[{_CLOSERS}]*+\s*+"
    rf"|(?<=\n)[^\S\n]*+\n\s*+)"
)
_SPACE = re.compile(r"\s*")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


def sentence_starts(text: str) -> list[int]:
    """Character offsets at which the sentences of `text` begin, increasing; white space between belongs to none.

    Every start but the first lies just after white space or just after a CJK full stop (and what closes on it).
    """
    first = _SPACE.match(text).end()  # type: ignore[union-attr]
    if first == len(text):
        return []
    starts = [first, *[match.end() for match in _END.finditer(text, first)]]
    if starts[-1] == len(text):
        starts.pop()
    return starts


def sentences(text: str) -> Iterator[str]:
    """The sentences of `text`, without the white space between them."""
    starts = sentence_starts(text)
    for start, end in pairwise([*starts, len(text)]):
        yield text[start:end].rstrip()


def count_words(text: str) -> int:
    """Words of `text`: what stands between white space, and each Chinese character."""
    if text.isascii():
        return len(text.split())
    characters = len(_CHINESE.findall(text))
    return len(_CHINESE.sub(" ", text).split()) + characters if characters else len(text.split())
