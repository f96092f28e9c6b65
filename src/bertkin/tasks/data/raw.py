"""A row between its file and its task: texts, and an answer in the words of the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Raw:
    """A row as its file has it.

    Attributes:
        texts: to be joined.
        label: what the file says, None where it says nothing: any value; for words a tuple of tags; for spans a tuple
            of (start, end).
        where: "file:line".
        places: (start, end) of each labelled word in the last text.
        choices, id, answers: as in `bertkin.tasks.task.Example`.
        called: names of the choices, where the file has some ("A", "B").
    """

    texts: tuple[str, ...]
    label: Any
    where: str
    places: tuple[tuple[int, int], ...] = ()
    choices: tuple[str, ...] = ()
    id: str = ""
    answers: tuple[str, ...] = ()
    called: tuple[str, ...] = ()
