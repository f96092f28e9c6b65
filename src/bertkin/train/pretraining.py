"""Growing a language model from text: the loop's work whose batches are rows of a token store.

pretrain(recipe, out)      grow a model from a recipe into a run folder
resume(out)                go on where a run stopped; it ends with the same bits as one that never did
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bertkin.config import Recipe, fill_auto, load_recipe
from bertkin.errors import UserError
from bertkin.models.heads import AnyModel, LanguageModel
from bertkin.models.pretrained import marked, save_generation, save_model
from bertkin.models.writers import start_of
from bertkin.objectives.adaptive import Difficulty, Tally
from bertkin.objectives.make import (
    FILLERS,
    WRITERS,
    asks_twice,
    evaluation_batches,
    make_batch,
    side_count,
    side_weight,
)
from bertkin.objectives.masking import rate_at
from bertkin.text.batches import Batch, Specials, SplitLike, rows_per_epoch
from bertkin.text.words import described
from bertkin.train.folder import begin, refuse_existing, reopen, settled, shared
from bertkin.train.loop import Result, Training
from bertkin.train.machine import pick_device, pick_precision
from bertkin.train.parallel import World, join
from bertkin.train.price import Price, estimate
from bertkin.train.progress import Listener, QuietListener
from bertkin.train.samples import Sample, answer, go_on, pick, sentences
from bertkin.train.schedule import length_at, parse_lengths, rows_at
from bertkin.train.setup import Materials, complete, gather
from bertkin.train.start import facts_of, first_model, open_start
from bertkin.train.state import Position


def pretrain(recipe: Recipe, out: Path, *, listener: Listener | None = None, overwrite: bool = False) -> Result:
    """Grow a model from raw text into a run folder.

    Args:
        recipe: what to do; whatever it leaves open is filled in by its preset, corpus and budget.
        out: the run folder, which must not hold anything yet.
        listener: who is told how it goes.
        overwrite: empty the run folder first.

    Raises:
        UserError: the recipe, the corpus or the disk will not do; nothing is half-written.
        NonFiniteLoss: training went off the rails; the last checkpoint is kept.
        Stopped: interrupted from the keyboard, and saved.
    """
    out, listener = Path(out), listener or QuietListener()
    recipe = complete(recipe)
    device = pick_device(recipe.train.device)
    world = join(device)
    listener = listener if world.first else QuietListener()

    def prepare() -> Materials:
        refuse_existing(out, overwrite=overwrite)
        start = open_start(recipe, listener.preparing) if recipe.train.init else None
        materials = gather(recipe, listener.preparing, tokenizer=start.tokenizer if start else None)
        used = settled(materials.recipe, precision=str(pick_precision(recipe.train.precision, device)).split(".")[1])
        if start:
            used = replace(used, model=replace(used.model, vocab_size=start.model.architecture.vocab_size))
        begin(out, used, materials.tokenizer, materials.store, start)
        return replace(materials, recipe=used)

    try:
        materials = world.lead(prepare) or shared(out)
        return Training(Pretraining(materials, out, device), out, listener, world, device).run()
    finally:
        listener.close()


def resume(out: Path, *, listener: Listener | None = None) -> Result:
    """Go on with a run from its newest whole checkpoint, or from the start if it has none.

    Raises:
        UserError: not a run folder, or its corpus has changed since.
    """
    out, listener = Path(out), listener or QuietListener()
    if not (out / "recipe.yaml").exists():
        raise UserError("not a run folder (no recipe.yaml)", where=out, mend="give the --out of a `bertkin pretrain`")
    device = pick_device(load_recipe(out / "recipe.yaml").train.device)
    world = join(device)
    listener = listener if world.first else QuietListener()
    try:
        materials = world.lead(lambda: reopen(out, listener.preparing)) or shared(out)
        return Training(Pretraining(materials, out, device), out, listener, world, device, resumed=True).run()
    finally:
        listener.close()


HALVES = (("masked", 0.0), ("causal", 1.0))
"""What hybrid is measured in apart from its mixture, and the share of the sequences that are causal there."""


class Pretraining:
    """The work of growing a language model; see `bertkin.train.work.Work`."""

    headline = "accuracy"

    def __init__(self, materials: Materials, out: Path, device: str) -> None:
        self.recipe, self.store, self.tokenizer = materials.recipe, materials.store, materials.tokenizer
        self.kept, self.out, self.device = materials.kept, out, device
        self.train = self.recipe.train
        self.objective = fill_auto(self.recipe.objective, kind="masked")  # runs from before there were others
        self.kind: str = self.objective.kind
        self.ids = Specials.of(self.tokenizer)
        self.stages = parse_lengths(self.train)
        self.difficulty = Difficulty(self.ids.vocab_size) if self.objective.adaptive else None
        self.tally: Tally | None = None
        self.samples: list[Sample] | None = None

    def first_model(self) -> AnyModel:
        return first_model(self.recipe, self.out)

    def epochs(self, position: Position) -> float:
        return sum(position.row(length) / rows_per_epoch(self.store.train, length) for length, _ in self.stages)

    def batch(self, position: Position, progress: float) -> Batch:
        length = length_at(self.stages, progress)
        ids = self.ids
        if self.difficulty is not None:
            ids = replace(ids, weights=self.difficulty.weights(self.objective.adaptive))
        batch = make_batch(
            self.store.train,
            ids,
            seed=self.train.seed,
            first_row=position.row(length),
            n_rows=rows_at(self.train, length, progress),
            length=length,
            objective=self.objective,
            rate=rate_at(progress, self.objective.rate, self.objective.rate_end),
        )
        self.tally = Tally(batch.targets) if self.difficulty is not None else None
        return batch

    def advance(self, position: Position, progress: float) -> None:
        length = length_at(self.stages, progress)
        position.rows[str(length)] = position.row(length) + rows_at(self.train, length, progress)

    def counts(self, batch: Batch) -> tuple[int, int]:
        return len(batch.asked), side_count(batch, self.objective)

    def learn(self, model: AnyModel, part: Batch, counts: tuple[int, int], sums: list[float]) -> None:
        asked, side = counts  # every token asked, in any share, weighs the same
        losses = model(**tensors(part, self.device), z_loss=self.train.z_loss, scale=1 / max(asked, 1))
        total = losses.loss_sum
        if losses.pair_loss_sum is not None:
            total = total + side_weight(self.objective) / side * losses.pair_loss_sum
        total.backward()
        sums[0] += float(losses.loss_sum.detach()) * asked
        sums[1] += float(losses.n_correct)
        if losses.pair_loss_sum is not None and losses.pair_correct is not None:
            sums[2] += float(losses.pair_loss_sum.detach())
            sums[3] += float(losses.pair_correct)
        if self.tally is not None:
            self.tally.add(part.targets, losses.correct.cpu().numpy())

    def learnt(self, world: World) -> None:
        if self.difficulty is not None and self.tally is not None:
            self.difficulty.learn(self.tally.ids, self.tally.asked, world.sum(self.tally.right.tolist()))

    def evaluate(self, model: AnyModel, world: World) -> dict[str, float]:
        """On the same rows and masks every time; on those of a second question, where there is one, what is answered to that
        alone; and on the text that is to be kept."""
        record = evaluate(model, self.store.heldout, self.ids, self.recipe, world, self.device)
        if asks_twice(self.objective, self.store.heldout):
            both = evaluate(model, self.store.heldout, self.ids, self.recipe, world, self.device, second=True)
            record |= {name: value for name, value in both.items() if name.startswith("pair_")}
        mixed = self.kind == "hybrid" and 0 < self.objective.causal_share < 1
        for name, share in HALVES if mixed else ():
            alone = replace(self.recipe, objective=replace(self.objective, causal_share=share))
            half = evaluate(model, self.store.heldout, self.ids, alone, world, self.device)
            record |= {f"{name}_{what}": value for what, value in half.items()}
        if self.kept is not None:
            kept = evaluate(model, self.kept.heldout, self.ids, self.recipe, world, self.device)
            record |= {f"kept_{name}": value for name, value in kept.items()}
        return record

    def show(self, finished: AnyModel) -> list[dict[str, Any]]:
        if not isinstance(finished, LanguageModel):
            return []
        if self.kind in WRITERS and self.kind not in FILLERS:
            return go_on(finished, sentences(self.store.heldout), self.tokenizer, both_sides=self.kind == "prefix")
        if self.kind not in FILLERS:
            return []
        if self.samples is None:
            self.samples = pick(self.store.heldout, self.tokenizer)
        return answer(finished, self.samples, self.tokenizer, shifted=self.kind == "hybrid")

    def told(self, progress: float) -> dict[str, float]:
        return {"rate": round(rate_at(progress, self.objective.rate, self.objective.rate_end), 4)}

    def state(self) -> dict[str, torch.Tensor]:
        return {} if self.difficulty is None else {"difficulty": torch.from_numpy(self.difficulty.errors)}

    def export(self, finished: AnyModel, folder: Path, facts: dict[str, Any]) -> None:
        facts = facts | {"corpus": self.store.fingerprint, "preset": self.recipe.preset, "torch": torch.__version__}
        facts |= {"objective": self.kind} | ({"noise": self.objective.noise} if self.kind == "denoise" else {})
        a = marked(finished.architecture, self.tokenizer)
        save_model(finished, folder, tokenizer=self.tokenizer, extra=facts, goes_on=a.causal)
        if a.both:
            save_generation(folder, self.tokenizer, start_of(a, self.tokenizer))

    def opening(self, listener: Listener) -> dict[str, Any] | None:
        if not self.train.init:
            return None
        facts = facts_of(self.out)
        if "fertility" in facts:
            old, new = facts["fertility"]
            grown = f"{len(facts['words']):,} words of the corpus's own, such as {', '.join(facts['words'][:5])}"
            listener.message(f"the vocabulary grew by {grown}: {old:.3f} tokens a word, now {new:.3f}")
        return facts

    def price(self, model: AnyModel, **machine: Any) -> Price:
        parameters = sum(p.numel() for p in model.parameters())
        return estimate(self.recipe, model.architecture, parameters, self.store.train, self.ids, **machine)

    def notes(self, model: AnyModel) -> list[str]:
        units = described(self.store)
        return [units] if units else []


def tensors(batch: Batch, device: str) -> dict[str, Any]:
    """A batch as the model's `forward` takes it, by name."""

    def put(array: Any) -> Any:
        return torch.from_numpy(array).to(device, non_blocking=True)

    given = {"ids": put(batch.ids), "layout": batch.layout.to(device)}
    given |= {"asked": put(batch.asked), "targets": put(batch.targets)}
    if len(batch.pairs):
        given |= {"pairs": put(batch.pairs), "pair_labels": put(batch.pair_labels)}
    if batch.edges is not None:
        given["edges"] = put(batch.edges)
    if batch.source is not None:
        given["source"] = put(batch.source.ids), batch.source.layout.to(device)
    return given


