"""Where a run begins: with weights drawn anew, or with a model that was trained before, on other text or on this.

Going on with a model (domain-adaptive pretraining, Gururangan et al. 2020) differs from growing one in its first
weights, its tokenizer and its rates, and in nothing else. The model it begins with is kept in the run folder, in
`start/`: whatever becomes of the folder it came from, the run can be resumed to the same bits.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bertkin.config import AUTO, Data, Objective, Recipe, Train, fill_auto, load_recipe, merge
from bertkin.errors import UserError
from bertkin.models import presets
from bertkin.models.architecture import Architecture
from bertkin.models.configs import read_config
from bertkin.models.continuing import grow_vocabulary, load_whole, set_dropout, shape_of
from bertkin.models.folders import told
from bertkin.models.heads import AnyModel
from bertkin.models.pretrained import find_folder, save_model
from bertkin.text.cache import first_words
from bertkin.text.fields import parse_fields, plain, with_frames
from bertkin.text.growing import grown, own_words
from bertkin.text.readers import read_documents
from bertkin.text.tokenizer import Tokenizer, report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START = "start"
"""The folder, inside a run's, of the model it began with."""

GENTLE: dict[str, dict[str, float]] = {
    "adamw": {"lr": 1e-4},
    "lamb": {"lr": 1e-3},
    "muon": {"lr": 2e-4, "matrix_lr": 2e-3},
}
"""Peak rates for going on: about a tenth of those a model is grown with. Half of them from a width of 768 on."""
WARMUP = 0.06
"""Share of the budget spent warming up."""


@dataclass(frozen=True)
class Start:
    """A model to begin with, with its tokenizer."""

    model: AnyModel
    tokenizer: Tokenizer
    facts: dict[str, Any]
    """Where it came from, a hash of its weights, the words it was given."""

    def save(self, out: Path) -> None:
        """Write it into a run folder.

        Raises:
            UserError: the disk refuses.
        """
        save_model(self.model, out / START, tokenizer=self.tokenizer, extra=self.facts)


FREE = ("start", "dropout", "attention_dropout", "vocab_size")
"""Fields of a recipe's model that say nothing of the shape of one that is gone on with."""


def continued(recipe: Recipe) -> Recipe:
    """A recipe that begins with a model, with what follows from that: its shape, what it was asked, gentle rates.

    Raises:
        UserError: there is no such model, or the recipe asks for another shape.
    """
    init = recipe.train.init
    folder = find_folder(init)
    a = read_config(folder / "config.json")[0]
    shape = shape_of(a)
    for name, value in vars(recipe.model).items():
        own = getattr(shape, name)
        if value is not AUTO and value != own and name not in FREE:
            raise UserError(
                f"{value!r}, but the model that is gone on with has {own!r}",
                where=f"--model.{name.replace('_', '-')}",
                mend="leave it out, or leave out --train.init",
            )
    size = min(
        presets.SIZES,
        key=lambda s: (
            abs(math.log(presets.SIZES[s].hidden / a.hidden)) + abs(math.log(presets.SIZES[s].layers / a.layers))
        ),
    )
    optimizer = recipe.train.optimizer or "adamw"
    gentle = {name: rate / (2 if a.hidden >= 768 else 1) for name, rate in GENTLE[optimizer].items()}
    train = with_table_rate(fill_auto(recipe.train, optimizer=optimizer, warmup=WARMUP, **gentle), a)
    objective = _asked_before(Path(init), recipe.objective)
    return replace(
        recipe,
        preset=f"{a.family}-{size}",
        model=merge(shape, recipe.model),
        objective=fill_auto(objective, sentence="none"),
        train=train,
    )


def with_table_rate(train: Train, a: Architecture) -> Train:
    """What scales a model's logits (T5's, where it answers with the table that it reads with) makes its table need to be as
    much larger, and so to learn as much faster."""
    return train if a.logit_scale == 1.0 else cast(Train, fill_auto(train, table_lr=train.lr / a.logit_scale))


def _asked_before(path: Path, asked: Objective) -> Objective:
    """What a run of ours was asked at its end, where nothing else is asked now. A model folder out of its run remembers
    the kind alone."""
    if asked.kind is not AUTO:
        return asked
    recipe = grown_by(path)
    if recipe is None:
        return fill_auto(asked, **_remembered(find_folder(path)))
    before = recipe.objective
    over: Objective = merge(replace(before, rate=before.rate_end), asked)
    return over if asked.rate is AUTO else replace(over, rate_end=asked.rate_end)


