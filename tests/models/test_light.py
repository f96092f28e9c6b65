"""What light strategies leave on disk: small, tied to its stock, many over one; and LoRA as PEFT has it, both ways."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bertkin.errors import UserError
from bertkin.models.adapt import Strategy, apply, changed, merge, trainable
from bertkin.models.light import is_light, open_light, save_light
from bertkin.models.pretrained import load_model, save_model
from bertkin.models.pretrained_tasks import begin_task_model, load_task_model, save_task_model
from bertkin.models.task_heads import Answer, usual_pooling

from .support import hushed, lively, ours
from .test_adapt import ALL, FAMILIES, LIGHT, OWN, PAIRS, far, learn, scores
from .test_task_heads import ENDS, batch_of, scores_of


def stock(family: str, folder: Path, seed: int = 0) -> Path:
    """A folder of a tiny model as pretraining leaves it; T5's calmer, as it does not scale its scores."""
    model = ours(family, **OWN.get(family, {}))
    if family == "t5":
        model = lively(ours(family), by=0.0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
    if seed:
        lively(model, seed, 0.01)
    save_model(model, folder)
    return folder


def begun(path: Path, head: Any = "class", outputs: int = 3, pooling: Any = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a = begin_task_model(path, Answer("class", 2)).architecture
        return begin_task_model(path, Answer(head, outputs, pooling or usual_pooling(a)), seed=1)


def trained(path: Path, strategy: Strategy, head: Any = "class", outputs: int = 3, pooling: Any = None) -> Any:
    model = begun(path, head, outputs, pooling)
    apply(model, strategy)
    learn(model)
    return model


@pytest.mark.parametrize(("family", "name"), [p for p in PAIRS if p[0] in ("bert", "gpt2", "t5", "albert")])
def test_what_changed_comes_back_over_the_stock(family: str, name: str, tmp_path: Path) -> None:
    path = stock(family, tmp_path / "stock")
    model = trained(path, LIGHT[name])
    size = save_light(model, tmp_path / "light", path, extra={"labels": ["a", "b", "c"]})
    assert size == sum(file.stat().st_size for file in (tmp_path / "light").iterdir())
    what = changed(model)
    assert size < 4 * sum(p.numel() for p in what.values()) + 400 * len(what) + 2_000
    again, about = open_light(tmp_path / "light")
    assert about["labels"] == ["a", "b", "c"]
    assert far(scores(again), scores(model)) < 1e-6
    assert is_light(tmp_path / "light")
    assert not is_light(path)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_heads_that_only_we_have_are_kept_in_our_own_way(pooling: Any, tmp_path: Path) -> None:
    path = stock("bert", tmp_path / "stock")
    model = trained(path, LIGHT["lora"], pooling=pooling)
    save_light(model, tmp_path / "light", path)
    assert not (tmp_path / "light" / "adapter_config.json").exists()
    assert torch.equal(scores(open_light(tmp_path / "light")[0]), scores(model))


@pytest.mark.parametrize("name", ["lora", "bias", "houlsby", "prefix", "last", "layers"])
def test_many_tasks_read_with_one_stock_in_memory(name: str, tmp_path: Path) -> None:
    path = stock("bert", tmp_path / "stock")
    first = trained(path, LIGHT[name])
    second = trained(path, LIGHT["lora"], head="tokens", outputs=5)
    save_light(first, tmp_path / "first", path)
    save_light(second, tmp_path / "second", path)
    base = begun(path)
    before = scores(base)
    one, _ = open_light(tmp_path / "first", stock=base)
    two, _ = open_light(tmp_path / "second", stock=base)
    assert far(scores(one), scores(first)) < 1e-6
    assert far(scores(two), scores(second)) < 1e-6
    assert torch.equal(scores(base), before)
    assert trainable(base)[0] == trainable(base)[1]
    held = {p.data_ptr() for p in base.parameters()}
    for model in (one, two):
        extra = sum(p.numel() for p in model.parameters() if p.data_ptr() not in held)
        assert extra == trainable(model)[0]


def test_merging_one_of_many_leaves_the_stock_they_share_as_it_was(tmp_path: Path) -> None:
    path = stock("bert", tmp_path / "stock")
    model = trained(path, LIGHT["lora everywhere"])
    save_light(model, tmp_path / "light", path)
    base = begun(path)
    before = scores(base)
    one, _ = open_light(tmp_path / "light", stock=base)
    other, _ = open_light(tmp_path / "light", stock=base)
    merge(one)
    assert torch.equal(scores(base), before)
    assert far(scores(one), scores(model)) < 1e-5
    assert far(scores(other), scores(model)) < 1e-6


@pytest.mark.parametrize(("first", "second"), [("lora", "houlsby"), ("houlsby", "lora")])
def test_what_is_saved_over_changes_of_another_kind_is_what_opens(first: str, second: str, tmp_path: Path) -> None:
    path = stock("bert", tmp_path / "stock")
    save_light(trained(path, LIGHT[first]), tmp_path / "light", path)
    model = trained(path, LIGHT[second])
    save_light(model, tmp_path / "light", path)
    assert far(scores(open_light(tmp_path / "light")[0]), scores(model)) < 1e-6


def test_a_lora_is_peft_s_only_where_the_stock_says_how_its_texts_become_one_state(tmp_path: Path) -> None:
    """PEFT's folder has no place for that: ModernBERT's configuration says it, and of the mean where it was grown here."""
    path = stock("modern", tmp_path / "stock")
    for pooling, peft in (("mean", True), ("first", False)):
        model = trained(path, LIGHT["lora"], pooling=pooling)
        save_light(model, tmp_path / pooling, path)
        assert (tmp_path / pooling / "adapter_config.json").exists() is peft
        assert far(scores(open_light(tmp_path / pooling)[0]), scores(model)) < 1e-6
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"classifier_pooling": "cls"}))
    model = trained(path, LIGHT["lora"], pooling="mean")
    save_light(model, tmp_path / "other", path)
    assert not (tmp_path / "other" / "adapter_config.json").exists()


