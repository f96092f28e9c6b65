"""Labelled data looked over before anything is trained on it: `bertkin check data`.

    check_data(paths)    reads all parts of a data set and says, with line numbers, what would spoil a score

Faults are rows that cannot be used; warnings are rows that can, though a score means less with them: duplicates, texts of
the development data that are in training, skewed labels, empty and overlong texts, tags that break their scheme.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bertkin.tasks.data.parts import Paths, files_by_part, part_of, passed_over
from bertkin.tasks.data.words import WORD
from bertkin.tasks.reading import Labelled, read_examples
from bertkin.tasks.task import Example, Task, spaceless

LONGEST = 512
"""Tokens that most models read."""
RARE, DOMINANT, SHIFT = 5, 0.9, 0.1
"""Examples below which a class is rare, its share above which it dominates, and the difference in shares between parts
that is worth a word."""

Level = Literal["fault", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and everywhere it is.

    Attributes:
        level: fault (cannot be used) or warning.
        kind: unusable, unseen, duplicate, contradiction, leak, skew, empty, overlong, offset, tags, score.
        what: said in words.
        places: "file:line" each, or "file:line = file:line" for two rows.
    """

    level: Level
    kind: str
    what: str
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checked:
    """What a check has found.

    Attributes:
        task: what the data is of.
        parts: examples in each part.
        labels: how often each label is in each part, for tasks with labels.
        findings: faults first.
        said: what was guessed of files and columns.
    """

    task: Task
    parts: dict[str, int]
    labels: dict[str, dict[str, int]]
    findings: tuple[Finding, ...]
    said: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[Finding, ...]:
        """What must be mended."""
        return tuple(finding for finding in self.findings if finding.level == "fault")

    def to_mapping(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "task": self.task.to_mapping(),
            "parts": self.parts,
            "labels": self.labels,
            "findings": [{**vars(finding), "places": list(finding.places)} for finding in self.findings],
            "said": list(self.said),
        }

    def lines(self, show: int = 5) -> Iterator[str]:
        """The report, with `show` places of each finding (0 for all)."""
        yield from self.said
        yield f"task: {self.task}"
        for part, count in self.parts.items():
            shares = self.labels.get(part)
            yield f"{part}: {count:,} examples" + (f" ({_shares(shares)})" if shares else "")
        for finding in self.findings:
            yield f"{finding.level}: {finding.what}"
            shown = finding.places[: show or None]
            yield from (f"    {place}" for place in shown)
            if len(finding.places) > len(shown):
                yield f"    … and {len(finding.places) - len(shown):,} more"
        if not self.findings:
            yield "nothing to complain about"

    def __str__(self) -> str:
        return "\n".join(self.lines())


