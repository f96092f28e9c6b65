"""What fine-tuning begins with: the model of another task, scores in the file's own numbers; and rows whatever the texts."""

# ruff: noqa: F811 — fixtures of another file

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import Sequence as Nothing

import bertkin
from bertkin.config import Model
from bertkin.errors import UserError
from bertkin.models.initial import initialise
from bertkin.models.presets import build, resolve_model
from bertkin.models.pretrained_tasks import begin_task_model, load_task_model, save_task_model
from bertkin.models.strategy import Strategy
from bertkin.models.task_heads import BENDS, Answer, TaskModel, usual_pooling
from bertkin.models.writers import begin_writer
from bertkin.tasks.encoding import encode
from bertkin.tasks.finetune import finetune
from bertkin.tasks.predict import open_reader
from bertkin.tasks.several import open_readers
from bertkin.tasks.task import Example, Task
from bertkin.text.tokenizer import train_tokenizer
from bertkin.train.progress import QuietListener

from .test_finetune import lively, plan, sentence, stock, weights, written  # noqa: F401 — fixtures


def test_a_model_of_scores_goes_on_where_it_was(stock: Path, tmp_path: Path) -> None:
    """Its head answers in the file's numbers: so it does before the first step of another training, alone or together."""
    prices = tmp_path / "prices.tsv"
    draw = random.Random(1)
    rows = [(text, 300_000 + 40_000 * label) for text, label in (sentence(draw) for _ in range(120))]
    rows[0] = (rows[0][0], 9_000_000)  # one of another size makes it no other kind of score
    prices.write_text("text\tscore\n" + "".join(f"{text}\t{value}.5\n" for text, value in rows))
    tuning = plan(stock, prices, task="score", train={"steps": 60})
    finetune(tuning, tmp_path / "first")
    texts = [[text] for text, _ in rows[:20]]
    before = [one.answer for one in open_reader(tmp_path / "first", precision="float32").predict(texts)]
    again = replace(tuning, model=str(tmp_path / "first"), train=replace(tuning.train, steps=1, lr=1e-12))
    finetune(again, tmp_path / "again")
    after = [one.answer for one in open_reader(tmp_path / "again", precision="float32").predict(texts)]
    assert after == pytest.approx(before, rel=1e-4)
    only = {"prices": {"data": str(prices), "task": "score", "length": 32}}
    how: Any = {"train": {"steps": 1, "lr": 1e-12, "precision": "float32", "threads": 1}, "listener": QuietListener()}
    bertkin.finetune_together(tmp_path / "first", only, out=tmp_path / "joint", **how)
    (joint,) = bertkin.predict_all(tmp_path / "joint", [text for (text,) in texts], precision="float32").values()
    assert [one["score"] for one in joint] == pytest.approx(before, rel=1e-4)


def test_a_head_for_scores_of_another_kind_or_drawn_anew_begins_at_their_mean(stock: Path, tmp_path: Path) -> None:
    """Stars are no years; and `--reinit` leaves nothing of what a head was."""
    for name, low, size in (("stars", 3.0, 1.0), ("years", 1990.0, 10.0), ("prices", 300_000.0, 40_000.0)):
        draw = random.Random(1)
        rows = [(text, low + size * label) for text, label in (sentence(draw) for _ in range(60))]
        (tmp_path / f"{name}.tsv").write_text("text\tscore\n" + "".join(f"{t}\t{v + 0.25}\n" for t, v in rows))
    begun: dict[str, Any] = {"train": {"steps": 1, "lr": 1e-12}, "task": "score"}
    finetune(plan(stock, tmp_path / "stars.tsv", task="score"), tmp_path / "first")
    finetune(plan(tmp_path / "first", tmp_path / "years.tsv", **begun), tmp_path / "years")
    assert abs(bertkin.predict(tmp_path / "years", "it was warm")[0]["score"] - 1995) < 20
    finetune(plan(stock, tmp_path / "prices.tsv", task="score"), tmp_path / "dear")
    finetune(plan(tmp_path / "dear", tmp_path / "prices.tsv", reinit=1, **begun), tmp_path / "again")
    assert abs(bertkin.predict(tmp_path / "again", "it was warm")[0]["score"] - 320_000) < 80_000


