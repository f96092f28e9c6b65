"""Fine-tuning to write: a decoder or the stack itself, resumed to the bit, and the same in transformers."""

from __future__ import annotations

import contextlib
import json
import random
import warnings
from dataclasses import replace
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
from bertkin.models.pretrained import load_model, marked, save_model
from bertkin.models.pretrained_tasks import begin_task_model
from bertkin.models.strategy import Strategy
from bertkin.models.task_heads import Answer
from bertkin.models.writers import begin_writer
from bertkin.tasks.finetune import finetune, resume
from bertkin.tasks.frames import Frame
from bertkin.tasks.joining import recipe_of
from bertkin.tasks.predict import AnswerWriter, by_beams, open_reader
from bertkin.tasks.reading import read_examples, read_splits
from bertkin.tasks.several import open_readers
from bertkin.tasks.task import Example, Task
from bertkin.tasks.together import together
from bertkin.tasks.tuning import Tuning
from bertkin.tasks.writing import save_writer
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
    begun = {"layers": 2, "hidden": 64, "heads": 2, "max_length": 64, "start": "random"}  # which knows no neighbours
    shape = Model(family=family, **begun, **both)  # type: ignore[arg-type]
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
    return Tuning(
        model=str(stock), data=(str(data),), task="sequence", batch=16, dropout=0.0, train=Train(**train), **more
    )


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


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "model").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize(("family", "writer", "strategy"), [("bert", "decoder", "full"), ("gpt2", None, "lora")])
def test_a_killed_run_resumes_to_the_same_bits(
    family: str, writer: Any, strategy: Any, stocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"steps": 9, "checkpoint_every": 2, "eval_every": 5.0}
    stock = stock_of(family, stocks)
    tuning = plan(stock, written(tmp_path, 60), train=train, writer=writer, strategy=Strategy(strategy), writes=8)
    finetune(tuning, tmp_path / "whole")
    real = Training.step

    class Killed(BaseException):
        pass

    def dying(self: Training, progress: float) -> dict[str, float]:
        if self.position.step == 7:
            raise Killed
        return real(self, progress)

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(Training, "step", dying)
        finetune(tuning, tmp_path / "cut")
    resume(tmp_path / "cut")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())


# The same in transformers.


def begun(family: str, writer: Any, stocks: Path, folder: Path, **more: Any) -> tuple[LanguageModel, Frame]:
    """A model that writes, saved as a fine-tuning would save it, and its frame."""
    stock = stock_of(family, stocks)
    tokenizer = Tokenizer.load(stock)
    model = begin_writer(stock, writer, seed=4, **more)
    model.architecture = marked(model.architecture, tokenizer)
    frame = Frame.of(model.architecture, tokenizer, 60, 24)
    save_writer(model, folder, frame)
    return load_model(folder), frame


def their(folder: Path, kind: str) -> Any:
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(transformers, kind).from_pretrained(folder).eval()


TEXTS = [("where is it", "the film was grim in oslo"), ("how", "a day that is fine in rome")]
ANSWERS = ["oslo was grim", "fine"]


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "bart", "t5"])
@torch.no_grad()
def test_two_stacks_are_one_model_of_transformers(family: str, stocks: Path, tmp_path: Path) -> None:
    """The texts as its own tokenizer joins them, the same logits and loss, the same answer."""
    layers = {"layers": 1} if family == "roberta" else {}
    model, frame = begun(family, "decoder", stocks, tmp_path / "model", **layers)
    theirs, tokenizer = their(tmp_path / "model", "AutoModelForSeq2SeqLM"), their_tokenizer(tmp_path / "model")
    task = Task("sequence", 2)
    rows = frame.encode([Example(texts, answer) for texts, answer in zip(TEXTS, ANSWERS, strict=True)], task)
    for row, texts in zip(rows.rows, TEXTS, strict=True):
        asked = frame.asked([row])
        batch = tokenizer(*texts, return_tensors="pt")
        assert batch["input_ids"][0].tolist() == row.ids.tolist()
        out = theirs(**batch, labels=asked.targets[None])
        ours = model.logits(asked.ids, asked.layout, asked.asked, asked.source)
        torch.testing.assert_close(ours, out.logits[0], atol=1e-5, rtol=1e-5)
        losses = model.loss(asked.ids, asked.layout, asked.asked, asked.targets, source=asked.source)
        assert float(losses.loss_sum) / losses.n == pytest.approx(float(out.loss), abs=1e-5)
        written = theirs.generate(**batch)
        (prediction,) = frame.answers(model, [row])
        assert prediction.answer == tokenizer.decode(written[0], skip_special_tokens=True).strip()


