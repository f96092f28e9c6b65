"""The run folder as a whole: when one may be begun, what it holds at first, and which corpus it belongs to."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertkin.config import Recipe, dump_recipe, load_recipe, rooted
from bertkin.errors import UserError, disk_errors
from bertkin.text.readers import list_sources
from bertkin.text.store import Store
from bertkin.text.tokenizer import Tokenizer
from bertkin.text.words import find_marks, mark
from bertkin.train.setup import Materials, gather, read_kept
from bertkin.train.start import START, Start
from bertkin.train.state import write_text

if TYPE_CHECKING:
    from collections.abc import Callable

RECIPE, CORPUS, TASK, TESTED = "recipe.yaml", "corpus.json", "task.json", "test.json"
REVIEW, MISTAKES, TASKS = "review.json", "mistakes.jsonl", "tasks.json"
SEARCH, SEARCHED, TRIALS = "search.json", "search.md", "trials"
OURS = (
    "checkpoints",
    "model",
    START,
    "tokenizer",
    "tensorboard",
    "log.jsonl",
    "report.html",
    TASK,
    TASKS,
    TESTED,
    REVIEW,
    MISTAKES,
    SEARCH,
    SEARCHED,
    TRIALS,
    RECIPE,
    CORPUS,
)
"""What a run writes at the top of its folder; the marks of a run folder go last when it is cleared."""


def refuse_existing(out: Path, *, overwrite: bool = False, needed: Iterable[str | Path] = ()) -> None:
    """Stop before a folder that holds something, or, to overwrite it, something other than a run or what is still needed.

    Args:
        needed: files and folders that the new run reads.

    Raises:
        UserError: offering to resume it, if it is a run.
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if not (out.exists() or out.is_symlink()):
        return
    is_run = (out / CORPUS).is_file() or (out / SEARCH).is_file()
    if overwrite and not is_run:
        what = "holds something, but no run" if out.is_dir() else "is a file"
        raise UserError(f"{what}; only a run is ever overwritten", where=out, mend="choose another --out")
    if not overwrite:
        more = f"go on with `bertkin resume {out}`, or " if (out / RECIPE).exists() or (out / SEARCH).exists() else ""
        last = "choose another --out or give --overwrite" if is_run else "choose another --out"
        raise UserError("already exists", where=out, mend=more + last)
    refuse_needed(out, needed)


def refuse_needed(out: Path, needed: Iterable[str | Path]) -> None:
    """Stop before a run is cleared away that is itself, or holds, something that the new one reads.

    Raises:
        UserError: saying what.
    """
    for path in needed:
        if not (os.path.exists(path) and Path(path).resolve().is_relative_to(out.resolve())):
            continue
        inside = Path(path).resolve().relative_to(out.resolve()).parts
        if not inside or inside[0] in OURS:
            raise UserError(f"cannot be overwritten, for {path} is needed", where=out, mend="choose another --out")


def begin(out: Path, recipe: Recipe, tokenizer: Tokenizer, store: Store, start: Start | None = None) -> None:
    """Clear away the run that is there, if any, and write what says what this pretraining is.

    Raises:
        UserError: the disk refuses.
    """
    made_of = {"store": store.fingerprint, "folder": str(store.folder.resolve())}
    if store.marks is not None:
        made_of["marks"] = store.marks.name
    with begun(out, recipe, made_of):
        tokenizer.save(out / "tokenizer")
        if start is not None:
            start.save(out)


@contextmanager
def begun(out: Path, recipe: Any, made_of: dict[str, str]) -> Iterator[None]:
    """Clear away the run that is there, if any, and begin one: what it is made of first, what is written inside, and the
    recipe last.

    Files that no run wrote are left where they are. If the disk refuses, nothing of ours is left.

    Raises:
        UserError: the disk refuses.
    """
    with disk_errors(out):
        clear(out)
        made = [folder for folder in (out, *out.parents) if not folder.exists()]
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_text(out / CORPUS, json.dumps(made_of, indent=1) + "\n")
            yield
            write_text(out / RECIPE, dump_recipe(recipe))
        except BaseException:
            clear(out)
            for folder in made:
                if folder.is_dir():
                    folder.rmdir()
            raise


