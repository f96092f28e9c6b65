"""Labelled words: CoNLL columns, CoNLL-U, lists of words and tags, and entities marked by character offsets."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

from bertkin.errors import UserError, nearest
from bertkin.tasks.data.files import Gate, columns, is_count
from bertkin.tasks.data.raw import Raw
from bertkin.tasks.data.schemes import tags_of
from bertkin.tasks.task import joined, spaceless

UD_COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


def read_conll(label: str, text: str, gate: Gate, *, word: str = "", tag: str = "", labelled: bool = True) -> list[Raw]:
    """Sentences of a file with a word on each line, its columns parted by tabs or blanks, blank lines between sentences.

    Where nearly every word is one character (as in Chinese), the text has no blanks.

    Args:
        label: name of the file.
        word, tag: numbers of their columns from 1; by default the first and the last. A file of one column has no tags.
        labelled: whether tags are read.

    Raises:
        UserError: no words, or lines with differing numbers of columns.
    """
    sentences: list[list[tuple[int, list[str]]]] = [[]]
    width, broken = _width(text), False
    at, answer = _column(word, 1, width, label, "text"), _column(tag, width, width, label, "label")
    tagged = labelled and width > 1 and any(len(cells) == width and cells[answer - 1] for cells in _cells(text))
    known = _tags(text, width, answer) if labelled and re.search(r"^# ", text, re.MULTILINE) else set()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if sentences[-1] or broken:
                sentences = sentences[:-1] if broken else sentences
                sentences.append([])
            broken = False
            continue
        cells = columns(line.rstrip("\r"))
        above = labelled and not sentences[-1] and line.startswith("# ")
        if line.startswith("# ") and (len(cells) != width or (above and cells[answer - 1] not in known)):
            continue  # a comment: "# newdoc" has two cells, but no word has such a tag
        if len(cells) != width or not cells[at - 1]:
            odd = cells[0] and len(cells) != width
            what = f"{len(cells)} columns, but the first word has {width}" if odd else "a tag without a word"
            gate.refuse(what, f"{label}:{number}", "give each line a word and its tag")
            broken = True
        elif tagged and not cells[answer - 1]:
            gate.refuse("a word without a tag", f"{label}:{number}", "give each line a word and its tag")
            broken = True
        sentences[-1].append((number, cells))
    sentences = [sentence for sentence in (sentences[:-1] if broken else sentences) if sentence]
    if not sentences:
        raise UserError("no words", where=label, mend="give a file with a word and its tag on each line")
    words = [[cells[at - 1] for _, cells in sentence] for sentence in sentences]
    apart = not _characterwise(words)
    found = []
    for sentence, forms in zip(sentences, words, strict=True):
        whole, places = joined(forms, None if apart else [True] * (len(forms) - 1))
        tags = tuple(cells[answer - 1] for _, cells in sentence) if tagged else None
        found.append(Raw((whole,), tags, f"{label}:{sentence[0][0]}", places))
    return found


def _cells(text: str) -> Iterator[list[str]]:
    """The columns of each word, and of lines above a sentence that may be comments."""
    lines = (line for line in text.split("\n") if line.strip() and not line.startswith("-DOCSTART-"))
    return (columns(line.rstrip("\r")) for line in lines)


def _tags(text: str, width: int, answer: int) -> set[str]:
    """The tags of a file's words. Lines above a sentence that begin with "# " do not count, as they may be comments."""
    found, above = set[str](), True
    for line in text.split("\n"):
        cells = columns(line.rstrip("\r"))
        above = not line.strip() or (above and cells[0] == "#")
        if not above and len(cells) == width:
            found.add(cells[answer - 1])
    return found


def _width(text: str) -> int:
    """How many columns the first word has. A line that begins with "# " may be a comment above it."""
    widths = [(cells[0] == "#" or cells[0].startswith("# "), len(cells)) for cells in islice(_cells(text), 100)]
    words = [width for comment, width in widths if not comment]
    return words[0] if words else widths[0][1] if widths else 1


def _column(name: str, otherwise: int, width: int, label: str, option: str) -> int:
    if not name:
        return otherwise
    if not is_count(name) or not 1 <= int(name) <= width:
        raise UserError(f"no column {name!r}", where=f"{label} (--{option})", mend=f"give its number, 1 to {width}")
    return int(name)