def _shares(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    first = [f"{name} {count / total:.1%}" for name, count in list(counts.items())[:8]]
    return ", ".join(first) + (", …" if len(counts) > 8 else "")


def check_data(
    paths: Paths,
    *,
    dev: str | Path | None = None,
    test: str | Path | None = None,
    tokenizer: str | Path | None = None,
    max_length: int = LONGEST,
    **reading: Any,
) -> Checked:
    """Look labelled data over.

    Args:
        paths: a folder with parts named train, dev, test; or files, which are parts where their names say so.
        dev, test: files of these parts.
        tokenizer: a folder with the tokenizer that counts tokens; without one, words and signs are counted, of which
            there are fewer.
        max_length: tokens above which an example is overlong.
        reading: columns, output, scheme, header, encoding_errors; see `bertkin.tasks.reading.read_examples`.

    Raises:
        UserError: files that cannot be read, or labels that make no task.
    """
    parts = files_by_part(paths)
    passed = passed_over(parts)
    parts |= {name: [os.fspath(given)] for name, given in (("dev", dev), ("test", test)) if given is not None}
    train = read_examples(parts.pop("train"), **{**reading, "skip_bad": True})
    read = {"train": train}
    for name, files in parts.items():
        rest = {
            **reading,
            "skip_bad": True,
            "roles": train.roles,
            "labelled": None if part_of(name) == "test" else True,
        }
        read[name] = read_examples(files, train.task, **rest)
    task = train.task
    findings = [finding for labelled in read.values() for finding in _unusable(labelled)]
    count = _counter(tokenizer)
    for name, labelled in read.items():
        findings += _within(task, name, labelled)
        findings += _lengths(
            name, labelled.examples, max_length, count, "words and signs" if not tokenizer else "tokens"
        )
        if name != "train":
            findings += _between(task, name, train, labelled)
    labels = {name: counted for name, labelled in read.items() if (counted := _counts(task, labelled.examples))}
    findings += _skew(task, labels)
    findings.sort(key=lambda finding: finding.level != "fault")
    tallies = re.compile(r"(left out )?[\d,]+:? .*\(first .*\)")  # which are findings
    guessed = [line for labelled in read.values() for line in labelled.said if not tallies.fullmatch(line)]
    sizes = {name: len(labelled) for name, labelled in read.items()}
    return Checked(task, sizes, labels, tuple(findings), tuple(dict.fromkeys([*guessed, *passed])))


def _unusable(labelled: Labelled) -> list[Finding]:
    """Rows that were left out, by reason, and answers that are not where they should be."""
    reasons: dict[str, list[str]] = {}
    for where, why in labelled.left_out:
        reasons.setdefault(why, []).append(where)
    found = []
    for why, places in reasons.items():
        unseen = "not in the training data" in why
        level: Level = "warning" if "did not agree" in why else "fault"
        kind = "unseen" if unseen else "unusable"
        found.append(Finding(level, kind, f"{why} ({_rows(len(places))})", tuple(places)))
    for what, rows in labelled.notes.items():
        found.append(Finding("warning", "tags" if "tags" in what else "offset", f"{len(rows):,} {what}", rows))
    return found


def _rows(count: int) -> str:
    return f"{count:,} row" + "s" * (count != 1)


def _key(task: Task, example: Example) -> str:
    """What makes two examples the same: their texts but for case and blanks."""
    return "\0".join(" ".join(text.split()).casefold() for text in (*example.texts, *example.choices))


def _answer(task: Task, example: Example) -> Any:
    """An answer that can be compared with another's."""
    return tuple(tag for _, _, tag in example.label) if task.output == "tokens" and example.label else example.label


def _within(task: Task, name: str, labelled: Labelled) -> list[Finding]:
    """Duplicates, contradictions and empty texts of one part."""
    first: dict[str, Example] = {}
    same: list[str] = []
    other: list[str] = []
    empty: list[str] = []
    for example in labelled.examples:
        if not all(text.strip() for text in example.texts):
            empty.append(example.where)
            continue
        before = first.setdefault(_key(task, example), example)
        if before is not example:
            agree = _answer(task, before) == _answer(task, example)
            (same if agree else other).append(f"{example.where} = {before.where}")
    findings = []
    if other:
        what = f"{name}: {_rows(len(other))} with the text of another, but not its label"
        findings.append(Finding("warning", "contradiction", what, tuple(other)))
    if same:
        findings.append(Finding("warning", "duplicate", f"{name}: {_rows(len(same))} again", tuple(same)))
    if empty:
        findings.append(Finding("warning", "empty", f"{name}: {_rows(len(empty))} with an empty text", tuple(empty)))
    return findings


def _counter(tokenizer: str | Path | None) -> Callable[[Sequence[str]], list[int]]:
    """Tokens of texts."""
    if tokenizer is None:

        def count(texts: Sequence[str]) -> list[int]:
            return [sum(map(_signs, WORD.findall(text))) for text in texts]

        return count
    from bertkin.text.tokenizer import Tokenizer

    loaded = Tokenizer.load(Path(tokenizer))
    return lambda texts: [len(ids) for ids in loaded.encode_batch(list(texts))]


def _signs(word: str) -> int:
    """Words in a run of letters: one, or in a script without blanks one for each character."""
    bare = sum(map(spaceless, word))
    return bare + (bare < len(word))


def _lengths(
    name: str, examples: Sequence[Example], most: int, count: Callable[[Sequence[str]], list[int]], unit: str
) -> list[Finding]:
    rows = [(e.where, (*e.texts, *([max(e.choices, key=len)] if e.choices else []))) for e in examples]
    may = [(where, texts) for where, texts in rows if sum(len(text.encode()) + 1 for text in texts) + 1 > most]
    counts = iter(count([text for _, texts in may for text in texts]))  # a byte is a token at most
    sizes = [(where, sum(next(counts) + 1 for _ in texts) + 1) for where, texts in may]
    long = [(where, size) for where, size in sizes if size > most]
    if not long:
        return []
    longest = max(size for _, size in long)
    what = f"{name}: {_rows(len(long))} of more than {most:,} {unit} (the longest has {longest:,})"
    return [Finding("warning", "overlong", what, tuple(where for where, _ in long))]


def _between(task: Task, name: str, train: Labelled, other: Labelled) -> list[Finding]:
    """Texts of another part that are in training; of questions, their contexts."""
    findings = []
    known = {_key(task, example): example.where for example in train.examples}
    keys = [(example.where, known.get(_key(task, example))) for example in other.examples]
    leaks = [f"{where} = {before}" for where, before in keys if before is not None]
    if leaks:
        share = len(leaks) / len(other)
        what = f"{name}: {_rows(len(leaks))} ({share:.1%}) with a text that is in training"
        findings.append(Finding("warning", "leak", what, tuple(leaks)))
    if task.output == "span":
        contexts = {example.texts[-1]: example.where for example in train.examples}
        shared = {example.texts[-1]: example.where for example in other.examples if example.texts[-1] in contexts}
        if shared:
            what = f"{name}: {len(shared):,} contexts that are in training"
            places = tuple(f"{where} = {contexts[text]}" for text, where in shared.items())
            findings.append(Finding("warning", "leak", what, places))
    if task.output == "score":
        outside = [e.where for e in other.examples if e.label is not None and not task.low <= e.label <= task.high]
        if outside:
            what = f"{name}: {_rows(len(outside))} with a score that is not between {task.low:g} and {task.high:g}"
            findings.append(Finding("warning", "score", what, tuple(outside)))
    return findings


def _counts(task: Task, examples: Sequence[Example]) -> dict[str, int]:
    """How often each label is there, the most frequent first; of entities each type, by its beginnings."""
    counts: Counter[int] = Counter()
    for example in examples:
        if example.label is None or task.output not in ("class", "classes", "tokens"):
            continue
        if task.output == "class":
            counts[example.label] += 1
        else:
            counts.update(one[2] if task.output == "tokens" else one for one in example.label)
    if task.scheme:
        return {
            task.labels[at].removeprefix("B-"): count for at, count in counts.most_common() if task.labels[at][0] == "B"
        }
    return {task.labels[at]: count for at, count in counts.most_common()}


def _skew(task: Task, labels: dict[str, dict[str, int]]) -> list[Finding]:
    """Classes that dominate, are rare, or whose share differs from training's."""
    findings = []
    train = labels.get("train", {})
    total = sum(train.values())
    if total and task.output == "class":
        name, count = next(iter(train.items()))
        if count / total > DOMINANT:
            what = f"{count / total:.1%} of the training data is {name!r}: always saying so is as accurate as that"
            findings.append(Finding("warning", "skew", f"{what}, so look at another metric"))
    rare = [f"{name} ({count})" for name, count in train.items() if count < RARE]
    if rare:
        what = f"{len(rare)} label{'s' * (len(rare) != 1)} with fewer than {RARE} examples in training: {', '.join(rare[:10])}"
        findings.append(Finding("warning", "skew", what))
    for part, counts in labels.items():
        size = sum(counts.values())
        if part == "train" or min(size, total) < 100:
            continue
        gaps = {name: counts.get(name, 0) / size - train.get(name, 0) / total for name in {*counts, *train}}
        name = max(gaps, key=lambda one: (abs(gaps[one]), one))
        if abs(gaps[name]) > SHIFT:
            what = (
                f"{name!r} is {train.get(name, 0) / total:.1%} of train, but {counts.get(name, 0) / size:.1%} of {part}"
            )
            findings.append(Finding("warning", "skew", what))
    return findings
