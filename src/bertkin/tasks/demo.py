"""`bertkin demo`: a small BERT from the documentation in your own Python, and what it has learnt."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertkin.config import Data, Recipe, Train, load_recipe
from bertkin.errors import UserError, disk_errors
from bertkin.models.presets import preset as known_preset
from bertkin.objectives.make import FILLERS, SERVES, evaluation_batches
from bertkin.tasks.baselines import Baselines, ask, count
from bertkin.tasks.documentation import Documentation, collect
from bertkin.tasks.fill import Loaded, load
from bertkin.text.batches import Specials
from bertkin.text.store import Split, Store
from bertkin.train import pretraining
from bertkin.train.charts import braille
from bertkin.train.loop import Result
from bertkin.train.progress import RichListener
from bertkin.train.report import curve_svg, series, write_report
from bertkin.train.samples import Sample, answer, pick
from bertkin.train.setup import read_corpus
from bertkin.train.state import read_log, write_text

HELDOUT = 0.02
BLANKS = 12
BAR = 32
MOST_MINUTES = 600.0


@dataclass(frozen=True)
class Shown:
    """What the demo found out, for those who call it from Python."""

    result: Result
    corpus: Path
    accuracy: float
    baselines: Baselines
    fills: list[dict[str, Any]]
    commands: list[str]
    """Worth trying next."""


def run(*, minutes: float = 4.0, out: Path | None = None, preset: str = "modern-mini", words: int = 3_000_000) -> Shown:
    """Collect, train, compare, show.

    Args:
        minutes: of training.
        out: the run folder; by default runs/demo, or the next name that is free.
        preset: FAMILY-SIZE of the model.
        words: of documentation to read at most.

    Raises:
        UserError: the run folder exists, or the disk or an argument will not do.
    """
    if not 0 < minutes <= MOST_MINUTES:
        raise UserError(f"a training of {minutes:g} minutes", where="--minutes", mend="choose a few")
    if words < 1000:
        raise UserError(f"{words} words are too few to learn from", where="--words", mend="choose 50000 or more")
    named, fillers = known_preset(preset), [name for name, kinds in SERVES.items() if kinds[0] in FILLERS]
    if named.model.family not in fillers:
        what = f"{preset} fills no blanks as this demonstration asks it to"
        raise UserError(what, where="--preset", mend=f"choose {' or '.join(fillers)}, such as bert-mini")
    out = out or _free(Path("runs/demo"))
    listener = RichListener()
    listener.message("bertkin demo: a BERT from the documentation in this Python")
    found = collect(words=words, progress=listener.preparing)
    listener.message(_found(found))
    recipe = Recipe(
        preset=preset,
        data=Data(corpus=(str(found.path),), heldout=HELDOUT),
        train=Train(minutes=minutes),
    )
    result = pretraining.pretrain(recipe, out, listener=listener)
    return _show(result, found)


def _found(found: Documentation) -> str:
    names = ", ".join(found.sources[:5]) + (" and others" if len(found.sources) > 5 else "")
    return f"  {found.documents:,} docstrings and help topics, {found.words:,} words, from {names}"


def _free(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, … that is not there."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _show(result: Result, found: Documentation) -> Shown:
    recipe = load_recipe(result.run / "recipe.yaml")
    loaded = load(result.run)
    _, store = read_corpus(recipe.data, lambda *_: None, loaded.tokenizer)
    baselines = measure(store, loaded, recipe)
    with disk_errors(result.run):
        record = {"kind": "baselines", "step": result.step, "frequent": baselines.frequent, "bigram": baselines.bigram}
        with (result.run / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")
        write_report(result.run)
        write_text(result.run / "loss.svg", curve_svg(result.run))
    print("\nMasked accuracy on documents held out from training: 15% of the tokens asked, most of them hidden")
    rows = [
        ("the most frequent token", baselines.frequent),
        ("bigram: what mostly follows the token before", baselines.bigram),
        (f"{recipe.preset}, {result.minutes:.1f} minutes old", result.accuracy),
    ]
    for name, share in rows:
        print(f"  {name:<45} {share:6.1%}  {'▇' * round(BAR * share)}".rstrip())
    fills = answer(loaded.model, unseen(store, loaded, BLANKS), loaded.tokenizer)
    print("\nBlanks it filled, in sentences it never saw")
    for fill in fills:
        print(_fill_line(fill))
    points = series(read_log(result.run), "step", "loss")
    if points:
        print(f"\nTraining loss over {result.step:,} steps")
        print("\n".join(f"  {line}" for line in braille(points)))
    commands = _commands(result.run, found)
    print(f"\nThe run   {result.run}")
    print(f"          {result.run / 'report.html'}   every curve, the recipe, and how the blanks came")
    print(f"          {result.run / 'loss.svg'}   the loss curve")
    print(f"          {result.run / 'model'}   opens in transformers as it is")
    print("\nTry next")
    for command in commands:
        print(f"  {command}")
    return Shown(result, found.path, result.accuracy, baselines, fills, commands)


def measure(store: Store, loaded: Loaded, recipe: Recipe) -> Baselines:
    """The baselines on the very tokens that the training's evaluations ask."""
    ids = Specials.of(loaded.tokenizer)
    batches = evaluation_batches(
        store.heldout, ids, length=recipe.train.length, n_rows=recipe.train.eval_rows, batch_rows=32
    )
    return ask(count(store.train, ids), batches, ids)


