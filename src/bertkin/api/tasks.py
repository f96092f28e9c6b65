"""Labelled data: looked over, learnt, answered; texts as vectors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertkin.api.growing import Paths, listed
from bertkin.config import from_mapping
from bertkin.errors import UserError
from bertkin.models.strategy import Strategy, see_used
from bertkin.tasks.tuning import PRETRAINING

if TYPE_CHECKING:
    from bertkin.tasks.checking import Checked
    from bertkin.tasks.predict import Reader
    from bertkin.tasks.results import Results
    from bertkin.tasks.sampling import Sampling
    from bertkin.train.loop import Result
    from bertkin.train.progress import Listener


def check_data(data: Paths, **how: Any) -> Checked:
    """Look labelled data over: duplicates, leaks from training, skewed labels, empty and overlong texts, unusable rows.

    Args:
        data: a folder with parts named train, dev and test; files, told apart by their names; or a set of the hub.
        how: dev, test, tokenizer, max_length, and columns, output, scheme and more; see
            `bertkin.tasks.checking.check_data`.

    Returns:
        What was found, with places. Printed, a report; `faults` are the rows that cannot be used.

    Raises:
        UserError: files that cannot be read, or labels that make no task.
    """
    from bertkin.tasks import checking
    from bertkin.tasks.hub import here

    return checking.check_data(here(listed(data)), **how)


def finetune(
    model: str | Path,
    data: Paths,
    *,
    out: str | Path,
    strategy: str | Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
    **options: Any,
) -> Result:
    """Fine-tune a pretrained model on labelled data into a run folder.

    Args:
        model: a run folder, a model folder (ours or transformers'), or a hub id.
        data: labelled files, one folder with train, dev and test, or a set of the hub as "OWNER/NAME:CONFIGURATION".
        out: the run folder.
        strategy: how much is trained: a kind, such as "lora", or fields of `bertkin.models.strategy.Strategy`.
        train: fields of `bertkin.config.Train`, such as {"epochs": 3}.
        overwrite: empty the run folder first.
        listener: who is told how it goes; by default a bar on standard error.
        options: other fields of `bertkin.tasks.tuning.Tuning`, such as task="class" or batch=16.

    Raises:
        UserError: anything about the data, the model or the disk.
    """
    from bertkin.tasks.finetune import finetune as run
    from bertkin.tasks.hub import here
    from bertkin.tasks.tuning import Tuning
    from bertkin.train.progress import RichListener

    fields = {"model": os.fspath(model), "data": list(here(listed(data)))} | _how(strategy, train)
    tuning = from_mapping(Tuning, fields | options, "options")
    return run(tuning, Path(out), listener=listener or RichListener(), overwrite=overwrite)


def _how(
    strategy: str | Mapping[str, Any] | None, train: Mapping[str, Any] | None, *, alone: bool = True
) -> dict[str, Any]:
    """Strategy and training as rooms of a recipe.

    Args:
        alone: whether it is all that is said of the strategy, so that what it does not use can be told.
    """
    how: Mapping[str, Any] = {"kind": strategy} if isinstance(strategy, str) else strategy or {}
    asked = from_mapping(Strategy, dict(how), "strategy")
    if alone:
        see_used(asked)
    for name in PRETRAINING:
        if name in (train or {}):
            mend = "leave it out; `length` and `batch` are options beside `train`"
            raise UserError("of pretraining alone", where=f"train.{name}", mend=mend)
    return {"strategy": dict(how), "train": dict(train or {})}


def evaluate(
    model: str | Path,
    suite: str | Path,
    *,
    out: str | Path,
    data: str | Path | None = None,
    only: str | Sequence[str] = (),
    seeds: int = 1,
    strategy: str | Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    against: str | Path | None = None,
    listener: Listener | None = None,
    **options: Any,
) -> Results:
    """Fine-tune a model on every task of a suite, and gather the scores; what is done already is not done again.

    Args:
        model: a run folder, a model folder (ours or transformers'), or a hub id.
        suite: glue or another that is known, or a YAML file; see `bertkin.tasks.suites.read_suite`.
        out: folder for the runs and results.
        data: folder of the tasks' data; by default beside the YAML file, or of a suite that is known on the hub.
        only: name or names of tasks.
        seeds: runs of each task.
        strategy, train: as for `finetune`.
        against: the `out` of another model, to compare with on the same examples.
        listener: who is told how it goes; by default a bar on standard error.
        options: other fields of `bertkin.tasks.tuning.Tuning`, for all tasks.

    Raises:
        UserError: no such suite, or anything about the data, the model or the disk.
    """
    from bertkin.tasks.evaluating import run_suite
    from bertkin.tasks.suites import read_suite
    from bertkin.tasks.tuning import Tuning
    from bertkin.train.progress import RichListener

    how = _how(strategy, train, alone=False)
    tuning = from_mapping(Tuning, how | options, "options")
    rooms = {room: {name: getattr(getattr(tuning, room), name) for name in said} for room, said in how.items()}
    return run_suite(
        os.fspath(model),
        read_suite(suite, data, [only] if isinstance(only, str) else only),
        Path(out),
        seeds=seeds,
        change={name: getattr(tuning, name) for name in options} | rooms,
        listener=listener or RichListener(),
        suite=os.fspath(suite),
        against=None if against is None else Path(against),
    )


def finetune_together(
    model: str | Path,
    tasks: str | Path | Mapping[str, Mapping[str, Any]],
    *,
    out: str | Path,
    data: str | Path | None = None,
    sampling: Sampling = "annealed",
    strategy: str | Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    listener: Listener | None = None,
    **options: Any,
) -> Result:
    """Fine-tune a pretrained model on several tasks together: one stock, and for each task a head, and whatever the
    strategy puts around it.

    Args:
        model: a run folder, a model folder (ours or transformers'), or a hub id.
        tasks: a suite (glue, or a YAML file; see `bertkin.tasks.suites`), or for each task by name its fields of
            `bertkin.tasks.tuning.Tuning`, such as {"films": {"data": "films.tsv"}}.
        out: the run folder.
        data: where a suite's data lie; by default beside the YAML file, or of a suite that is known on the hub.
        sampling: how the task of a step is drawn; see `bertkin.tasks.sampling`.
        strategy, train: as for `finetune`.
        options: fields that are the same for all tasks: batch, dropout, attention_dropout, length, skip_bad.

    Raises:
        UserError: anything about the tasks, their data, the model or the disk.
    """
    from bertkin.tasks.joining import recipe_of
    from bertkin.tasks.suites import read_suite
    from bertkin.tasks.together import together as run
    from bertkin.tasks.tuning import Tuning
    from bertkin.train.progress import RichListener

    common = {"model": os.fspath(model)} | _how(strategy, train)
    if isinstance(tasks, Mapping):
        each = {name: from_mapping(Tuning, dict(values), name) for name, values in tasks.items()}
    else:
        each = read_suite(tasks, data)
    recipe = recipe_of(each, from_mapping(Tuning, common | options, "options"), sampling, options)
    return run(recipe, Path(out), listener=listener or RichListener(), overwrite=overwrite)


def predict(
    model: Reader | str | Path,
    texts: str | Sequence[str | Sequence[str]],
    *,
    precision: str = "auto",
    windows: int | None = None,
    stock: str | Path | None = None,
) -> list[dict[str, Any]]:
    """What a fine-tuned model answers.

    Args:
        model: what `finetune` made, a folder of transformers, or an opened `bertkin.tasks.predict.Reader`.
        texts: one text, several, or, for tasks that read more than one, a tuple of texts for each question.
        precision: auto is bfloat16 where the processor gains by it; int8 is faster still where it has no matrix tiles, and a
            little less exact.
        windows: most windows that a long text is read in, where one answer is of all of it; by default as it was trained.
        stock: of what a light strategy saved, the model it was trained on; by default the one it names.

    Returns:
        For each a mapping: label and probability, labels, score, words and entities, or answer, by the task.

    Raises:
        UserError: there is no such model, or more or fewer texts than the task takes.
    """
    from bertkin.tasks import predict as room

    reader = model if isinstance(model, room.Reader) else room.open_reader(model, precision=precision, stock=stock)
    return _said(room.by_windows(reader, windows), _groups(texts))


def predict_all(
    models: str | Path | Sequence[str | Path],
    texts: str | Sequence[str | Sequence[str]],
    *,
    tasks: str | Sequence[str] = (),
    precision: str = "auto",
    windows: int | None = None,
    stock: str | Path | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """What several models answer, light ones of one stock over that stock, which is in memory once.

    Args:
        models: one or several, each what `predict` takes or the run of tasks that were trained together.
        texts, precision, windows: as for `predict`; windows are of those models that give one answer to a whole text.
        stock: of what light strategies saved; by default what each names.
        tasks: which of the tasks that were trained together; by default all.

    Returns:
        What `predict` gives, by the name of the task or the path of the model. Where no tasks are named, those are passed over
        that read another number of texts than all of these, if there are others.

    Raises:
        UserError: as `predict`; or there is no such task.
    """
    from bertkin.tasks.several import able_of, all_by_windows, open_readers

    names = [tasks] if isinstance(tasks, str) else list(tasks)
    readers = all_by_windows(open_readers(listed(models), tasks=names, precision=precision, stock=stock), windows)
    groups = _groups(texts)
    return {name: _said(readers[name], groups) for name in (readers if names else able_of(readers, groups))}


def _groups(texts: str | Sequence[str | Sequence[str]]) -> list[tuple[str, ...]]:
    """The texts of each question."""
    given = [texts] if isinstance(texts, str) else texts
    return [(one,) if isinstance(one, str) else tuple(one) for one in given]


def _said(reader: Reader, groups: Sequence[tuple[str, ...]]) -> list[dict[str, Any]]:
    return [reader.said(group, found) for group, found in zip(groups, reader.predict(groups), strict=True)]


def predict_table(
    model: Reader | str | Path,
    path: str | Path,
    *,
    out: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    header: bool | None = None,
    skip_bad: bool = False,
    scheme: str = "",
    precision: str = "auto",
    windows: int | None = None,
    stock: str | Path | None = None,
) -> list[dict[str, Any]]:
    """What a fine-tuned model answers to each row of a file, whose columns are those of the table it was trained on.

    Args:
        model: as for `predict`.
        path: a table, JSON lines, CoNLL, CoNLL-U or SQuAD's format.
        out: a file for the answers, too: .jsonl, .csv, .tsv, .conll (tags) or .json (answers by the questions' ids).
        columns: text, text2 and label by name or number, where they are others.
        header: whether a table's first row names its columns; by default it is told by names that are known.
        skip_bad: leave unusable rows out instead of stopping at the first.
        scheme: how a .conll file writes entities; by default as the training data did.
        precision, windows, stock: as for `predict`.

    Returns:
        For each row what `predict` gives, and its id where it has one.

    Raises:
        UserError: there is no such model, the file is not one of its task, or the answers cannot be written so.
    """
    from bertkin.tasks import predict as room
    from bertkin.tasks import sheets
    from bertkin.tasks.data.columns import Columns

    reader = model if isinstance(model, room.Reader) else room.open_reader(model, precision=precision, stock=stock)
    reader = room.by_windows(reader, windows)
    to = None if out is None else Path(out)
    sheets.see_form(to, [reader], scheme, path)
    told = from_mapping(Columns, dict(columns or {}), "columns")
    rows = sheets.read_rows(reader, path, columns=told, header=header, skip_bad=skip_bad)
    sheets.see_rows(to, rows.examples)
    found = [reader.told(example, one) for example, one in zip(rows.examples, reader.asked(rows.examples), strict=True)]
    if to is not None:
        sheets.write_answers(to, found, [reader], scheme=scheme)
    return found


def merge(model: str | Path, out: str | Path, *, stock: str | Path | None = None) -> None:
    """Fold what a light strategy changed into its stock: an ordinary folder, which transformers opens.

    Args:
        model: a run of lora, bias, last or frozen; or a folder of such changes, ours or PEFT's.
        out: a folder that is not there yet, or is empty.
        stock: the model it was trained on; by default the one it names.

    Raises:
        UserError: no such changes, changes that do not fold into weights, or a folder that holds something.
    """
    from bertkin.tasks.merging import fold

    fold(model, Path(out), stock=stock)


def embed(model: str | Path, texts: str | Sequence[str], **options: Any) -> Any:
    """A vector for each text: float32 [texts, width].

    Args:
        model: a run folder, a model folder, or a hub id.
        texts: one, or several.
        options: see `bertkin.tasks.embed.Embedder`: pooling, normalise, precision, length, prompt, stock.

    Raises:
        UserError: there is no such model.
    """
    from bertkin.tasks.embed import Embedder

    return Embedder(model, **options).encode([texts] if isinstance(texts, str) else list(texts))