@pytest.mark.parametrize("family", ["t5", "llama", "bart", "gpt2", "roberta", "modern", "electra", "albert"])
def test_every_family_goes_on_from_any_head_to_any_other(family: str, tmp_path: Path) -> None:
    """Whatever transformers calls the stack under one head and under another."""
    both = {"decoder_layers": 1} if family in ("bart", "t5") else {}
    shape = Model(family=family, layers=1, hidden=64, heads=2, max_length=32, start="random", **both)  # type: ignore[arg-type]
    a = build(resolve_model(shape, 90)).architecture
    answers = [Answer(head, 2, usual_pooling(a)) for head in ("class", "tokens", "span") if head in BENDS[family]]  # type: ignore[arg-type]
    for number, one in enumerate(answers):
        model = TaskModel(a, one)
        initialise(model, a, torch.Generator().manual_seed(0))
        save_task_model(model, tmp_path / str(number))
        if a.both and one.head != "tokens":
            assert torch.equal(begin_writer(tmp_path / str(number), "decoder").stack.layers[0].attention.qkv.weight,
                               model.stack.layers[0].attention.qkv.weight)  # type: ignore[union-attr]  # fmt: skip
        for other in answers:
            if family == "t5" and one.head == "tokens" != other.head:
                with pytest.raises(UserError, match="an encoder without the decoder that is to answer; begin with"):
                    begin_task_model(tmp_path / str(number), other)
                continue
            again = begin_task_model(tmp_path / str(number), other)
            assert again.missing == () if one == other else "classifier.weight" in again.missing
            stack, held = dict(again.named_parameters()), dict(model.named_parameters())
            inside = [name for name in stack if name.startswith(("stack.", "source.")) and name in held]
            assert inside and all(torch.equal(stack[name], held[name]) for name in inside)


@pytest.mark.parametrize(
    ("first", "second"), [("class", "tokens"), ("tokens", "class"), ("class", "more"), ("score", "class")]
)
def test_the_model_of_another_task_is_a_beginning(first: str, second: str, stock: Path, tmp_path: Path) -> None:
    """Its stack is taken, and its head where it is of the same kind and size."""
    finetune(plan(stock, written(tmp_path, first), train={"steps": 3}), tmp_path / "first")
    answer = {"tokens": Answer("tokens", 2), "class": Answer("class", 2), "more": Answer("class", 3)}[second]
    model = begin_task_model(tmp_path / "first", answer)
    assert {"classifier.weight", "classifier.bias"} <= {*model.missing}
    kept = weights(tmp_path / "first")["bert.encoder.layer.1.output.dense.weight"]
    assert any(torch.equal(parameter, kept) for parameter in model.parameters())
    data, draw = tmp_path / "more.tsv", random.Random(1)
    data.write_text("text\tlabel\n" + "".join(f"{sentence(draw)[0]} {at}\t{'abc'[at % 3]}\n" for at in range(60)))
    data = data if second == "more" else written(tmp_path, second)
    finetune(plan(tmp_path / "first", data, train={"steps": 2}), tmp_path / "second")
    assert (tmp_path / "second" / "report.html").exists()


def test_the_head_of_the_same_task_is_gone_on_with(stock: Path, tmp_path: Path) -> None:
    finetune(plan(stock, written(tmp_path, "class"), train={"steps": 3}), tmp_path / "first")
    assert not begin_task_model(tmp_path / "first", Answer("class", 2)).missing
    config = tmp_path / "first" / "model" / "config.json"  # while a folder that contradicts itself is none
    config.write_text(json.dumps(json.loads(config.read_text()) | {"id2label": dict.fromkeys("01234", "a")}))
    with pytest.raises(UserError, match="has shape"):
        load_task_model(tmp_path / "first")


@pytest.mark.parametrize(
    "task", [Task("class", 1, ("a", "b")), Task("tokens", 1, ("a", "b")), Task("choice", 1), Task("choice", 2)]
)
def test_a_text_without_tokens_is_still_a_sequence(task: Task) -> None:
    """Where a tokenizer puts nothing around texts: else its answer would be read at a neighbour's token."""
    tokenizer = train_tokenizer([sentence(random.Random(0))[0]], kind="byte-bpe")
    tokenizer.backend.post_processor = Nothing([])
    choice = task.output == "choice"
    examples = [Example((text,) * (task.inputs - choice), choices=(text, text) * choice) for text in ("it was", "")]
    rows = encode(examples, task, tokenizer, max_length=16)
    assert min(len(row.ids) for row in rows.rows) >= 1 and rows.cut == 0
    if task.output == "class":
        assert rows.rows[-1].ids.tolist() == [tokenizer.sep_id]


def test_as_many_choices_as_one_likes() -> None:
    """A row holds the texts and one of them."""
    tokenizer = train_tokenizer([sentence(random.Random(0))[0]], kind="wordpiece")
    example = Example(("it was",), choices=("warm", "dull") * 40)
    rows = encode([example], Task("choice", 2), tokenizer, max_length=16)
    assert len(rows.rows) == 80 and rows.cut == 0
    with pytest.raises(UserError, match="no room for 2 texts"):
        encode([example], Task("choice", 2), tokenizer, max_length=6)


def test_a_head_over_a_shared_stock_is_as_exact_as_alone(stock: Path, tmp_path: Path) -> None:
    finetune(
        plan(stock, written(tmp_path, "tokens"), strategy=Strategy("lora"), crf=True, train={"steps": 2}),
        tmp_path / "run",
    )
    alone = open_reader(tmp_path / "run", precision="bfloat16").model
    (over,) = open_readers([tmp_path / "run"], precision="bfloat16").values()
    kinds = {name: parameter.dtype for name, parameter in alone.named_parameters()}
    assert {name: parameter.dtype for name, parameter in over.model.named_parameters()} == kinds
    assert kinds["classifier.weight"] == torch.float32
