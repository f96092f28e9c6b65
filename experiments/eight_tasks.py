"""Two inputs and four outputs: each of the eight combinations as one command of `bertkin finetune`, in one table.

    BERTKIN_DATA=shared/data python experiments/eight_tasks.py --price
    BERTKIN_DATA=shared/data python experiments/eight_tasks.py --only class-one tokens-one

                 one text                                     several texts
    class        is a sentence acceptable? (CoLA)             do two sentences say the same? (MRPC)
    tokens       names in tweets (WNUT-17)                    which words of the passage answer the question? (SQuAD)
    span         the subject of a sentence (UD English)       the answer to a question (SQuAD)
    sequence     a sentence's parts of speech, written        how two sentences stand, written as a word (MNLI part)

What has no file of its own in $BERTKIN_DATA is made from what is there, by this script. A command that was stopped is
gone on with (`bertkin resume`); where one fails the others go on, and what it came to earlier stays.

Results go into eight_tasks.json beside this file, and as a table into docs/results-finetuning.md.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from sharing import data, goes_on, markdown, once, run
from starts import called, encoder, weights
from tuned import Options, cut, finish, task

from bertkin.errors import UserError, nearest
from bertkin.tasks.finetune import is_tuning
from bertkin.train.folder import REVIEW, TASK
from bertkin.train.state import read_log

WORD = re.compile(r"\w+|[^\w\s]")
app = App(help_format="plaintext")
Lines = Iterator[dict[str, Any]]


# Data that are made.


def questions(path: str) -> Iterator[tuple[str, str, str, int]]:
    """(question, passage, first answer, where it begins) of a file in SQuAD's format."""
    for article in json.loads(Path(path).read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for one in paragraph["qas"]:
                if one["answers"]:
                    answer = one["answers"][0]
                    yield one["question"], paragraph["context"], answer["text"], answer["answer_start"]


def marked(part: str) -> Lines:
    """A question, and the words of its passage; those of the answer are tagged, all others are O."""
    for question, passage, answer, start in questions(data(f"squad/{part}-v1.1-part.json")):
        words: list[str] = []
        tags: list[str] = []
        begun = False
        for match in WORD.finditer(passage):
            inside = match.end() > start and match.start() < start + len(answer)
            tags.append("O" if not inside else "I-ANSWER" if begun else "B-ANSWER")
            words.append(match.group())
            begun = inside
        yield {"question": question, "tokens": words, "ner_tags": tags}


@dataclass(frozen=True)
class Word:
    """A word of a tree: its number and its head's, part of speech, relation, and characters."""

    number: int
    upos: str
    head: int
    relation: str
    start: int
    end: int


def trees(part: str) -> Iterator[tuple[str, list[Word]]]:
    """Sentences of UD English with their words, where every word is found in its text."""
    for block in Path(data(f"ud/English-EWT/{part}.conllu")).read_text(encoding="utf-8").split("\n\n"):
        text = next((line[9:] for line in block.split("\n") if line.startswith("# text = ")), "")
        words, at = [], 0
        for line in block.split("\n"):
            cells = line.split("\t")
            if not cells[0].isdigit():
                continue
            start = text.find(cells[1], at)
            if start < 0:
                break
            at = start + len(cells[1])
            words.append(Word(int(cells[0]), cells[3], int(cells[6]), cells[7], start, at))
        else:
            if words:
                yield text, words


def subjects(part: str) -> Lines:
    """A sentence and its subject: all that hangs on the subject of its root, where that stands together."""
    for text, words in trees(part):
        root = next((word.number for word in words if not word.head), 0)
        top = next((word for word in words if word.head == root and word.relation.startswith("nsubj")), None)
        if top is None:
            continue
        below = {top.number}
        while grown := {word.number for word in words if word.head in below} - below:
            below |= grown
        if max(below) - min(below) + 1 != len(below):
            continue
        mine = [word for word in words if word.number in below]
        start, end = mine[0].start, mine[-1].end
        yield {"context": text, "answers": {"text": [text[start:end]], "answer_start": [start]}}


def parts_of_speech(part: str) -> Lines:
    """A short sentence, and what each of its words is, written one after the other."""
    for text, words in trees(part):
        if len(words) <= 12:
            yield {"text": text, "target": " ".join(word.upos for word in words)}


def written_lines(
    lines: Callable[[str], Lines], name: str, most: dict[str, int | None], folder: Path
) -> dict[str, str]:
    """The lines of both parts as JSON lines, no more of each than `most` says."""
    files = {}
    for part, few in most.items():
        to = folder / "data" / (name if few is None else f"{name}-{few}") / f"{part}.jsonl"
        to.parent.mkdir(parents=True, exist_ok=True)
        rows = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines(part)]
        to.write_text("".join(rows), encoding="utf-8")
        if few is not None:
            cut(to, few, to)
        files[part] = str(to)
    return files


