"""Every member of the family goes through the one loop: it learns, it is resumed to the bit, and what it is not for is
said before anything is begun."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from bertkin.config import Recipe, load_recipe
from bertkin.errors import UserError
from bertkin.models.continuing import load_whole
from bertkin.models.generate import Decoding
from bertkin.objectives.make import SERVES, evaluation_batches
from bertkin.tasks.generate import generate, open_writer
from bertkin.text.batches import Specials
from bertkin.train.folder import reopen
from bertkin.train.pretraining import pretrain, resume, tensors
from bertkin.train.setup import complete
from bertkin.train.state import read_log

from .support import bits, corpus, killed_at, recipe

MEMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"bert, {kind}": ("bert-tiny", {"kind": kind}) for kind in SERVES["bert"]},
    **{f"gpt2, {kind}": ("gpt2-tiny", {"kind": kind}) for kind in SERVES["gpt2"]},
    "roberta": ("roberta-tiny", {}),
    "modern": ("modern-tiny", {}),
    "albert": ("albert-tiny", {}),
    "electra": ("electra-tiny", {}),
    "spanbert": ("bert-tiny", {"unit": "span", "boundary": True}),
    "llama": ("llama-tiny", {}),
    "bart": ("bart-tiny", {}),
    "mass": ("bart-tiny", {"noise": "mass"}),
    "t5": ("t5-tiny", {}),
    "t5, mixed": ("t5-tiny", {"noise": "spans:0.5,prefix:0.5"}),
}
members = pytest.mark.parametrize(("preset", "objective"), MEMBERS.values(), ids=MEMBERS)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Path, Path], Path]:
    """A corpus, a tokenizer with sentinels, and a cache, for all members."""
    folder = tmp_path_factory.mktemp("family")
    return corpus(folder, sentinels=20), folder / "cache"


Make = Callable[..., Recipe]


@pytest.fixture
def make(ground: tuple[tuple[Path, Path], Path]) -> Make:
    """Recipes on the common corpus; see `support.recipe`."""
    return lambda **fields: recipe(*ground, **fields)


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [record for record in read_log(run) if record["kind"] == "evaluation"]


@members
def test_it_learns(make: Make, tmp_path: Path, preset: str, objective: dict[str, Any]) -> None:
    plan = make(preset=preset, objective=objective, steps=50, lr=5e-3, eval_every=5, checkpoint_every=100)
    result = pretrain(plan, tmp_path / "run")
    losses = [record["loss"] for record in evaluations(tmp_path / "run")]
    assert losses[-1] == pytest.approx(result.loss, abs=1e-4)
    assert losses[-1] < losses[0] - 0.3 and losses[-1] < math.log(180) - 0.7, "better than by chance"


def test_the_table_of_a_t5_learns_faster_by_what_its_logits_are_divided_by(make: Make) -> None:
    plan = complete(make(preset="t5-tiny", lr=1e-3))
    assert plan.train.table_lr == pytest.approx(1e-3 * math.sqrt(plan.model.hidden))
    assert complete(make(preset="t5-tiny", lr=1e-3, table_lr=0.5)).train.table_lr == 0.5
    assert complete(make(preset="bert-tiny", lr=1e-3)).train.table_lr is None


@pytest.mark.parametrize(
    ("preset", "objective"),
    [("bert-tiny", {"unit": "span", "boundary": True}), ("bert-tiny", {"sentence": "next"}), ("albert-tiny", {})],
    ids=["boundaries", "next sentence", "sentence order"],
)
def test_a_second_question_is_measured_beside_the_words(
    make: Make, tmp_path: Path, preset: str, objective: dict[str, Any]
) -> None:
    pretrain(make(preset=preset, objective=objective, steps=20, lr=5e-3, eval_every=10), tmp_path / "run")
    records = evaluations(tmp_path / "run")
    assert len(records) > 1
    for record in records:
        assert 0 <= record["pair_accuracy"] <= 1 and 0 < record["pair_loss"] < 20
    if "boundary" in objective:  # it is of words, as the first, and learnt from the first step on
        assert records[-1]["pair_loss"] < records[0]["pair_loss"]
    # Counted again, from the model that was saved: of the sentences' own labels, or the words at spans' places.
    run = tmp_path / "run"
    found = reopen(run, lambda *_: None)
    asked, tokenizer = found.recipe.objective, found.tokenizer
    model = load_whole(run / "model", sentence=asked.sentence != "none", boundary=asked.boundary).eval()
    right = count = 0
    named = {"length": found.recipe.train.length, "n_rows": found.recipe.train.eval_rows, "batch_rows": 4}
    for batch in evaluation_batches(found.store.heldout, Specials.of(tokenizer), **named, objective=asked, second=True):
        assert (batch.edges is not None) == asked.boundary and bool(len(batch.pairs)) != asked.boundary
        losses = model(**tensors(batch, "cpu"))
        right, count = right + int(losses.pair_correct), count + losses.n_pairs
    assert right / count == pytest.approx(records[-1]["pair_accuracy"], abs=1e-4)


@members
def test_killed_and_resumed_it_ends_with_the_same_bits(
    make: Make, tmp_path: Path, preset: str, objective: dict[str, Any]
) -> None:
    plan = make(preset=preset, objective=objective, model={"dropout": 0.1}, accumulate=2)
    whole = pretrain(plan, tmp_path / "whole")
    killed_at(3, lambda: pretrain(plan, tmp_path / "cut"))
    result = resume(tmp_path / "cut")
    assert (result.loss, result.accuracy, result.tokens) == (whole.loss, whole.accuracy, whole.tokens)
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")


@pytest.mark.parametrize("name", ["gpt2, causal", "gpt2, hybrid", "spanbert", "albert", "bart", "t5, mixed"])
def test_accumulating_is_the_same_step_in_parts(make: Make, tmp_path: Path, name: str) -> None:
    preset, objective = MEMBERS[name]
    for parts in (1, 3):
        plan = make(preset=preset, objective=objective, accumulate=parts, optimizer="adamw", steps=3)
        pretrain(plan, tmp_path / str(parts))
    pretrain(replace(plan, train=replace(plan.train, lr=1e-9)), tmp_path / "first")
    one, other, first = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("1", "3", "first"))
    for weight in one:
        moved = float((one[weight] - first[weight]).norm())
        if "k_proj.bias" in weight or "key.bias" in weight or moved == 0:
            continue  # nothing depends on it but rounding
        assert float((one[weight] - other[weight]).norm()) < 0.02 * moved, weight


# What is written down


def test_the_model_says_what_it_was_asked(make: Make, tmp_path: Path) -> None:
    pretrain(make(preset="gpt2-tiny", steps=1), tmp_path / "run")
    assert load_recipe(tmp_path / "run" / "recipe.yaml").objective.kind == "causal"
    said = json.loads((tmp_path / "run" / "model" / "bertkin.json").read_text())
    assert said["objective"] == "causal"


@pytest.mark.parametrize(
    ("preset", "kind", "what"),
    [
        ("gpt2", "hybrid", "answers"),
        ("bert", "unilm", "answers"),
        ("gpt2", "causal", "written"),
        ("llama", "prefix", "written"),
        ("bart", "denoise", "written"),
        ("t5", "denoise", "written"),
        ("electra", "replaced", None),
    ],
)
def test_blanks_are_shown_of_those_who_fill_them_and_texts_of_those_who_write(
    make: Make, tmp_path: Path, preset: str, kind: str, what: str | None
) -> None:
    pretrain(make(preset=f"{preset}-tiny", objective={"kind": kind}, steps=2), tmp_path / "run")
    shown = [record for record in read_log(tmp_path / "run") if record["kind"] == "samples"]
    assert bool(shown) == (what is not None)
    for record in shown:
        assert 1 <= len(record["fills"]) <= 6
        for fill in record["fills"]:
            assert fill.keys() == {"text", "truth", what}
            assert what != "answers" or len(fill["answers"]) == 3
    title = {"answers": "Blanks it filled", "written": "What it wrote", None: "</html>"}[what]
    assert title in (tmp_path / "run" / "report.html").read_text()


def test_the_second_loss_of_electra_is_a_mean_over_all_tokens(make: Make, tmp_path: Path) -> None:
    pretrain(make(preset="electra-tiny", steps=40), tmp_path / "run")
    steps = [record for record in read_log(tmp_path / "run") if record["kind"] == "step"]
    assert 0 < steps[-1]["pair_loss"] < math.log(2), "most tokens are not replaced, which is soon found out"
    assert 0.8 < steps[-1]["pair_accuracy"] <= 1
    held = [record for record in read_log(tmp_path / "run") if record["kind"] == "evaluation"]
    assert held[-1]["pair_loss"] == pytest.approx(steps[-1]["pair_loss"], abs=0.2)
    assert 0.8 < held[-1]["pair_accuracy"] <= 1


def test_the_halves_of_a_hybrid_are_measured_apart(make: Make, tmp_path: Path) -> None:
    pretrain(make(preset="modern-tiny", objective={"kind": "hybrid"}, steps=4), tmp_path / "run")
    last = [record for record in read_log(tmp_path / "run") if record["kind"] == "evaluation"][-1]
    assert len({last["loss"], last["masked_loss"], last["causal_loss"]}) == 3
    assert all(0 <= last[f"{half}_accuracy"] <= 1 for half in ("masked", "causal"))


# What cannot be

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an objective for others": (
        {"preset": "gpt2-tiny", "objective": {"kind": "masked"}},
        "gpt2 cannot be asked masked",
    ),
    "a decoder without its encoder": ({"preset": "t5-tiny", "objective": {"kind": "causal"}}, "choose denoise"),
    "replacing without a generator": ({"objective": {"kind": "replaced"}}, "or a preset of electra"),
    "sentence pairs of a writer": (
        {"preset": "llama-tiny", "objective": {"sentence": "order"}},
        "--objective.sentence",
    ),
    "a boundary of no span": ({"objective": {"boundary": True}}, "--objective.boundary"),
    "a noise nobody knows": ({"preset": "bart-tiny", "objective": {"noise": "infiling"}}, "did you mean infilling"),
    "a noise for one stack": ({"objective": {"noise": "infilling"}}, "--objective.noise"),
    "more than all causal": ({"objective": {"kind": "hybrid", "causal_share": 1.5}}, "--objective.causal-share"),
    "less than not adaptive": ({"objective": {"adaptive": -1.0}}, "--objective.adaptive"),
    "a weight below nothing": ({"preset": "electra-tiny", "objective": {"replaced_weight": -1.0}}, "replaced-weight"),
    "spans of nothing": ({"preset": "t5-tiny", "objective": {"span_mean": 0.5}}, "--objective.span-mean"),
}


@pytest.mark.parametrize(("fields", "said"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_a_line_before_anything_is_begun(
    make: Make, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        pretrain(make(**fields), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_preset_with_sentence_pairs_can_be_asked_another_kind(make: Make) -> None:
    assert complete(make(preset="albert-tiny")).objective.sentence == "order"
    assert complete(make(preset="albert-tiny", objective={"kind": "hybrid"})).objective.sentence == "none"


@pytest.fixture
def maskless(tmp_path: Path, ground: tuple[tuple[Path, Path], Path]) -> Path:
    """A tokenizer whose only special token ends a text, as GPT-2's."""
    words = sorted({word for line in ground[0][0].read_text().split("\n") for word in line.replace(".", " .").split()})
    table = {word: number for number, word in enumerate(["<|endoftext|>", *words])}
    backend = Backend(WordLevel(table, unk_token="<|endoftext|>"))
    backend.pre_tokenizer = Whitespace()
    backend.add_special_tokens(["<|endoftext|>"])
    (tmp_path / "own").mkdir()
    backend.save(str(tmp_path / "own" / "tokenizer.json"))
    return tmp_path / "own"


