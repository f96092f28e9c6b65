"""The verbs that use a fine-tuned model: `bertkin predict`, `embed` and `merge`. See `bertkin.cli`."""

from __future__ import annotations

import json as plain
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from bertkin.errors import UserError
from bertkin.terminal import Flag, lines_of, scores_line, see_file, texts_of

if TYPE_CHECKING:
    from bertkin.tasks.predict import Reader


def predict(
    model: str,
    /,
    *texts: str,
    file: Path | None = None,
    out: Path | None = None,
    also: Annotated[list[str] | None, Parameter(negative="")] = None,
    task: Annotated[list[str] | None, Parameter(negative="")] = None,
    stock: str | None = None,
    text: str = "",
    text2: str = "",
    label: str = "",
    header: bool | None = None,
    score: Annotated[bool, Flag] = False,
    skip_bad: Annotated[bool, Flag] = False,
    scheme: Literal["iob1", "iob2", "bioes", "bmes"] | None = None,
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto",
    beams: int = 1,
    windows: int | None = None,
    unanswerable: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
) -> None:
    """Ask a fine-tuned model: bertkin predict runs/reviews "A film to forget."

    Parameters
    ----------
    model
        A run folder, a model folder (ours or transformers'), or a hub id.
    texts
        Texts; where the task takes two, they are parted by a tab. Without any, lines are read from standard input.
    file
        Rows with columns (.csv .tsv .jsonl .parquet, CoNLL, CoNLL-U, SQuAD's JSON), read as those it was trained on; any
        other file has a row on each line, its texts parted by tabs.
    out
        A file for the answers: .jsonl, .csv, .tsv; tags also as .conll, answers to questions as SQuAD's .json.
    also
        Another model to ask; may be given several times. Light ones of one stock have it in memory once.
    task
        Of a run of several tasks, one that is asked; may be given several times. By default each is asked that reads as
        many texts.
    stock
        Of a light strategy, the model it was trained on, where that has moved. [default: the one it names]
    text
        Column of the text, by name or number. [default: as it was trained]
    text2
        Column of a second text.
    label
        Column of the answer, for --score.
    header
        Whether a table's first row names its columns. [default: told by names that are known]
    score
        Tell, too, how well the answers that the file has were met.
    skip_bad
        Leave unusable rows out instead of stopping at the first.
    scheme
        How a .conll file writes entities. [default: as the training data]
    precision
        auto is bfloat16 where the processor gains by it; int8 is faster still where it has no matrix tiles, and a little less
        exact.
    beams
        Of a model that writes: how many beginnings of an answer are kept side by side.
    windows
        Most windows that a long text is read in, where one answer is of all of it. [default: as it was trained]
    unanswerable
        Questions may have no answer, though the model's folder does not say so (one of transformers taught on SQuAD 2.0).
    json
        Write a JSON object a line.
    """
    from bertkin.tasks.data.columns import Columns
    from bertkin.tasks.predict import by_beams, open_reader
    from bertkin.tasks.predict import unanswerable as without
    from bertkin.tasks.several import all_by_windows, ask, open_readers, tasks_in
    from bertkin.tasks.sheets import is_sheet, see_form, write_answers

    sheet = file if file is not None and is_sheet(file) else None
    if sheet is not None and texts:
        raise UserError("texts beside a table of them", where=sheet, mend="give the one or the other")
    if sheet is None:
        tabular = {"--text": text, "--text2": text2, "--label": label, "--score": score, "--skip-bad": skip_bad}
        tabular["--header"] = header is not None
        if odd := [option for option, given in tabular.items() if given]:
            raise UserError("is of rows with columns", where=odd[0], mend="give a --file such as reviews.csv")
    if json and out is not None and out.suffix.lower() != ".jsonl":
        raise UserError("answers go to a file", where="--json", mend="leave it out, or let --out end in .jsonl")
    if label and not score:
        raise UserError("a column of answers, which are passed over", where="--label", mend="say --score as well")
    several = bool(also or task or tasks_in(model))
    if several:
        readers: Mapping[str, Reader] = open_readers(
            [model, *(also or [])], tasks=task or (), precision=precision, stock=stock
        )
    else:
        readers = {model: open_reader(model, precision=precision, stock=stock)}
    readers = all_by_windows({name: by_beams(reader, beams) for name, reader in readers.items()}, windows)
    if unanswerable:
        readers = {name: without(reader) for name, reader in readers.items()}
    see_form(out, list(readers.values()), scheme or "", file)
    if sheet is None and out is not None and out.suffix.lower() == ".json":
        raise UserError("texts without ids, by which a JSON of answers has them", where=out, mend="write .jsonl")
    told: Iterable[dict[str, Any]]
    if sheet is not None:
        how: dict[str, Any] = {"columns": Columns(text, text2, label), "header": header, "skip_bad": skip_bad}
        told = _of_sheet(readers, sheet, how, score=score, out=out)
    else:
        lines = texts_of(texts, file, "text", "A film to forget.")
        groups = [[one.strip() for one in line.split("\t")] for line in lines]
        told = ask(readers, groups)
    if not several:
        told = [{name: value for name, value in one.items() if name != "model"} for one in told]
    if out is not None:
        told = list(told)
        write_answers(out, told, list(readers.values()), scheme=scheme or "")
        print(f"{len(told):,} answers: {out}")
        return
    for one in told:
        before = f"{one['model']}\t" if several else ""
        print(plain.dumps(one, ensure_ascii=False) if json else f"{before}{_line(one)}")


