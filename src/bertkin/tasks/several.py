"""Several fine-tuned models asked at once, over one stock in memory.

readers = open_readers(["runs/films", "runs/names"])      folders of light strategies, each over the stock it names
readers = open_readers(["runs/many"], tasks=["films"])    or the run of several tasks trained together

A stock that several of them name is read once. What each model left as it was is the stock's own memory; what it changed
or added (adapters, biases, a head) it has to itself. A model that was trained as a whole shares nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bertkin.errors import UserError, nearest
from bertkin.models.folders import find_folder, told
from bertkin.models.light import answer_told, lacks_stock, light_in, named_stock, no_changes
from bertkin.models.pretrained_tasks import begin_task_model
from bertkin.models.task_heads import Answer, Head, TaskModel
from bertkin.tasks.predict import Reader, by_windows, open_reader, writes
from bertkin.tasks.task import ONE_ANSWER
from bertkin.train.machine import pick_precision


def tasks_in(path: str | Path) -> dict[str, Path]:
    """The folders of the tasks that were trained together in a run, by name; none where it is another kind of folder."""
    for folder in (Path(path), Path(path) / "model"):
        names = told(folder).get("tasks")
        if isinstance(names, list):
            return {str(name): folder / str(name) for name in names}
    return {}


def open_readers(
    models: Sequence[str | Path],
    *,
    tasks: Sequence[str] = (),
    precision: str = "auto",
    stock: str | Path | None = None,
) -> dict[str, Reader]:
    """Open models by name: a run of several tasks as each of them, any other under its own path.

    Args:
        models: as for `bertkin.tasks.predict.open_reader`, or runs of several tasks.
        tasks: which of the tasks that were trained together; by default all.
        stock: of what light strategies saved; by default what each names. Of several, it is for those whose own is no longer
            there, if any is not.

    Raises:
        UserError: as `open_reader`; a task that is none of them, two models of one name, or a stock and no such changes.
    """
    places = _places(models, tasks)
    changes = {name: light for name, place in places.items() if (light := light_in(place)) is not None}
    if stock is not None and not changes:
        raise no_changes(models[0])
    lost = [name for name, light in changes.items() if lacks_stock(light)]
    given = dict.fromkeys(lost or changes, stock)
    # A model that writes needs words to answer with, which the stock of a task has not: it is opened by itself.
    lights = {name: light for name, light in changes.items() if not writes(light)}
    stocks: dict[str, TaskModel] = {}
    keys = {name: _stock(light, given.get(name)) for name, light in lights.items()}
    for key in keys.values():
        if key is not None and key not in stocks:
            answers = [answer_told(light) for name, light in lights.items() if keys[name] == key]
            # Tags of an encoder–decoder need its encoder alone, everything else all of it.
            head: Head = (
                "tokens" if all(answer is not None and answer.head == "tokens" for answer in answers) else "class"
            )
            stocks[key] = begin_task_model(key, Answer(head, 1)).to(pick_precision(precision, "cpu"))
    found = {}
    for name, place in places.items():
        key = keys.get(name)
        over = stocks[key] if key is not None else given.get(name)
        found[name] = open_reader(place, precision=precision, stock=over, stock_folder=key)
    return found


def all_by_windows(readers: Mapping[str, Reader], windows: int | None) -> dict[str, Reader]:
    """The same models; those that give one answer to a whole text read it in at most so many windows.

    Raises:
        UserError: none of them does, or less than one window.
    """
    able = [name for name, reader in readers.items() if reader.task.output in ONE_ANSWER] or list(readers)
    return {name: by_windows(reader, windows if name in able else None) for name, reader in readers.items()}


def _places(models: Sequence[str | Path], tasks: Sequence[str]) -> dict[str, str | Path]:
    """Where each model is, by the name it goes under."""
    places: dict[str, str | Path] = {}
    known: list[str] = []
    for path in models:
        inside = tasks_in(path)
        known += inside
        named = {name: folder for name, folder in inside.items() if name in tasks or not tasks}
        for name, place in named.items() if inside else [(str(path), path)]:
            whole = name if len(models) == 1 or not inside else f"{path}/{name}"
            if whole in places:
                raise UserError("given twice", where=whole)
            places[whole] = place
    for name in tasks:
        if name not in known:
            mend = nearest(name, known) if known else "several tasks are in the run of `bertkin finetune --together`"
            raise UserError(f"no task {name!r} here", where="--task", mend=mend)
    return places


def _stock(light: Path, given: str | Path | None) -> str | None:
    """What the stock of a folder of changes is known by here: the same for every way to one folder."""
    named = given or named_stock(light)
    if named is None:
        return None
    return str(find_folder(named).resolve() if Path(named).exists() else named)


def ask(readers: Mapping[str, Reader], groups: Sequence[Sequence[str]]) -> Iterator[dict[str, Any]]:
    """What each model answers to each group of texts, in the order of the groups, as plain data with the model's name.

    A model that reads another number of texts is passed over where there are others that do.

    Raises:
        UserError: none of them reads so many texts.
    """
    able = [able_of(readers, [group]) for group in groups]
    found: list[dict[str, dict[str, Any]]] = [{} for _ in groups]
    for name, reader in readers.items():
        mine = [i for i, names in enumerate(able) if name in names]
        for i, prediction in zip(mine, reader.predict([groups[i] for i in mine]), strict=True):
            found[i][name] = reader.said(groups[i], prediction)
    for one in found:
        yield from ({"model": name} | told for name, told in one.items())


def able_of(readers: Mapping[str, Reader], groups: Sequence[Sequence[str]]) -> list[str]:
    """The models that read as many texts as each of these groups has; all of them, where none does."""
    return [name for name, one in readers.items() if all(_reads(one, group) for group in groups)] or list(readers)


def _reads(reader: Reader, group: Sequence[str]) -> bool:
    if reader.task.output == "choice":
        return len(group) > reader.task.inputs
    return reader.takes(len(group))