def test_a_language_model_is_adapted_too(tmp_path: Path) -> None:
    path = stock("gpt2", tmp_path / "stock")
    model = load_model(path)
    apply(model, LIGHT["lora everywhere"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".b"):
                parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(3))
    save_light(model, tmp_path / "light", path)
    ids, layout, batch = batch_of("gpt2")
    with torch.no_grad():
        logits = model.eval().logits(ids, layout)
        again, _ = open_light(tmp_path / "light")
        assert far(again.logits(ids, layout), logits) < 1e-6
        their = in_peft("AutoModelForCausalLM", path, tmp_path / "light")
        assert far(layout.flat(their(**batch).logits), logits) < 1e-5
    merge(model)
    with torch.no_grad():
        assert far(model.logits(ids, layout), logits) < 1e-5


@pytest.mark.parametrize("name", ["lora", "houlsby", "bias"])
def test_changes_for_another_stock_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path, other = stock("bert", tmp_path / "stock"), stock("bert", tmp_path / "other", seed=5)
    save_light(trained(path, LIGHT[name]), tmp_path / "light", path)
    with pytest.raises(UserError, match=r"light: trained on another stock than .*other; give the one it was") as error:
        open_light(tmp_path / "light", other)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="trained on another stock than the model given"):
        open_light(tmp_path / "light", begun(other))