@torch.no_grad()
def evaluate(
    model: AnyModel, split: SplitLike, ids: Specials, recipe: Recipe, world: World, device: str, *, second: bool = False
) -> dict[str, float]:
    """Mean loss in nats and accuracy over all that is asked of the held-out rows, each token weighing the same; where a
    second question is asked of them (which tokens are replaced, or with `second` the run's own), the same of that as
    pair_loss and pair_accuracy."""
    sums = [0.0] * 6
    t = recipe.train
    rows = max(1, min(32, 8192 // t.length))
    named = {"length": t.length, "n_rows": t.eval_rows, "batch_rows": rows}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(t.seed)  # ELECTRA's generator draws the same words for the same chances
        for batch in evaluation_batches(split, ids, **named, objective=recipe.objective, second=second):
            part = batch.slice(world.rank, world.size)
            if not len(part.asked):
                continue
            losses = model(**tensors(part, device))
            found = [losses.loss_sum, losses.n_correct, len(part.asked)]
            if losses.pair_loss_sum is not None:
                found += [losses.pair_loss_sum, losses.pair_correct, losses.n_pairs]
            for i, value in enumerate(found):
                sums[i] += float(value)
    loss, correct, n, pair_loss, pair_correct, pairs = world.sum(sums)
    record = {"loss": loss / max(n, 1), "accuracy": correct / max(n, 1)}
    return record | ({"pair_loss": pair_loss / pairs, "pair_accuracy": pair_correct / pairs} if pairs else {})
