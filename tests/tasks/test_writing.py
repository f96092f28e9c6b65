"""Fine-tuning to write: a decoder or the stack itself, resumed to the bit, and the same in transformers."""

from __future__ import annotations

import contextlib
import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bertkin.cli import main
from bertkin.config import Model, Train
from bertkin.errors import UserError
from bertkin.models.generate import Decoding
from bertkin.models.heads import LanguageModel
from bertkin.models.presets import build, resolve_model
from bertkin.models.pretrained import load_model, save_model
from bertkin.models.strategy import Strategy
from bertkin.models.writers import begin_writer
from bertkin.tasks.finetune import finetune, resume
from bertkin.tasks.frames import Frame
from bertkin.tasks.predict import AnswerWriter, open_reader
from bertkin.tasks.reading import read_examples, read_splits
from bertkin.tasks.task import Example, Task
from bertkin.tasks.tuning import Tuning
from bertkin.text.tokenizer import Tokenizer, train_tokenizer
from bertkin.train.loop import Training

TOWNS = ["paris", "rome", "lyon", "oslo"]
MOODS = ["fine", "lovely", "grim", "dull"]
BEGINNINGS = ["the film was", "a day that is", "this book seems"]
KINDS = {
    "bert": ("wordpiece", 0),
    "roberta": ("byte-bpe", 0),
    "electra": ("wordpiece", 0),
    "modern": ("wordpiece", 0),
    "gpt2": ("byte-bpe", 0),
    "llama": ("unigram", 0),
    "bart": ("byte-bpe", 0),
    "t5": ("unigram", 4),
}


def sentence(draw: random.Random) -> tuple[str, str]:
    """A text, and what is to be written: its town and its mood."""
    mood, town = draw.choice(MOODS), draw.choice(TOWNS)
    return f"{draw.choice(BEGINNINGS)} {mood} in {town}", f"{town} was {mood}"


def stock_of(family: str, folder: Path) -> Path:
    """A tiny model with weights far from their first values, and a tokenizer of the words used here."""
    if (folder / family).exists():
        return folder / family
    draw, (kind, sentinels) = random.Random(0), KINDS[family]
    texts = [" . ".join(sentence(draw)) + " where how" for _ in range(200)]
    tokenizer = train_tokenizer(texts, kind=kind, sentinels=sentinels)  # type: ignore[arg-type]
    both = {"decoder_layers": 2} if family in ("bart", "t5") else {}
    shape = Model(family=family, layers=2, hidden=64, heads=2, max_length=64, **both)  # type: ignore[arg-type]
    model = build(resolve_model(shape, tokenizer.vocab_size))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    save_model(model, folder / family, tokenizer=tokenizer)
    return folder / family


@pytest.fixture(scope="module")
def stocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stocks")


def written(folder: Path, rows: int = 160, *, several: bool = False) -> Path:
    """Labelled rows: texts and what is to be written for them."""
    draw, lines = random.Random(1), []
    for number in range(rows):
        text, answer = sentence(draw)
        if several:
            asked = draw.choice(["where", "how"])
            lines.append(f"{asked} {number}\t{text}\t{answer.split()[0 if asked == 'where' else -1]}")
        else:
            lines.append(f"{text} {number}\t{answer}")
    path = folder / ("several.tsv" if several else "one.tsv")
    head = "question\tcontext\tanswer" if several else "text\tsummary"
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return path


def plan(stock: Path, data: Path, **more: Any) -> Tuning:
    train = {"steps": 3, "lr": 3e-3, "precision": "float32", "threads": 1, "eval_every": 500.0} | more.pop("train", {})
    return Tuning(model=str(stock), data=(str(data),), task="sequence", batch=16, dropout=0.0, train=Train(**train), **more)


@pytest.mark.parametrize(
    ("family", "writer", "several"),
    [("bert", "decoder", False), ("bert", "prefix", True), ("gpt2", None, True), ("bart", None, False)],
)
def test_answers_are_learnt(family: str, writer: Any, several: bool, stocks: Path, tmp_path: Path) -> None:
    data = written(tmp_path, 240, several=several)
    result = finetune(plan(stock_of(family, stocks), data, writer=writer, train={"steps": 150}), tmp_path / "run")
    assert result.accuracy >= 0.8
    reader = open_reader(tmp_path / "run", precision="float32")
    dev = read_splits(str(data), output="sequence").dev.examples
    predictions = reader.examples(dev)
    right = [p.answer == e.label for p, e in zip(predictions, dev, strict=True)]
    assert sum(right) / len(right) == pytest.approx(result.accuracy)
    assert all(0 <= p.sure <= 1 for p in predictions)