def clear(out: Path) -> None:
    """Remove all that runs and searches write, and leave everything else."""
    for name in OURS:
        _remove(out / name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def reopen(out: Path, progress: Callable[[int, int, str], None]) -> Materials:
    """What a run that is resumed is cooked from. Its corpus is checked; where that cannot be read again (it is gone, or
    was standard input), the store that was made of it will do.

    Raises:
        UserError: not a run folder; the corpus has changed; or both it and its store are gone.
    """
    if not (out / RECIPE).exists():
        raise UserError("not a run folder (no recipe.yaml)", where=out, mend="give the --out of a `bertkin pretrain`")
    recipe, tokenizer = load_recipe(out / RECIPE), Tokenizer.load(out / "tokenizer")
    fingerprint, folder, marks = _corpus_of(out)
    if _readable(recipe.data.corpus) or not folder.is_dir():
        if "-" in recipe.data.corpus:
            what = "its corpus came from standard input, and the store that was made of it is gone"
            raise UserError(what, where=out, mend="start a new run")
        materials = gather(recipe, progress, tokenizer=tokenizer)
    else:
        store = _marked(recipe, tokenizer, folder, marks, progress)
        materials = Materials(recipe, tokenizer, store, read_kept(recipe.data, progress, tokenizer))
    if materials.store.fingerprint != fingerprint:
        raise UserError("the corpus has changed since this run began", where=out, mend="start a new run")
    found = materials.store.marks
    if (found.name if found else None) != marks:
        raise UserError("what is hidden at once has changed since this run began", where=out, mend="start a new run")
    return materials


def _marked(
    recipe: Recipe, tokenizer: Tokenizer, folder: Path, marks: str | None, progress: Callable[[int, int, str], None]
) -> Store:
    """The store of a run, with its marks: those it began with if they are still there."""
    store = Store.open(folder)
    store.check_tokenizer(tokenizer)
    if marks is None:
        return store
    return find_marks(store, marks) or mark(store, tokenizer, recipe.objective.unit, recipe.objective.phrases, progress)


def shared(out: Path) -> Materials:
    """For the other processes of a training: what the first one has prepared and written down."""

    def quiet(*_: object) -> None:
        pass

    fingerprint, folder, marks = _corpus_of(out)
    recipe, tokenizer = load_recipe(out / RECIPE), Tokenizer.load(out / "tokenizer")
    if folder.is_dir():
        store, kept = _marked(recipe, tokenizer, folder, marks, quiet), read_kept(recipe.data, quiet, tokenizer)
        return Materials(recipe, tokenizer, store, kept)
    materials = gather(recipe, quiet, tokenizer=tokenizer)  # on another machine
    if materials.store.fingerprint != fingerprint:
        raise UserError("the corpus is another one than that of the first process", where=out)
    return materials


def _corpus_of(out: Path) -> tuple[str, Path, str | None]:
    """The fingerprint of the store that a run is trained on, where that store was, and the name of its marks, if any."""
    try:
        made_of: Any = json.loads((out / CORPUS).read_text(encoding="utf-8"))
        return str(made_of["store"]), Path(made_of.get("folder", "")), made_of.get("marks")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError("damaged or missing", where=out / CORPUS, mend="start a new run") from None


def _readable(corpus: tuple[str, ...]) -> bool:
    """Whether a corpus can be read again."""
    if "-" in corpus:
        return False
    try:
        return bool(list_sources(corpus))
    except UserError:
        return False


def settled(recipe: Recipe, *, precision: Any) -> Recipe:
    """The recipe with what was measured or depends on where it was typed written down, so that resuming it anywhere on
    this machine gives the same run."""
    data, init = recipe.data, recipe.train.init
    corpus = tuple(path if path == "-" else rooted(path) for path in data.corpus)
    paths: dict[str, Any] = {name: rooted(getattr(data, name)) for name in ("cache", "tokenizer", "keep_text")}
    data = replace(data, corpus=corpus, **paths)
    init = rooted(init) if init and Path(init).is_dir() else init  # or of the hub
    recipe = replace(recipe, objective=replace(recipe.objective, phrases=rooted(recipe.objective.phrases)))
    return replace(recipe, data=data, train=replace(recipe.train, precision=precision, init=init))