def _of_sheet(
    readers: Mapping[str, Reader], path: Path, how: dict[str, Any], *, score: bool, out: Path | None
) -> Iterator[dict[str, Any]]:
    """What each model says of each row of a table; what its columns were taken for goes to standard error, and scores, too.

    Of several models, one that cannot read such rows is passed over, and why is said.
    """
    from bertkin.tasks.sheets import measured, read_rows, see_rows

    fitting, wrong = {}, list[UserError]()
    for name, reader in readers.items():
        try:
            known = read_rows(reader, path, labelled=True, **how) if score else None
            rows = read_rows(reader, path, **how)
            see_rows(out, rows.examples)
            if known is not None and not any(example.label is not None for example in known.examples):
                raise UserError("no row has an answer to score by", where=path, mend="name their column with --label")
        except UserError as error:
            wrong.append(error)
            if len(readers) > 1:
                print(f"{name} is passed over: {error}", file=sys.stderr)
            continue
        fitting[name] = rows, known
        for line in (known or rows).said:
            print(line, file=sys.stderr)
    if not fitting:
        raise wrong[0]
    for name, (rows, known) in fitting.items():
        reader = readers[name]
        found = reader.asked(rows.examples)
        for example, one in zip(rows.examples, found, strict=True):
            yield {"model": name} | reader.told(example, one)
        if known is not None:
            scores, count = measured(reader, rows, found, known)
            before = f"{name}  " if len(readers) > 1 else ""
            print(f"{before}{scores_line(scores)} ({count:,} rows with an answer)", file=sys.stderr)


def _line(told: dict[str, Any]) -> str:
    text = " | ".join(told["texts"])
    if "label" in told:
        return f"{told['label']}  {told['probability']:.1%}  {text}"
    if "words" in told:
        return "  ".join(f"{word}/{tag}" for word, tag in told["words"])
    for name in ("labels", "score", "answer"):
        if name in told:
            said = ", ".join(told[name]) if name == "labels" else str(told[name])
            return f"{said or '–'}  {text}"
    return text


def embed(
    model: str,
    file: Path,
    /,
    *,
    out: Path | None = None,
    pooling: Literal["mean", "max", "first", "last", "tokens"] | None = None,
    normalise: Annotated[bool | None, Parameter(show_default=False)] = None,
    length: int | None = None,
    prompt: str | None = None,
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto",
    stock: str | None = None,
) -> None:
    """Turn lines of text into vectors: bertkin embed MODEL sentences.txt --out vectors.npy

    Parameters
    ----------
    model
        A run folder, a model folder (ours or transformers'), or a hub id.
    file
        A text on each line; an empty one has its vector, too, so that vectors and lines go together.
    out
        A .npy file, [lines, width]; with tokens an .npz of one array a line. [default: vectors.npy, or vectors.npz]
    pooling
        How the states of a text become one vector; tokens keeps them all. [default: as a folder of sentence-transformers
        says, else mean]
    normalise
        To length 1. [default: as such a folder says, else not]
    length
        Most tokens of a text. [default: as such a folder says, else what the model reads]
    prompt
        What is put before every text: the name of one that such a folder has, as query, or the words themselves. [default:
        as such a folder says, else nothing]
    precision
        auto is bfloat16 where the processor gains by it; int8 is faster still where it has no matrix tiles, and a little less
        exact.
    stock
        Of a light strategy, the model it was trained on, where that has moved. [default: the one it names]
    """
    import numpy as np

    from bertkin.errors import disk_errors
    from bertkin.tasks.embed import Embedder

    usual = "vectors.npz" if pooling == "tokens" else "vectors.npy"
    out = Path(usual) if out is None else out
    see_file(out, usual)
    lines = lines_of(file, every=True)
    if not any(lines):
        raise UserError("no text", where=file, mend="write a text on each line")
    way: Any = "mean" if pooling == "tokens" else pooling
    how: dict[str, Any] = {"normalise": normalise, "length": length, "prompt": prompt, "precision": precision}
    embedder = Embedder(model, pooling=way, stock=stock, **how)
    aside = out.with_name(f".{out.name}.part")
    try:
        with disk_errors(out), aside.open("wb") as stream:
            if pooling == "tokens":
                np.savez(stream, *embedder.tokens(lines))
            else:
                np.save(stream, embedder.encode(lines))
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    print(f"{len(lines):,} texts, {embedder.width} numbers each: {out}")


def merge(model: str, /, *, out: Path, stock: str | None = None) -> None:
    """Fold what a light strategy changed into its stock: bertkin merge runs/reviews --out merged

    The result is an ordinary folder with all weights, which transformers opens.

    Parameters
    ----------
    model
        A run of lora, bias, last or frozen; or a folder of such changes, ours or PEFT's.
    out
        Folder to make.
    stock
        The model it was trained on, where that has moved. [default: the one it names]
    """
    from bertkin.tasks.merging import fold

    fold(model, out, stock=stock)
    print(f"model    {out}")