def grown_by(path: Path) -> Recipe | None:
    """What a run of ours was grown by; None of a model folder, and of a run that learnt a task."""
    learnt_a_task = (path / "task.json").is_file()
    return None if learnt_a_task or not (path / "recipe.yaml").is_file() else load_recipe(path / "recipe.yaml")


def _remembered(folder: Path) -> dict[str, Any]:
    """The kind of objective that a model of ours was trained with, and its noise; nothing of a stranger's."""
    known = told(folder)
    found = {"kind": known.get("objective"), "noise": known.get("noise")}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def open_start(recipe: Recipe, progress: Callable[[int, int, str], None]) -> Start:
    """Load the model that a recipe begins with, whole, and give it the corpus's own words if it is asked to.

    Args:
        recipe: from `bertkin.train.setup.complete`.

    Raises:
        UserError: the model cannot be read or trained on, or its tokenizer is another one's.
    """
    folder, asked, data = find_folder(recipe.train.init), recipe.objective, recipe.data
    model = load_whole(folder, sentence=asked.sentence != "none", boundary=asked.boundary)
    tokenizer = _tokenizer_of(folder, data.tokenizer, model.architecture.vocab_size)
    facts: dict[str, Any] = {"from": str(recipe.train.init), "weights": _hash(folder)}
    if data.grow_vocab:
        progress(0, 0, "looking for the corpus's own words")
        words = own_words(tokenizer, _texts(data), data.grow_vocab)
        if not words:
            what = "no word of the corpus is cut by the model's tokenizer more than once"
            raise UserError(what, where="--data.grow-vocab", mend="leave it out")
        new = grown(tokenizer, words)
        grow_vocabulary(model, tokenizer.vocab_size, [word.pieces for word in words])
        fertility = [round(report(one, _texts(data), samples=0).fertility, 4) for one in (tokenizer, new)]
        facts |= {"words": [word.text for word in words], "fertility": fertility}
        tokenizer = new
    framed = with_frames(tokenizer, parse_fields(data.fields))
    if framed.vocab_size > tokenizer.vocab_size:  # a field's marks begin as what its name is made of
        new_ids = range(tokenizer.vocab_size, framed.vocab_size)
        names = [framed.token(number).strip("<|/>") for number in new_ids]
        grow_vocabulary(model, tokenizer.vocab_size, [tokenizer.encode(name) or [tokenizer.sep_id] for name in names])
        tokenizer = framed
    return Start(model, tokenizer, facts)


def _tokenizer_of(folder: Path, given: str | None, rows: int) -> Tokenizer:
    """The folder's own tokenizer; the one given, where it has none."""
    has = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    if given is None or given is AUTO:
        return Tokenizer.load(folder, rows)
    tokenizer = Tokenizer.load(given, rows)
    if has and Tokenizer.load(folder).fingerprint != tokenizer.fingerprint:
        what = f"not the tokenizer that {folder} was trained with"
        raise UserError(what, where="--data.tokenizer", mend="leave it out, or grow the vocabulary (--data.grow-vocab)")
    return tokenizer


def _texts(data: Data) -> Iterator[str]:
    how: dict[str, Any] = {"documents": data.documents, "encoding_errors": data.encoding_errors}
    texts = map(plain, read_documents(data.corpus, field=parse_fields(data.fields) or data.field, **how))
    return first_words(texts, data.max_words)


def _hash(folder: Path) -> str:
    """Of the weights in a folder, names and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def first_model(recipe: Recipe, out: Path) -> AnyModel:
    """The model of a run before its first step, the same each time: from its start, or drawn anew."""
    heads = {"sentence": recipe.objective.sentence != "none", "boundary": recipe.objective.boundary}
    if not recipe.train.init:
        return presets.build(recipe.model, **heads, seed=recipe.train.seed)
    model = load_whole(out / START, **heads)
    set_dropout(model, recipe.model.dropout or 0.0, recipe.model.attention_dropout or 0.0)
    return model


def facts_of(out: Path) -> dict[str, Any]:
    """What is known of a run's start."""
    facts: dict[str, Any] = json.loads((out / START / "bertkin.json").read_text(encoding="utf-8"))
    return facts