def test_a_tokenizer_without_a_mask_will_do_for_a_writer_alone(make: Make, tmp_path: Path, maskless: Path) -> None:
    def plan(kind: str, **objective: Any) -> Recipe:
        made = make(preset="gpt2-tiny", objective={"kind": kind, **objective}, steps=2)
        return replace(made, data=replace(made.data, tokenizer=str(maskless)))

    for kind, fields in (("causal", {}), ("prefix", {}), ("hybrid", {"causal_share": 1.0})):
        assert math.isfinite(pretrain(plan(kind, **fields), tmp_path / kind).loss)
    with pytest.raises(UserError, match=r"no \[MASK\], and hybrid hides tokens with it"):
        pretrain(plan("hybrid"), tmp_path / "run")


@pytest.mark.parametrize(("preset", "sentinels"), [("gpt2", 0), ("llama", 0), ("bart", 0), ("bart", 20), ("t5", 20)])
def test_a_run_saves_what_transformers_needs_to_write_as_we_do(preset: str, sentinels: int, tmp_path: Path) -> None:
    """From a text, by the tokenizer and the settings that are saved, with its cache and without."""
    import transformers

    plan = recipe(corpus(tmp_path, sentinels=sentinels), tmp_path / "cache", preset=f"{preset}-tiny", steps=30, lr=3e-3)
    pretrain(plan, tmp_path / "run")
    folder, prompt = tmp_path / "run" / "model", "the old king"
    writer = open_writer(folder, precision="float32")
    (ours,) = generate(writer, prompt, Decoding(temperature=0.0, max_new_tokens=12))
    kind = transformers.AutoModelForCausalLM if writer.goes_on else transformers.AutoModelForSeq2SeqLM
    their, tokenizer = kind.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    read = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    begun = read.input_ids.shape[1] if writer.goes_on else len(writer.manner.start)
    for use_cache in (True, False):
        how = {"do_sample": False, "max_length": None, "max_new_tokens": 12 + max(0, len(writer.manner.start) - 1)}
        (ids,) = their.generate(**read, **how, use_cache=use_cache)
        assert tuple(ids[:begun].tolist()) == (writer.manner.start or tuple(read.input_ids[0].tolist()))
        own = re.sub(r"<extra_id_\d+>", " ", ours.text)  # a sentinel is a mark to transformers, and told by us
        assert tokenizer.decode(ids[begun:], skip_special_tokens=True).split() == own.split()