def _characterwise(sentences: Sequence[Sequence[str]]) -> bool:
    words = [word for sentence in sentences[:2000] for word in sentence]
    single = sum(len(word) == 1 for word in words)
    return single >= 0.9 * len(words) and sum(spaceless(word[0]) for word in words) > 0.3 * len(words)


def read_conllu(label: str, text: str, gate: Gate, *, tag: str = "upos") -> list[Raw]:
    """Sentences of a CoNLL-U file (universaldependencies.org/format), by syntactic word.

    The text has blanks where the file says so (SpaceAfter=No); the parts of a multiword token stand side by side where
    they spell it (do|n't), and apart where they do not (zum: zu dem). Empty nodes are passed over.

    Args:
        tag: column of the label, by its name in the format.

    Raises:
        UserError: no words, no such column, or a line that does not have ten columns.
    """
    if tag not in UD_COLUMNS[2:]:
        raise UserError(f"no column {tag!r}", where=f"{label} (--label)", mend=nearest(tag, UD_COLUMNS[2:]))
    found: list[Raw] = []
    lines: list[list[str]] = []
    start, name, whole = 0, "", True
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if not line.strip():
            if lines and whole:
                found.append(_sentence(lines, UD_COLUMNS.index(tag), f"{label}:{start}", name))
            lines, name, whole = [], "", True
        elif line.startswith("#"):
            name = line.split("=", 1)[1].strip() if re.match(r"#\s*sent_id\s*=", line) else name
        else:
            cells = line.split("\t")
            start = start if lines else number
            lines.append(cells)
            if len(cells) != 10 or not re.fullmatch(r"\d+([-.]\d+)?", cells[0]) or not cells[1]:
                what = f"{len(cells)} columns, but CoNLL-U has 10" if len(cells) != 10 else "no word with a number"
                gate.refuse(what, f"{label}:{number}", "mend the line")
                whole = False
    if not found:
        raise UserError("no words", where=label, mend="give a CoNLL-U file")
    return found


def _sentence(lines: Sequence[Sequence[str]], column: int, where: str, name: str) -> Raw:
    """One sentence; a line of "3-4" says how the words 3 and 4 are written together."""
    words = [cells for cells in lines if cells[0].isdigit()]
    glued = {int(cells[0]): _no_blank(cells) for cells in words}
    for cells in lines:
        first, dash, last = cells[0].partition("-")
        if dash:
            inside = [word for word in words if int(first) <= int(word[0]) <= int(last)]
            spelled = "".join(word[1] for word in inside).lower() == cells[1].lower()
            glued.update({int(word[0]): spelled for word in inside})
            glued[int(last)] = _no_blank(cells)
    forms = [cells[1] for cells in words]
    known = [glued[int(cells[0])] for cells in words]
    text, places = joined(forms, known if any(known) else None)
    return Raw((text,), tuple(cells[column] for cells in words), where, places, id=name)


def _no_blank(cells: Sequence[str]) -> bool:
    return "SpaceAfter=No" in cells[9].split("|")


def words_of_row(row: Mapping[str, Any], words: str, tags: str, where: str, gate: Gate, name: str = "") -> Raw | None:
    """A row with a list of words and, if `tags`, a list of tags; None where it is left out."""
    forms, found = row.get(words), row.get(tags) if tags else None
    if not isinstance(forms, list) or not forms or not all(isinstance(form, str) and form for form in forms):
        gate.refuse(f"field {words!r} is not a list of words", where, "give a list of strings")
        return None
    if found is not None and (not isinstance(found, list) or len(found) != len(forms)):
        count = f"{len(found)} tags" if isinstance(found, list) else "no list of tags"
        gate.refuse(f"{len(forms)} words, but {count}", where, "give every word a tag")
        return None
    without = [at for at, tag in enumerate(found or (), 1) if tag in (None, "")]
    if without:
        gate.refuse(f"word {without[0]} has no tag", where, "give every word a tag")
        return None
    text, places = joined(forms)
    return Raw((text,), None if found is None else tuple(map(str, found)), where, places, id=name)


WORD = re.compile(r"\w+|[^\w\s]")