def unseen(store: Store, loaded: Loaded, number: int) -> list[Sample]:
    """Held-out sentences, spread evenly, with a word hidden; none is anywhere in the training text."""
    samples = pick(store.heldout, loaded.tokenizer, 5 * number)
    wanted = {_original(sample) for sample in samples}
    known = _sentences_among(store.train, wanted)
    fresh = [sample for sample in samples if _original(sample) not in known]
    keep = np.linspace(0, max(len(fresh) - 1, 0), min(len(fresh), number)).astype(int)
    return [fresh[i] for i in keep]


def _original(sample: Sample) -> bytes:
    ids = sample.ids.copy()
    ids[sample.hidden] = sample.truth
    return ids[1:-1].tobytes()


def _sentences_among(split: Split, wanted: set[bytes]) -> set[bytes]:
    """Which of these sentences (int64 ids as bytes) the split has."""
    starts = np.asarray(split.sentences)
    lengths = np.diff(np.append(starts, split.n_tokens))
    sizes = {len(sentence) // 8 for sentence in wanted}
    found = set()
    for i in np.flatnonzero(np.isin(lengths, list(sizes))):
        sentence = np.asarray(split.tokens[starts[i] : starts[i] + lengths[i]]).astype(np.int64).tobytes()
        if sentence in wanted:
            found.add(sentence)
    return found


def _fill_line(fill: dict[str, Any]) -> str:
    guesses = " · ".join(f"{token} {chance:.0%}" for token, chance in fill["answers"])
    right = fill["answers"][0][0] == fill["truth"]
    verdict = "✓" if right else f"✗ was: {fill['truth']}"
    return f"  {_spaced(fill['text'])}\n      {guesses}   {verdict}"


def _spaced(text: str) -> str:
    """Decoded text with its punctuation nearer to how it was written."""
    text = re.sub(r" (['’]) (s|t|re|ll|ve|d|m)\b", r"\1\2", text)
    text = re.sub(r"([(\[{]) (?!MASK)", r"\1", text)
    return re.sub(r" ([)\]},.;:?!])", r"\1", text)


def _commands(run: Path, found: Documentation) -> list[str]:
    """Three commands worth trying, as they can be typed here."""
    program = _program()
    corpus, again = shlex.quote(str(found.path)), shlex.quote(str(_free(run.parent / "bert-mini")))
    return [
        f'{program} fill {shlex.quote(str(run))} "This function returns a [MASK] of strings."',
        f'{program} tokenizer show {shlex.quote(str(run))} --text "Tokenizers cut unbelievably long words."',
        f"{program} pretrain {corpus} --preset bert-mini --train.minutes 10 --out {again}",
    ]


def _program() -> str:
    """How this program was called, as a person would type it."""
    path = Path(sys.argv[0])
    if path.name != "bertkin":
        return f"{shlex.quote(sys.executable)} -m bertkin"
    here = shutil.which("bertkin")
    if here and os.path.realpath(here) == os.path.realpath(path):
        return "bertkin"
    try:
        near = os.path.relpath(path)
    except ValueError:  # another drive
        near = str(path)
    return shlex.quote(str(path) if near.startswith("..") else near)