def test_bad_folders_are_refused_by_what_is_wrong_with_them(tmp_path: Path) -> None:
    path = stock("bert", tmp_path / "stock")
    with pytest.raises(UserError, match="no changes to a model here"):
        open_light(path)
    light = tmp_path / "light"
    save_light(trained(path, LIGHT["houlsby"]), light, path)
    about = json.loads((light / "bertkin.json").read_text())
    (light / "bertkin.json").write_text("{")
    with pytest.raises(UserError, match=r"bertkin.json: cannot be read"):
        open_light(light)
    (light / "bertkin.json").write_text("{}")
    with pytest.raises(UserError, match="does not say what strategy and stock"):
        open_light(light)
    about["light"]["strategy"]["size"] = 7
    (light / "bertkin.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="saved for another strategy, head or model"):
        open_light(light)
    (light / "changed.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        open_light(light)


def test_what_was_learnt_by_all_weights_is_no_light_change(tmp_path: Path) -> None:
    model = begun(stock("bert", tmp_path / "stock"))
    apply(model, Strategy("full"))
    with pytest.raises(ValueError, match="saved as a model"):
        save_light(model, tmp_path / "light", "stock")


# PEFT.


def in_peft(auto: str, path: Path, folder: Path, **loading: Any) -> Any:
    import transformers
    from peft import PeftModel

    with hushed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = getattr(transformers, auto).from_pretrained(path, attn_implementation="eager", **loading)
        return PeftModel.from_pretrained(base, folder).eval()


def labels_of(head: str) -> dict[str, Any]:
    return {"num_labels": 3} if head in ("class", "tokens") else {}


HEADS = [(f, "class") for f in FAMILIES] + [
    ("bert", "tokens"),
    ("roberta", "span"),
    ("bert", "choice"),
    ("t5", "tokens"),
]


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize(("family", "head"), HEADS)
def test_peft_gives_the_same_scores(family: str, head: str, everywhere: bool, tmp_path: Path) -> None:
    path = stock(family, tmp_path / "stock")
    outputs = {"span": 2, "choice": 1}.get(head, 3)
    strategy = Strategy("lora", rank=3, alpha=5.0, matrices=ALL if everywhere else ("query", "value"))
    model = trained(path, strategy, head, outputs)
    save_light(model, tmp_path / "light", path)
    their = in_peft(f"AutoModelFor{ENDS[head]}", path, tmp_path / "light", **labels_of(head))
    ids, layout, batch = batch_of(family)
    with torch.no_grad():
        expected = model(ids, layout)
        assert far(scores_of(their, head, batch, layout), expected) < 1e-5
    begin = begun(path, head, outputs)
    with torch.no_grad():
        assert far(begin.eval()(ids, layout), expected) > 1e-4


TARGETS = {
    "bert": ["query", "value", "intermediate.dense"],
    "roberta": ["query", "attention.output.dense"],
    "albert": ["query", "ffn"],
    "electra": ["key", "value"],
    "llama": ["q_proj", "v_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "modern": ["Wqkv", "Wi"],
    "bart": ["q_proj", "v_proj", "fc2"],
    "t5": ["q", "v", "wi_1"],
}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", TARGETS)
def test_what_peft_saved_opens_here(family: str, rslora: bool, tmp_path: Path) -> None:
    import transformers
    from peft import LoraConfig, get_peft_model

    # A stock with the head's pretrained part, as PEFT saves the last projection alone unless told otherwise.
    path = tmp_path / "stock"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_task_model(begun(stock(family, tmp_path / "first")), path, labels=("a", "b", "c"))
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=TARGETS[family], task_type="SEQ_CLS", use_rslora=rslora,
        fan_in_fan_out=family == "gpt2", rank_pattern={TARGETS[family][0]: 2},
        alpha_pattern={rf"\S*{TARGETS[family][0]}": 9, rf"x?{TARGETS[family][0]}": 100},  # expressions: the first counts
        modules_to_save=["classification_head"] if family in ("bart", "t5") else None,
    )  # fmt: skip
    with hushed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = transformers.AutoModelForSequenceClassification.from_pretrained(path, attn_implementation="eager")
        their = get_peft_model(base, config).eval()
        with torch.no_grad():
            for name, parameter in their.named_parameters():
                if "lora_B" in name or "modules_to_save" in name:
                    parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(len(name)))
        their.save_pretrained(tmp_path / "light")
    model, about = open_light(tmp_path / "light")
    assert about == {}
    ids, layout, batch = batch_of(family)
    with torch.no_grad():
        expected = their(**batch).logits
        assert far(model(ids, layout), expected) < 1e-5
        assert far(load_task_model(path)[0](ids, layout), expected) > 1e-4
    assert all("low" in name or not name.startswith(("stack.", "source.")) for name in changed(model))
    merge(model)
    with torch.no_grad():
        assert far(model(ids, layout), expected) < 1e-5


def test_what_peft_saved_for_another_model_is_refused(tmp_path: Path) -> None:
    path = stock("bert", tmp_path / "stock")
    save_light(trained(path, LIGHT["lora"]), tmp_path / "light", path)
    config = tmp_path / "light" / "adapter_config.json"
    (tmp_path / "light" / "bertkin.json").unlink()
    model = ours("bert", layers=2)
    save_model(model, tmp_path / "small")
    with pytest.raises(UserError, match=r"encoder.layer.2.*does not fit the stock"):
        open_light(tmp_path / "light", tmp_path / "small")
    save_model(ours("bert", hidden=16), tmp_path / "thin")
    with pytest.raises(UserError, match=r"is changed by \[3, 32\] and \[32, 3\], but has 16 x 16"):
        open_light(tmp_path / "light", tmp_path / "thin")
    said = json.loads(config.read_text())
    for change, message in (
        ({"peft_type": "IA3"}, "LORA is read here, not IA3"),
        ({"use_dora": True}, "use_dora = True is not read here"),
        ({"bias": "all"}, "bias = 'all' is not read here"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4 changes the stock itself"),
        ({"alora_invocation_tokens": [1]}, r"alora_invocation_tokens = \[1\] is not read here"),
        ({"alpha_pattern": {"(": 1}}, r"'\(' is no pattern of names"),
        ({"r": 0}, "adapter_config.json: r: expected a whole number"),
    ):
        config.write_text(json.dumps(said | change))
        with pytest.raises(UserError, match=message):
            open_light(tmp_path / "light", path)
    config.write_text("[1, ")
    with pytest.raises(UserError, match=r"adapter_config.json: cannot be read as JSON"):
        open_light(tmp_path / "light")


def test_a_merged_model_opens_in_transformers(tmp_path: Path) -> None:
    import transformers

    path = stock("roberta", tmp_path / "stock")
    model = trained(path, replace(LIGHT["lora everywhere"], dropout=0.1))
    ids, layout, batch = batch_of("roberta")
    with torch.no_grad():
        expected = model(ids, layout)
    merge(model)
    save_task_model(model, tmp_path / "merged", labels=("a", "b", "c"))
    with hushed(), torch.no_grad():
        their = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
        assert far(their(**batch).logits, expected) < 1e-5