def their_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_a_causal_stack_goes_on_as_transformers_does(family: str, stocks: Path, tmp_path: Path) -> None:
    model, frame = begun(family, "prefix", stocks, tmp_path / "model")
    theirs = their(tmp_path / "model", "AutoModelForCausalLM")
    (row,) = frame.encode([Example(TEXTS[0], ANSWERS[0])], Task("sequence", 2)).rows
    assert row.ids[-1] == row.answer[-1] == frame.tokenizer.sep_id  # a separator before the answer, an end after it
    asked = frame.asked([row])
    out = theirs(torch.tensor([[*row.ids, *row.answer[:-1]]])).logits[0, len(row.ids) - 1 :]
    torch.testing.assert_close(model.logits(asked.ids, asked.layout, asked.asked), out, atol=1e-5, rtol=1e-5)
    prompt = torch.from_numpy(row.ids)[None]
    written = theirs.generate(prompt, attention_mask=torch.ones_like(prompt))
    said = frame.tokenizer.backend.decode(written[0, len(row.ids) :].tolist(), skip_special_tokens=True).strip()
    assert frame.answers(model, [row])[0].answer == said


@torch.no_grad()
def test_a_two_sided_stack_sees_the_text_from_both_sides_and_the_answer_from_the_left(
    stocks: Path, tmp_path: Path
) -> None:
    """transformers' masked model, told who sees whom, has the same logits; one that is not told has others."""
    model, frame = begun("bert", "prefix", stocks, tmp_path / "model")
    theirs = their(tmp_path / "model", "AutoModelForMaskedLM")
    (row,) = frame.encode([Example(TEXTS[0], ANSWERS[0])], Task("sequence", 2)).rows
    asked = frame.asked([row])
    read, size = len(row.ids), len(asked.ids)
    seen = torch.ones(size, size).tril().bool()
    seen[:read, :read] = True
    kinds = torch.from_numpy(row.segments).long()
    assert kinds.tolist().count(1) > 3
    given = {"input_ids": asked.ids[None], "token_type_ids": torch.nn.functional.pad(kinds, (0, size - read))[None]}
    ours = model.logits(asked.ids, asked.layout, asked.asked)
    out = theirs(**given, attention_mask=seen[None, None]).logits[0, read - 1 :]
    torch.testing.assert_close(ours, out, atol=1e-5, rtol=1e-5)
    assert (ours - theirs(**given).logits[0, read - 1 :]).abs().max() > 1e-3


@torch.no_grad()
def test_what_is_written_step_by_step_is_the_likeliest_at_every_step(stocks: Path, tmp_path: Path) -> None:
    """With segments, from both sides, packed with another text: keys that were kept say what whole sequences say."""
    model, frame = begun("bert", "prefix", stocks, tmp_path / "model")
    rows = frame.encode([Example(texts) for texts in TEXTS], Task("sequence", 2)).rows
    for row, prediction in zip(rows, frame.answers(model, rows), strict=True):
        ids: list[int] = []
        for _ in range(frame.writes):
            asked = frame.asked([answering(row, [*ids, 0])])
            ids.append(int(model.logits(asked.ids, asked.layout, asked.asked)[-1].argmax()))
            if ids[-1] == frame.tokenizer.sep_id:
                break
        assert prediction.answer == frame.tokenizer.backend.decode(ids, skip_special_tokens=True).strip()
        assert prediction.sure == pytest.approx(float(torch.tensor(frame.chances(model, [answering(row, ids)])).exp()))


def answering(row: Any, answer: list[int]) -> Any:
    return replace(row, answer=torch.tensor(answer).numpy())


