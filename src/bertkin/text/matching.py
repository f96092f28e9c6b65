"""Lists of phrases or entities, and where in a text they stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertkin.errors import UserError
from bertkin.text.batches import BEGINS, GOES_ON, Bools, Ints, Marks, SplitLike
from bertkin.text.collocations import Words, blocks
from bertkin.text.shuffle import Bits, noise
from bertkin.text.tokenizer import Tokenizer

LONGEST_ENTRY = 32
"""Tokens of the longest entry of a list that is looked for."""
BLOCK = 1 << 20
"""Tokens marked at a time."""


def check_list(unit: str, phrases: str | Path | None) -> None:
    """Refuse a list that is missing or empty, or that the unit does without, before anything is begun.

    Raises:
        UserError: saying what to give.
    """
    if phrases is not None and unit not in ("phrase", "entity"):
        raise UserError(
            f"a list is for phrases or entities, not for unit {unit}",
            where="--objective.phrases",
            mend="choose --objective.unit phrase or entity, or leave it out",
        )
    if phrases is None and unit == "entity":
        raise UserError(
            "entities are told by a list, and there is none",
            where="--objective.unit entity",
            mend="give --objective.phrases FILE with one on each line, or choose --objective.unit phrase",
        )
    if phrases is not None:
        read_list(phrases)


def read_list(path: str | Path) -> list[str]:
    """The phrases or entities of a file, one a line; what follows a tab is left out (see phrases.txt).

    Raises:
        UserError: it is missing, not UTF-8 text, or empty.
    """
    mend = "give a file with a phrase or entity on each line"
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError("no such list", where=path, mend=mend) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", where=path, mend=mend) from None
    entries = list(dict.fromkeys(filter(None, (line.split("\t")[0].strip() for line in text.splitlines()))))
    if not entries:
        raise UserError("the list is empty", where=path, mend=mend)
    return entries


@dataclass(frozen=True)
class Entries:
    """Token sequences to look for."""

    first: Bools
    """[vocab]: some sequence begins with the token."""
    prefixes: list[tuple[Bits, Ints]]
    """Of the beginnings of 1, 2, … tokens, their hashes, sorted, and which entry each is; -1 where it is only a part."""

    @classmethod
    def of(cls, sequences: Sequence[tuple[Sequence[int], int]], vocab_size: int) -> Entries:
        """Args: sequences: tokens, and the number of the entry they write."""
        first = np.zeros(vocab_size, np.bool_)
        grouped: list[dict[int, int]] = [{} for _ in range(LONGEST_ENTRY)]
        for tokens, number in sequences:
            if 0 < len(tokens) <= LONGEST_ENTRY:
                first[tokens[0]] = True
                names = np.cumsum(noise(np.array(tokens, np.uint64), np.arange(len(tokens)))).tolist()
                for length, name in enumerate(names[:-1]):
                    grouped[length].setdefault(name, -1)
                if grouped[len(tokens) - 1].get(names[-1], -1) < 0:
                    grouped[len(tokens) - 1][names[-1]] = number
        prefixes = []
        for group in filter(None, grouped):
            hashes, numbers = np.array(list(group), np.uint64), np.array(list(group.values()), np.int64)
            order = np.argsort(hashes)
            prefixes.append((hashes[order], numbers[order]))
        return cls(first, prefixes)

    def match(self, tokens: Ints, boundaries: Bools, ends: Ints) -> tuple[Ints, Ints, Ints]:
        """Where sequences stand in tokens [n], longest first, none over another: position, length and entry of each.

        Args:
            boundaries: [n + 1], where a match may begin or end.
            ends: sorted, up to n: what no match runs over.
        """
        at = np.flatnonzero(boundaries[:-1])
        at = at[self.first[tokens[at]]]
        room = ends[np.searchsorted(ends, at, side="right")] - at
        names = np.zeros(len(at), np.uint64)
        candidates = []
        for length, (hashes, numbers) in enumerate(self.prefixes, start=1):
            inside = room >= length
            at, room = at[inside], room[inside]
            names = names[inside] + noise(tokens[at + length - 1].astype(np.uint64), length - 1)
            place = np.minimum(np.searchsorted(hashes, names), len(hashes) - 1)
            known = hashes[place] == names
            at, room, names, place = at[known], room[known], names[known], place[known]
            hit = (numbers[place] >= 0) & boundaries[at + length]
            candidates.append((length, at[hit], numbers[place[hit]]))
        taken = np.zeros(len(tokens), np.bool_)
        found = [_place(taken, *candidate) for candidate in reversed(candidates)]
        position, length_of, number = (np.concatenate(column) for column in zip(*found, strict=True))
        return position, length_of, number


def _place(taken: Bools, length: int, at: Ints, number: Ints) -> tuple[Ints, Ints, Ints]:
    """Of the candidates, from left to right, those that are not over what is taken; they are taken then."""
    before = np.append(0, np.cumsum(taken))
    free = before[at + length] == before[at]
    at, number = at[free], number[free]
    chosen: list[Ints] = []
    left = np.arange(len(at))
    while len(left):
        clear = np.diff(at[left], prepend=-length) >= length
        chosen.append(left[clear])
        since = at[left] - at[left[clear]][np.cumsum(clear) - 1]
        left = left[since >= length]
    kept = np.sort(np.concatenate(chosen)) if chosen else left
    taken[(at[kept][:, None] + np.arange(length)).ravel()] = True
    return at[kept], np.full(len(kept), length), number[kept]


def marked(split: SplitLike, words: Words, entries: Entries, counts: Ints) -> Iterator[Marks]:
    """The marks of a split, block by block; `counts` [entries] is added to."""
    for first, last in blocks(split, BLOCK):
        tokens = np.asarray(split.tokens[first:last]).astype(np.int64)
        documents = np.asarray(split.documents[slice(*np.searchsorted(split.documents, [first, last]))]) - first
        starts = np.append(words.starts(tokens), True)
        starts[documents] = True
        position, length, number = entries.match(tokens, starts, np.append(documents[documents > 0], len(tokens)))
        counts += np.bincount(number, minlength=len(counts))
        marks = np.zeros(len(tokens), np.uint8)
        inside = np.repeat(position - np.cumsum(length) + length, length) + np.arange(length.sum())
        marks[(position + length)[position + length < len(tokens)]] = BEGINS  # even what would go on with its last word
        marks[inside] = GOES_ON
        marks[position] = BEGINS
        marks[documents] = BEGINS
        yield marks


def spellings(tokenizer: Tokenizer, entries: list[str]) -> list[tuple[list[int], int]]:
    """Every way in which a tokenizer writes the entries, and which entry that is: those that keep blanks do not write
    the same at the beginning of a text, after a blank and after a bracket."""
    unknown = tokenizer._specials.get("unk", -1)
    spellings = []
    for lead in ("", " ", "("):
        before = tokenizer.encode(lead) if lead.strip() else []
        for number, tokens in enumerate(tokenizer.encode_batch([lead + entry for entry in entries])):
            if tokens[: len(before)] == before and unknown not in tokens[len(before) :]:
                spellings.append((tokens[len(before) :], number))
    return spellings
