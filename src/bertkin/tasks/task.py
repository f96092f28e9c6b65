"""What a task is: how many texts go in, and which of a few kinds of answer comes out.

    Task       what is asked of every example, and how answers are counted
    Example    one row: its texts, and its answer where that is known

Nothing here knows of files or models: `bertkin.tasks.reading` makes these from files, `bertkin.tasks.metrics` counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from bertkin.errors import UserError, nearest

Output = Literal["class", "classes", "score", "choice", "tokens", "span", "sequence"]
OUTPUTS: tuple[str, ...] = get_args(Output)

ONE_ANSWER = ("class", "classes", "score")
"""Outputs that are of a whole text, however many windows it is read in."""

Scheme = Literal["", "iob1", "iob2", "bioes", "bmes"]
SCHEMES: tuple[str, ...] = get_args(Scheme)

HEADLINES: dict[str, str] = {
    "class": "accuracy", "classes": "f1_micro", "score": "pearson_spearman", "choice": "accuracy",
    "tokens": "accuracy", "span": "answer_f1", "sequence": "exact_match",
}  # fmt: skip
"""The metric that counts, where nobody says another."""


def tidy(score: float) -> float:
    """A score with as many digits as a person reads, whatever its size."""
    return float(f"{score:.6g}")


@dataclass(frozen=True)
class Task:
    """What is asked of every example.

    Attributes:
        output: what the answer is: one class, several classes, a score, the best of some choices, a class for each
            token, a span of the last text, or a new text.
        inputs: how many texts are joined; a choice's own text is one of them.
        labels: names of the classes (class, classes), or of the tags as IOB2 writes them (tokens); else none.
        metric: name of the headline in `bertkin.tasks.metrics`; by default that of the output.
        scheme: how the file wrote entities; "" for plain tags, such as parts of speech.
        low, high: range of the scores.
        unanswerable: of spans: whether some questions have no answer in their text, so that none may be given.
        positive: of two classes: the one that precision, recall and f1 are of; by default the second, or the first where
            the second only denies it (equivalent and not_equivalent).

    Raises:
        UserError: an output, a scheme or a number of inputs that does not exist.
    """

    output: Output
    inputs: int = 1
    labels: tuple[str, ...] = ()
    metric: str = ""
    scheme: str = ""
    low: float = 0.0
    high: float = 0.0
    unanswerable: bool = False
    positive: str = ""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what a head gives, in order, as a model's configuration has them."""
        return self.labels if self.output in ("class", "classes", "tokens") else ("score",)

    @property
    def near(self) -> float:
        """How far a score may be off and count as right: a tenth of the range."""
        return (self.high - self.low or 1.0) / 10

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise UserError(f"no task {self.output!r}", mend=nearest(self.output, OUTPUTS))
        if self.scheme not in SCHEMES:
            raise UserError(f"no scheme {self.scheme!r}", mend=nearest(self.scheme, SCHEMES[1:]))
        if self.inputs < 1:
            raise UserError(f"a task of {self.inputs} texts", mend="give it at least 1")
        if not self.metric:
            spans = self.output == "tokens" and self.scheme
            object.__setattr__(self, "metric", "span_f1" if spans else HEADLINES[self.output])
        two = self.output == "class" and len(self.labels) == 2
        if self.positive and not two:
            raise UserError("only of two classes one is the positive one", where="--positive", mend="leave it out")
        if self.positive and self.positive not in self.labels:
            raise UserError(
                f"no class {self.positive!r}", where="--positive", mend=f"choose {' or '.join(self.labels)}"
            )
        if two and not self.positive:
            first, second = self.labels
            denied = re.fullmatch(rf"(not|non|no)[ _-]?{re.escape(str(first))}", str(second), re.IGNORECASE)
            object.__setattr__(self, "positive", first if denied else second)

    def __str__(self) -> str:
        texts = {1: "one text", 2: "two texts", 3: "three texts"}.get(self.inputs, f"{self.inputs} texts")
        answer = {
            "class": f"one of {len(self.labels)} classes",
            "classes": f"any of {len(self.labels)} classes",
            "score": f"a score from {self.low:g} to {self.high:g}",
            "choice": "the best of several choices",
            "tokens": f"one of {len(self.labels)} tags for each word",
            "span": "a span of the last text" + ", or none" * self.unanswerable,
            "sequence": "a new text",
        }[self.output]
        of = f" of {self.positive}" if self.metric in ("f1", "precision", "recall") else ""
        return f"{texts} → {answer}, by {self.metric}{of}"

    def to_mapping(self) -> dict[str, Any]:
        """Plain data, for JSON; `Task(**mapping)` reads it back but for `labels`, which `from_mapping` mends."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"labels": list(self.labels)}

    @classmethod
    def from_mapping(cls, values: dict[str, Any], where: str | Path | None = None) -> Task:
        """A task from what `to_mapping` wrote, now or by another version.

        Args:
            where: what it is the task of.

        Raises:
            UserError: it is none.
        """
        if not isinstance(values, dict) or "output" not in values:
            raise UserError(f"expected a task, found {values!r:.60}", where=where, mend="save the model again")
        known = {name: value for name, value in values.items() if name in cls.__dataclass_fields__}
        try:
            labels = tuple(values.get("labels", ()))
            if "positive" not in values and values["output"] == "class" and len(labels) == 2:
                known["positive"] = labels[1]  # as older versions counted
            return cls(**{**known, "labels": labels})
        except (TypeError, ValueError, UserError) as error:
            raise UserError(f"no task ({error})", where=where, mend="save the model again") from None


@dataclass(frozen=True)
class Example:
    """One row of a task.

    Attributes:
        texts: what is read, in order; for spans the context comes last.
        label: None where it is not known, otherwise by the task's output
            class: int, an index into the task's labels
            classes: tuple of such indices, ascending
            score: float
            choice: int, an index into `choices`
            tokens: tuple of (start, end, tag), characters of texts[-1] and an index into the labels, a labelled word each
            span: tuple of (start, end), characters of texts[-1], alternatives of each other; () for no answer
            sequence: str
        choices: what is chosen among.
        id: its name in the file, or "".
        where: "file:line".
        answers: of a span: the answers' texts as the file has them, one for each of `label` or more (an answer that
            is not in the context has a text only).
        places: of tokens: (start, end) of each word, where the tags are not known.
    """

    texts: tuple[str, ...]
    label: Any = None
    choices: tuple[str, ...] = ()
    id: str = ""
    where: str = ""
    answers: tuple[str, ...] = ()
    places: tuple[tuple[int, int], ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        """The texts a predicted span or sequence is compared with; ("",) where there is no answer."""
        if isinstance(self.label, str):
            return self.answers or (self.label,)
        return self.answers or tuple(self.texts[-1][start:end] for start, end in self.label or ()) or ("",)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Where the words of a token task are, tagged or not."""
        return tuple((start, end) for start, end, _ in self.label) if self.label else self.places

    @property
    def words(self) -> tuple[str, ...]:
        """The words of a token task."""
        return tuple(self.texts[-1][start:end] for start, end in self.spans)


def joined(words: Sequence[str], glued: Sequence[bool] | None = None) -> tuple[str, tuple[tuple[int, int], ...]]:
    """A text of `words`, and where each is in it. Blanks stand between words, but not between Chinese or Japanese ones.

    Args:
        words: none of them empty.
        glued: whether nothing stands between a word and the next, where that is known.
    """
    pieces: list[str] = []
    places: list[tuple[int, int]] = []
    at = 0
    for number, word in enumerate(words):
        if number:
            before = words[number - 1]
            together = glued[number - 1] if glued is not None else spaceless(before[-1]) and spaceless(word[0])
            if not together:
                pieces.append(" ")
                at += 1
        pieces.append(word)
        places.append((at, at + len(word)))
        at += len(word)
    return "".join(pieces), tuple(places)


def spaceless(character: str) -> bool:
    """Whether a character is of a script written without blanks: Han, kana, and their full-width punctuation."""
    code = ord(character)
    return (
        0x2E80 <= code <= 0x9FFF  # radicals, punctuation, kana, Han
        or 0xF900 <= code <= 0xFAFF
        or 0xFE30 <= code <= 0xFE4F
        or 0xFF00 <= code <= 0xFFEF
        or 0x20000 <= code <= 0x3FFFF
    )