@torch.no_grad()
def test_an_encoder_decoder_of_transformers_opens_here(stocks: Path, tmp_path: Path) -> None:
    """Its halves have tables of words that differ."""
    from transformers import EncoderDecoderModel

    stock = stock_of("bert", stocks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = EncoderDecoderModel.from_encoder_decoder_pretrained(str(stock), str(stock)).eval()
    theirs.encoder.embeddings.word_embeddings.weight.add_(0.1)
    tokenizer = Tokenizer.load(stock)
    theirs.config.decoder_start_token_id, theirs.config.pad_token_id = tokenizer.cls_id, tokenizer.pad_id
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    reader = open_reader(tmp_path, precision="float32")
    assert isinstance(reader, AnswerWriter)
    (row,) = reader.frame.encode([Example(TEXTS[0][:1], ANSWERS[0])], Task("sequence")).rows
    asked = reader.frame.asked([row])
    out = theirs(input_ids=torch.from_numpy(row.ids)[None], labels=asked.targets[None])
    ours = reader.model.logits(asked.ids, asked.layout, asked.asked, asked.source)
    torch.testing.assert_close(ours, out.logits[0], atol=1e-5, rtol=1e-5)
    assert set(reader.said(["a"], reader.predict([("a",)])[0])) == {"texts", "answer", "probability"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("encoder"), "encoder: no such half"),
        (lambda c: c.update(decoder=[]), "decoder: no such half"),
        (lambda c: c["decoder"].update(model_type="gpt2"), "a model of type 'gpt2'"),
        (lambda c: c["decoder"].update(model_type="roberta"), "differ in family"),
        (lambda c: c["decoder"].update(add_cross_attention=False), "does not look at its encoder"),
        (lambda c: c["decoder"].update(intermediate_size=8), "differ in intermediate"),
        (lambda c: c["decoder"].update(num_hidden_layers=3), "no weight named decoder.bert.encoder.layer.2"),
        (lambda c: c["encoder"].update(hidden_size="wide"), "hidden_size"),
    ],
)
def test_halves_that_do_not_fit_are_one_line(change: Any, said: str, stocks: Path, tmp_path: Path) -> None:
    begun("bert", "decoder", stocks, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        load_model(tmp_path)


def test_a_type_of_our_own_is_begun_from_whatever_heads_it_has(stocks: Path, tmp_path: Path) -> None:
    """BERT with rotary positions, which transformers does not have."""
    tokenizer = Tokenizer.load(stock_of("bert", stocks))
    shape = Model(family="bert", layers=2, hidden=64, heads=2, max_length=64, positions="rotary")
    save_model(
        build(resolve_model(shape, tokenizer.vocab_size), sentence=True), tmp_path / "stock", tokenizer=tokenizer
    )
    assert "classifier.weight" in begin_task_model(tmp_path / "stock", Answer("class", 2)).missing
    assert not begin_writer(tmp_path / "stock", "prefix").missing
    two = begin_writer(tmp_path / "stock", "decoder")
    save_model(two, tmp_path / "two", tokenizer=tokenizer)
    back = load_model(tmp_path / "two")
    assert all(torch.equal(one, other) for one, other in zip(two.parameters(), back.parameters(), strict=True))
    again = begin_writer(tmp_path / "two", "decoder")
    assert not again.missing and again.architecture.both


# Strategies.


@pytest.mark.parametrize(
    ("family", "writer", "kind", "light"),
    [
        ("gpt2", None, "adapter", True),
        ("gpt2", None, "bias", True),
        ("bert", "prefix", "last", True),
        ("electra", "prefix", "lora", True),
        ("electra", "prefix", "bias", True),
        ("t5", None, "lora", True),
        ("bert", "decoder", "frozen", False),
        ("bert", "decoder", "lora", False),
        ("modern", "decoder", "full", False),
        ("modern", "prefix", "lora", True),
    ],
)
def test_what_a_strategy_leaves_is_opened_again(
    family: str, writer: Any, kind: Any, light: bool, stocks: Path, tmp_path: Path
) -> None:
    stock, data = stock_of(family, stocks), written(tmp_path, 60)
    tuning = plan(stock, data, writer=writer, strategy=Strategy(kind), train={"steps": 4, "lr": 1e-2}, writes=6)
    result = finetune(tuning, tmp_path / "run")
    saved = sum(path.stat().st_size for path in (tmp_path / "run" / "model").glob("*.safetensors"))
    whole = (stock / "model.safetensors").stat().st_size
    assert saved < whole if light else saved >= whole
    reader = open_reader(tmp_path / "run", precision="float32")
    assert isinstance(reader, AnswerWriter)
    dev = read_splits(str(data), output="sequence").dev.examples
    rows = reader.frame.encode(dev, reader.task).rows
    total = float(-reader.frame.chances(reader.model, rows).sum())
    assert total / sum(len(row.answer) for row in rows) == pytest.approx(result.loss, rel=1e-4)


def test_only_what_is_new_learns_with_frozen(stocks: Path, tmp_path: Path) -> None:
    tuning = plan(stock_of("bert", stocks), written(tmp_path, 60), strategy=Strategy("frozen"), writes=6)
    finetune(tuning, tmp_path / "run")
    begin, end = load_file(stock_of("bert", stocks) / "model.safetensors"), weights(tmp_path / "run")
    for name, tensor in begin.items():
        half = f"encoder.{name.removeprefix('bert.')}" if name.startswith("bert.") else f"decoder.{name}"
        assert torch.equal(end[half], tensor)
    assert any("crossattention" in name for name in end)


# What cannot be.


@pytest.mark.parametrize(
    ("family", "how", "said"),
    [
        ("bart", {"writer": "prefix"}, "bart has a decoder, and writes with it"),
        ("gpt2", {"writer": "decoder"}, "gpt2 reads from the left alone"),
        ("gpt2", {"decoder_layers": 1}, "no new decoder is made here"),
        ("bert", {"decoder_layers": 3}, "begun from the encoder's 2"),
        ("bert", {"writes": 65}, "answers of 65 tokens"),
        ("gpt2", {"writes": 62}, "leave no room for the text"),
        ("bert", {"strategy": Strategy("adapter")}, "adapters do not fold into the weights"),
        ("gpt2", {"strategy": Strategy("frozen")}, "nothing is new"),
        ("bart", {"strategy": Strategy("layers")}, "layers is for models that answer with a class"),
        ("bert", {"reinit": 1}, "a model that writes keeps its layers"),
        ("bert", {"metric": "matthews"}, "no metric of this task"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    family: str, how: Any, said: str, stocks: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        finetune(plan(stock_of(family, stocks), written(tmp_path, 20), **how), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_decoder_made_for_a_task_has_no_other_head(stocks: Path, tmp_path: Path) -> None:
    begun("bert", "decoder", stocks, tmp_path / "model")
    (tmp_path / "class.tsv").write_text("text\tlabel\n" + "one\tgood\ntwo\tbad\nthree\tgood\n" * 4, encoding="utf-8")
    tuning = Tuning(model=str(tmp_path / "model"), data=(str(tmp_path / "class.tsv"),))
    with pytest.raises(UserError, match="has no head for class"):
        finetune(tuning, tmp_path / "run")


def test_long_texts_and_answers_are_cut_and_counted(stocks: Path, tmp_path: Path) -> None:
    stock = stock_of("gpt2", stocks)
    frame = Frame.of(load_model(stock).architecture, Tokenizer.load(stock), 30, 6)
    examples = [Example(("the film was " * 20, "how"), "oslo"), Example(("how",) * 2, "oslo was grim " * 9)]
    rows = frame.encode(examples, Task("sequence", 2))
    assert rows.cut == 2 and frame.cut_answers(rows) == 1
    long, short = rows.rows
    assert len(long.ids) + 6 == 30 and len(short.answer) == 6
    how = frame.tokenizer.encode("how")
    ids = long.ids.tolist()
    assert ids[-len(how) - 1 : -1] == how  # the shorter text is whole


# Data.


def test_answers_that_are_no_texts_are_refused_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "answer": "b"}\n{"text": "c", "answer": ["d"]}\n', encoding="utf-8")
    with pytest.raises(UserError, match="the answer is a list, not a text"):
        read_examples(path, output="sequence")
    path.write_text('{"text": "a", "answer": "b"}\n{"text": "c", "answer": ""}\n', encoding="utf-8")
    with pytest.raises(UserError, match="no label"):
        read_examples(path, output="sequence")


def test_columns_that_say_nothing_are_taken_in_order_and_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("".join(f"the text number {n} of many\tanswer {n}\n" for n in range(12)), encoding="utf-8")
    found = read_examples(path, output="sequence")
    assert found.examples[3].texts == ("the text number 3 of many",) and found.examples[3].label == "answer 3"
    assert any("text = 1, label = 2" in line for line in found.said)
    with pytest.raises(UserError, match="no column looks like a label"):
        read_examples(path)  # a class might do: nobody said that it is a text


def test_questions_with_spans_may_be_answered_in_words(tmp_path: Path) -> None:
    answers = [{"text": "in oslo", "answer_start": 13}, {"text": "oslo", "answer_start": 16}]
    paragraph = {"context": "the film was in oslo", "qas": [{"id": "1", "question": "where", "answers": answers}]}
    path = tmp_path / "asked.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}), encoding="utf-8")
    found = read_examples(path, output="sequence")
    (example,) = found.examples
    assert found.task.output == "sequence" and found.task.inputs == 2
    assert example.label == "in oslo" and example.references == ("in oslo", "oslo")


def test_from_the_terminal(stocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = str(written(tmp_path, 60, several=True)), str(tmp_path / "run")
    columns = ["--task", "sequence", "--text", "question", "--text2", "context", "--label", "answer"]
    options = ["--train.steps", "4", "--writer", "prefix", "--metric", "answer_f1", "--out", out, "--quiet"]
    assert main(["finetune", str(stock_of("bert", stocks)), data, *columns, *options]) == 0
    assert "answer_f1" in capsys.readouterr().out
    assert main(["predict", out, "where\tthe film was grim in oslo", "--beams", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"texts", "answer", "probability"} and 0 <= told["probability"] <= 1
    assert main(["generate", out, "the film was", "--max-new-tokens", "3", "--greedy"]) == 0
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert "--writer prefix" in card and "AutoModelForMaskedLM" not in card
    capsys.readouterr()
    assert main(["predict", out, "one text alone"]) == 2
    assert "1 texts, where the model reads 2" in capsys.readouterr().err


def test_beams_find_what_is_likelier(stocks: Path, tmp_path: Path) -> None:
    model, frame = begun("t5", "decoder", stocks, tmp_path / "model")
    rows = frame.encode([Example((f"the film was {mood}",)) for mood in MOODS], Task("sequence")).rows
    greedy = frame.answers(model, rows)
    beams = frame.answers(model, rows, Decoding(temperature=0.0, beams=6, max_new_tokens=64, length_penalty=0.0))
    assert all(b.sure >= g.sure * (1 - 1e-5) for b, g in zip(beams, greedy, strict=True))


def test_a_writer_is_asked_beside_a_classifier_of_its_stock(stocks: Path, tmp_path: Path) -> None:
    """Both are light; the words that one answers with are not lost for the other's head."""
    stock, data = stock_of("bert", stocks), written(tmp_path, 60)
    train = {"steps": 2}
    finetune(plan(stock, data, writer="prefix", strategy=Strategy("lora"), train=train), tmp_path / "writes")
    (tmp_path / "class.tsv").write_text("text\tlabel\n" + "one\tgood\ntwo\tbad\nthree\tgood\n" * 4, encoding="utf-8")
    classes = Tuning(model=str(stock), data=(str(tmp_path / "class.tsv"),), strategy=Strategy("lora"))
    finetune(replace(classes, train=Train(precision="float32", **train)), tmp_path / "chooses")
    runs = [str(tmp_path / "writes"), str(tmp_path / "chooses")]
    readers = open_readers(runs, precision="float32")
    alone = open_reader(runs[0], precision="float32")
    (beside,), (other,) = readers[runs[0]].predict([("the film was grim",)]), alone.predict([("the film was grim",)])
    assert beside.answer == other.answer and beside.sure == pytest.approx(other.sure)
    with pytest.raises(UserError, match="chooses its answers and writes none"):
        by_beams(readers[runs[1]], 2)


def test_models_that_write_are_not_trained_together(stocks: Path, tmp_path: Path) -> None:
    data = written(tmp_path, 20)
    recipe = recipe_of({"one": Tuning(data=(str(data),), task="sequence")}, Tuning(model=str(stock_of("bert", stocks))))
    with pytest.raises(UserError, match="trained alone"):
        together(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