# The eight.


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        source: a task of `tuned.task`, or what makes the lines.
        options: of the command.
        most: rows of training.
        minutes: about, on two cores.
    """

    title: str
    source: str | Callable[[str], Lines]
    options: tuple[str, ...]
    minutes: float
    most: int | None = None


ROWS = {
    "class-one": Row("one text → class: CoLA", "CoLA", ("--metric", "matthews"), 2),
    "class-several": Row("several → class: MRPC", "MRPC", ("--metric", "f1"), 2),
    "tokens-one": Row("one text → tokens: WNUT-17", "WNUT-17", ("--task", "tokens"), 2),
    "tokens-several": Row(
        "several → tokens: SQuAD's answers, tagged",
        marked,
        ("--task", "tokens", "--text", "tokens", "--text2", "question", "--label", "ner_tags"),
        7,
        4_000,
    ),
    "span-one": Row("one text → span: the subject, UD English", subjects, ("--task", "span", "--text", "context"), 3),
    "span-several": Row("several → span: SQuAD part", "SQuAD", ("--task", "span"), 12),
    "sequence-one": Row(
        "one text → sequence: parts of speech, UD English",
        parts_of_speech,
        ("--task", "sequence", "--text", "text", "--label", "target"),
        4,
    ),
    "sequence-several": Row(
        "several → sequence: MNLI part, in words",
        "MNLI",
        ("--task", "sequence", "--text", "premise", "--text2", "hypothesis", "--label", "label"),
        7,
    ),
}


@app.default
def main(
    options: Options = Options(),  # noqa: B008
    *,
    only: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = tuple(ROWS),
    model: str = "",
) -> None:
    """Run the commands that are not done yet, and write down what all of them came to.

    Parameters
    ----------
    only
        Rows by name, such as class-one; instead of --tasks. --seeds is not asked for here: each is one command.
    model
        What is fine-tuned; by default the real encoder.
    """
    for name in only:
        if name not in ROWS:
            raise UserError(f"no row {name!r}", where="--only", mend=nearest(name, ROWS))
    folder, stock = options.folder("eight_tasks"), model or encoder()
    print(f"all of it, from the beginning: about {sum(ROWS[name].minutes for name in only):.0f} minutes", flush=True)
    if options.price:
        return
    failed: list[UserError] = []
    for name in only:
        about = {"model": called(stock), "weights": weights(stock)}
        try:
            rows = {name: _row(name, stock, options, folder)}
        except UserError as error:
            print(f"{name}: {error}", flush=True)
            failed.append(error)
            continue
        finish("eight_tasks", options, {"rows": rows}, lambda whole: table(whole["rows"]), about=about)
    if failed:
        raise failed[0]


def _row(name: str, stock: str, options: Options, folder: Path) -> dict[str, Any]:
    """What a command came to, now or earlier.

    Raises:
        UserError: it failed.
    """
    row = ROWS[name]
    title = row.title
    if isinstance(row.source, str):
        tuning = task(row.source, options, folder)
        files = {"train": tuning.data[0], "dev": str(tuning.dev)}
    else:
        few = options.limit if options.limit is not None else row.most
        most = {"train": options.most(row.most), "dev": few and min(few, 1000)}
        files = written_lines(row.source, name, most, folder)
        title += "".join(f", {rows:,} rows of {part}" for part, rows in most.items() if rows is not None)
    where = folder / name / "run"
    command = ["finetune", stock, files["train"], "--dev", files["dev"], *row.options, "--out", str(where)]
    command += ["--final", "last"]
    command += ["--train.epochs", str(options.epochs)] if options.epochs else []

    settings = {"command": command, "weights": weights(stock)}

    def make() -> dict[str, Any]:
        mine = goes_on(folder / name, settings, where) and is_tuning(where)
        _bertkin(["resume", str(where)] if mine else [*command, "--overwrite"])
        metric = json.loads((where / TASK).read_text())["task"]["metric"]
        last = [line for line in read_log(where) if line.get("kind") == "evaluation"][-1]
        review = json.loads((where / REVIEW).read_text())["dev"]["scores"]  # of the weights that are kept
        (folder / name / "begun.json").unlink()
        return {"metric": metric, "score": round(review[metric]["value"], 5), "minutes": round(last["minutes"], 2)}

    shown = {"title": title, "command": _spoken(["bertkin", *command], stock, folder)}
    return shown | once(folder / name, settings, make)


def _bertkin(command: list[str]) -> None:
    """The command line's own program; its last line is the error.

    Raises:
        UserError: it failed.
    """
    print("bertkin", shlex.join(command), flush=True)
    running = subprocess.Popen([sys.executable, "-m", "bertkin", *command], stderr=subprocess.PIPE, text=True)
    try:
        errors = running.communicate()[1]
    except KeyboardInterrupt:
        running.wait()  # Ctrl-C reached it too: it saves, and ends
        raise
    if running.returncode:
        said = [line for line in errors.strip().splitlines() if line.strip()]
        what = said[-1].removeprefix("error: ") if said else f"exit code {running.returncode}"
        raise UserError(what, where=f"bertkin {command[0]}")


def _spoken(command: list[str], stock: str, folder: Path) -> str:
    """The command as a person would give it, by names that hold on any machine."""
    said = [one.replace(stock, "MODEL").replace(str(folder), "runs/eight_tasks") for one in command]
    return shlex.join(one.replace(data("").rstrip("/"), "data") for one in said)


def table(rows: dict[str, Any]) -> str:
    """A line a row: score, minutes, command."""
    lines = []
    for one in (rows[name] for name in ROWS if name in rows):
        score = f"{one['metric']} {100 * one['score']:.1f}"
        lines.append([one["title"], score, f"{one['minutes']:.1f}", f"`{one['command']}`"])
    return markdown(["inputs and output", "score", "minutes", "command"], lines)


if __name__ == "__main__":
    run(app)