def words_in(text: str, edges: Collection[int] = ()) -> list[tuple[int, int]]:
    """Where words are: runs of letters and digits, every other character, and every Chinese or Japanese one, each with the
    accents and vowel signs that follow it.

    Args:
        edges: places that part words, too.
    """
    runs: list[tuple[int, int]] = []
    for match in WORD.finditer(text):
        start, end = match.span()
        touches = bool(runs) and runs[-1][1] == start
        if touches and (_clings(text[start]) or (_clings(text[start - 1]) and _goes_on(text, start))):
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    places: list[tuple[int, int]] = []
    for start, end in runs:
        apart = (at for at in range(start + 1, end) if spaceless(text[at]) or spaceless(text[at - 1]))
        cuts = sorted({at for at in apart if not _clings(text[at])} | {at for at in edges if start < at < end})
        places += zip([start, *cuts], [*cuts, end], strict=True)
    return places


JOINERS = "\u200c\u200d"
"""Zero width, between letters of one word (Persian, Hindi) and signs of one emoji."""


def _clings(character: str) -> bool:
    """Whether a character belongs to the one before it: accents, vowel signs, joiners."""
    return character > "\u02ff" and (character in JOINERS or unicodedata.category(character)[0] == "M")


def _goes_on(text: str, at: int) -> bool:
    """Whether the character after one that clings is still of the same word: after a joiner any is, and after a letter's
    accents another letter, but not one after a sign, such as a heart that is to be coloured."""
    if text[at - 1] == JOINERS[1]:
        return True
    last = next((before for before in text[at - 1 :: -1] if not _clings(before)), " ")
    return last.isalnum() and not spaceless(last) and (text[at].isalnum() or text[at] == "_")


def words_of_marks(text: str, marks: Any, where: str, gate: Gate, name: str = "") -> Raw | None:
    """A text with entities by character offsets, as words tagged in IOB2; None where it is left out.

    Words are those of `words_in`; an edge of an entity parts them, too.

    Args:
        marks: a list of [start, end, type], or of objects with start, end, label (and text, which must then agree).
    """
    spans: list[tuple[int, int, str]] = []
    if not isinstance(marks, list | None):
        gate.refuse("the entities are no list", where, "write them [[start, end, type], …]")
        return None
    for mark in marks or ():
        span = _mark(text, mark, where, gate)
        if span is None:
            return None
        spans.append(span)
    spans.sort()
    for (_, end, one), (start, _, two) in pairwise(spans):
        if start < end:
            gate.refuse(f"entities that overlap ({one} and {two} at character {start})", where, "keep one of them")
            return None
    places = words_in(text, {edge for start, end, _ in spans for edge in (start, end)})
    entities = []
    for start, end, kind in spans:
        inside = [at for at, place in enumerate(places) if start <= place[0] and place[1] <= end]
        entities.append((inside[0], inside[-1] + 1, kind))
    return Raw((text,), tags_of(entities, len(places)), where, tuple(places), id=name)


def _mark(text: str, mark: Any, where: str, gate: Gate) -> tuple[int, int, str] | None:
    """An entity's characters, without blanks at its edges."""
    if isinstance(mark, dict):
        start, end, kind = mark.get("start"), mark.get("end"), mark.get("label", mark.get("type", mark.get("tag")))
        said = mark.get("text")
    else:
        start, end, kind, said = (
            (*mark, None) if isinstance(mark, list) and len(mark) == 3 else (None, None, None, None)
        )
    if not isinstance(start, int) or not isinstance(end, int) or not isinstance(kind, str):
        gate.refuse("an entity without start, end and type", where, "write it [start, end, type]")
        return None
    if not 0 <= start < end <= len(text):
        what = f"an entity at characters {start} to {end} of a text of {len(text)}"
        gate.refuse(what, where, "count characters, not bytes, from 0")
        return None
    piece = text[start:end]
    if isinstance(said, str) and said != piece:
        gate.refuse(f"the entity {said!r} is not at characters {start} to {end}, there is {piece!r}", where, CORRECT)
        return None
    if not piece.strip():
        gate.refuse(f"an entity of blanks at characters {start} to {end}", where, CORRECT)
        return None
    start += len(piece) - len(piece.lstrip())
    return start, start + len(piece.strip()), kind


CORRECT = "correct its offsets"
