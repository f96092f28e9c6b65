"""GLUE's test files answered in the form its server takes: a file a task, `index` and `prediction`, labels by their names.

submit("RTE", reader, splits, folder)       RTE.tsv
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertkin.errors import UserError, disk_errors
from bertkin.tasks.predict import Reader
from bertkin.tasks.reading import Labelled, Splits, read_examples
from bertkin.tasks.task import Example, Task
from bertkin.train.state import write_text

FILES = {
    "CoLA": {"test": "CoLA"}, "SST-2": {"test": "SST-2"}, "MRPC": {"test": "MRPC"}, "STS-B": {"test": "STS-B"},
    "QQP": {"test": "QQP"}, "MNLI": {"test": "MNLI-m", "test_mismatched": "MNLI-mm"}, "QNLI": {"test": "QNLI"},
    "RTE": {"test": "RTE"}, "WNLI": {"test": "WNLI"},
}  # fmt: skip
"""The parts of each task's test data, and their files' names."""
SIZES = {
    "CoLA": 1063, "SST-2": 1821, "MRPC": 1725, "STS-B": 1379, "QQP": 390_965, "MNLI-m": 9796, "MNLI-mm": 9847,
    "QNLI": 5463, "RTE": 3000, "WNLI": 146, "AX": 1104,
}  # fmt: skip
"""Rows the server expects."""
NAMES = {
    "MNLI": ("entailment", "neutral", "contradiction"), "QNLI": ("entailment", "not_entailment"),
    "RTE": ("entailment", "not_entailment"),
}  # fmt: skip
"""Official names of the labels, in the order of their numbers where a copy of the data has those; elsewhere 0 and 1."""
HUB = {
    "CoLA": ("unacceptable", "acceptable"), "SST-2": ("negative", "positive"), "MRPC": ("not_equivalent", "equivalent"),
    "QQP": ("not_duplicate", "duplicate"), "WNLI": ("not_entailment", "entailment"),
}  # fmt: skip
"""What the hub calls the labels 0 and 1."""
DIAGNOSTIC = (
    "AX/AX.tsv",
    "AX/test.tsv",
    "AX/diagnostic.tsv",
    "AX.tsv",
    "diagnostic.tsv",
    "diagnostic/diagnostic.tsv",
    "MNLI/diagnostic.tsv",
)
"""Where the diagnostic examples lie, which the model of MNLI answers."""


def submit(name: str, reader: Reader, splits: Splits, root: Path, folder: Path) -> list[str]:
    """Write a task's files.

    Args:
        name: of one of GLUE's tasks.
        reader: the model that answers.
        splits: the task's data, test files among them where they are there.
        root: where the suite's data lie.
        folder: made if it is not there.

    Returns:
        What was written, or why nothing was, a line each.

    Raises:
        UserError: a test file that lacks rows, labels that are none of the task's, or the disk refuses.
    """
    parts = {"test": splits.test, **splits.others}
    files: dict[str, Labelled | None] = {file: parts.get(part) for part, file in FILES[name].items()}
    if name == "MNLI" and (place := next((root / one for one in DIAGNOSTIC if (root / one).is_file()), None)):
        files["AX"] = read_examples(place, splits.task, roles=splits.train.roles, labelled=False)
    elif name == "MNLI":
        files["AX"] = None
    said = []
    for file, rows in files.items():
        if rows is None:
            said.append(f"{file}.tsv     not written: there are no test data")
            continue
        if rows.left_out:
            place_, why = rows.left_out[0]
            raise UserError(
                f"a test row that cannot be answered ({why})", where=place_, mend="the server wants every row"
            )
        answers = [p.answer for p in reader.examples(rows.examples)]
        table = lines(name, reader.task, rows.examples, answers)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{file}.tsv", "\n".join(table) + "\n")
        odd = f"; the server expects {SIZES[file]:,}" if len(rows) != SIZES[file] else ""
        said.append(f"{folder / file}.tsv     {len(rows):,} rows{odd}")
    return said


def lines(name: str, task: Task, examples: Sequence[Example], answers: Sequence[Any]) -> list[str]:
    """The lines of a file, its header first: the rows' own numbers where they have them, else 0, 1, …

    Raises:
        UserError: labels that are none of the task's.
    """
    ids = [example.id for example in examples]
    numbered = all(one.isdigit() for one in ids) and len(set(ids)) == len(ids)
    if task.output == "score":
        said = [f"{min(max(float(answer), 0.0), 5.0):.3f}" for answer in answers]
    else:
        names = official(name, task)
        said = [names[int(answer)] for answer in answers]
    numbers = ids if numbered else [str(at) for at in range(len(ids))]
    return ["index\tprediction", *(f"{number}\t{answer}" for number, answer in zip(numbers, said, strict=True))]


def official(name: str, task: Task) -> list[str]:
    """The official name of each of a task's labels.

    Raises:
        UserError: a label that is none of the task's.
    """
    known = NAMES.get(name, ("0", "1"))
    if set(task.labels) <= set(known):
        return list(task.labels)
    numbers = {str(at): one for at, one in enumerate(known)}
    if set(task.labels) <= set(numbers):
        return [numbers[label] for label in task.labels]
    if set(task.labels) <= set(HUB.get(name, ())):
        return [known[HUB[name].index(label)] for label in task.labels]
    odd = next(label for label in task.labels if label not in known)
    raise UserError(f"the label {odd!r} is none of {name}'s", mend=f"the server knows {', '.join(known)}")
