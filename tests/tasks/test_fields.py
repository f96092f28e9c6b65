"""Writing a field given the others, by a model grown on records whose fields say the same in other words."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from bertkin.api import adapt, pretrain
from bertkin.cli import main
from bertkin.errors import UserError
from bertkin.models.generate import Decoding
from bertkin.tasks.fields import parse_given, prompt_for, write_fields
from bertkin.tasks.generate import Generated, Writer, open_writer
from bertkin.text.fields import frames_of
from bertkin.text.tokenizer import Tokenizer

ANIMALS, DOES = ["cat", "dog", "bird", "ship", "king"], ["sleeps", "runs", "sings", "waits"]
GREEDY = Decoding(temperature=0.0, max_new_tokens=24)
SMALL = {"layers": 1, "hidden": 64, "heads": 2, "max_length": 64}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has seen titles, bodies and years; a year stands for an animal."""
    home, draw = tmp_path_factory.mktemp("fields"), random.Random(0)
    with (home / "a.jsonl").open("w") as file:
        for _ in range(2500):
            who, what = draw.choice(ANIMALS), draw.choice(DOES)
            body = f"the {who} {what} by the {draw.choice(['sea', 'hill', 'wall'])} ."
            file.write(json.dumps({"title": f"{who} {what}", "body": body, "year": 1990 + ANIMALS.index(who)}) + "\n")
    train = {"steps": 350, "batch_tokens": 512, "length": 64, "threads": 1, "eval_rows": 8, "eval_every": 350}
    data = {"fields": "title,body,year", "heldout": 0.05, "workers": 1, "cache": str(home / "cache")}
    data["tokenizer_kind"] = "wordpiece"
    pretrain(home / "a.jsonl", out=home / "run", preset="gpt2-tiny", model=SMALL, data=data, train=train)
    return home


@pytest.fixture(scope="module")
def writer(home: Path) -> Writer:
    return open_writer(home / "run", precision="float32")


def test_each_field_follows_from_the_others(writer: Writer) -> None:
    right = {"year": 0, "title": 0, "body": 0}
    for i, who in enumerate(ANIMALS):
        (record,) = write_fields(writer, {"title": f"{who} runs"}, ["year"], GREEDY)
        right["year"] += record.written["year"] == str(1990 + i)
        (record,) = write_fields(
            writer, {"body": f"the {who} sings by the sea .", "year": str(1990 + i)}, ["title"], GREEDY
        )
        right["title"] += record.written["title"] == f"{who} sings"
        (record,) = write_fields(writer, {"year": str(1990 + i), "title": f"{who} waits"}, ["body"], GREEDY)
        right["body"] += record.written["body"].startswith(f"the {who} waits")
        assert record.ended and list(record.fields) == ["year", "title", "body"]
    assert all(count >= 4 for count in right.values()), right


def test_what_is_not_given_is_written_one_after_the_other(writer: Writer) -> None:
    (record,) = write_fields(writer, {"title": "dog runs"}, how=GREEDY)
    assert list(record.written) == ["body", "year"]
    assert record.written["year"] == "1991" and "dog" in record.written["body"]
    several = write_fields(writer, {}, how=Decoding(max_new_tokens=24, seed=3), num=4)
    assert len({record.fields["title"] for record in several}) > 1


def test_records_draw_each_for_itself(writer: Writer) -> None:
    how = Decoding(max_new_tokens=1, temperature=100.0, top_k=2, top_p=1.0)
    records = write_fields(writer, {"year": "1990"}, ["title", "body"], how, num=16)
    bodies: dict[str, set[str]] = {}
    for record in records:
        bodies.setdefault(record.written["title"], set()).add(record.written["body"])
    assert len(bodies) == 2 and all(len(different) == 2 for different in bodies.values())


def test_the_prompt_is_what_it_was_trained_on(writer: Writer) -> None:
    tokenizer = writer.tokenizer
    frames = frames_of(tokenizer)
    prompt = prompt_for(tokenizer, {"title": "dog runs"}, "body")
    title, body = frames["title"], frames["body"]
    assert tokenizer.encode(prompt) == [title[0], *tokenizer.encode("dog runs"), title[1], body[0]]


def test_a_run_on_fields_saves_them(home: Path) -> None:
    tokenizer = Tokenizer.load(home / "run" / "model")
    assert list(frames_of(tokenizer)) == ["title", "body", "year"]
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(home / "run" / "model")
    assert theirs.tokenize("<|title|>dog<|/title|>") == ["<|title|>", "dog", "<|/title|>"]


def test_a_model_without_fields_can_be_adapted_to_them(home: Path, tmp_path: Path) -> None:
    data = {"heldout": 0.05, "workers": 1, "cache": str(home / "cache")}
    train = {"steps": 2, "batch_tokens": 512, "length": 64, "threads": 1, "eval_rows": 4}
    pretrain(
        home / "a.jsonl",
        out=tmp_path / "plain",
        preset="gpt2-tiny",
        model=SMALL,
        data=data | {"field": "body"},
        train=train,
    )
    with pytest.raises(UserError, match="was not trained on fields"):
        write_fields(open_writer(tmp_path / "plain"), {}, ["body"])
    adapt(
        tmp_path / "plain", home / "a.jsonl", out=tmp_path / "framed", data=data | {"fields": "title,body"}, train=train
    )
    framed = open_writer(tmp_path / "framed")
    assert list(frames_of(framed.tokenizer)) == ["title", "body"]
    assert framed.model.architecture.vocab_size == framed.tokenizer.vocab_size
    (record,) = write_fields(framed, {"title": "dog runs"}, ["body"], GREEDY)
    assert set(record.written) == {"body"}


def test_given_fields_are_read_from_a_line() -> None:
    known = ["title", "date", "body"]
    assert parse_given("title=A cat, found,date=2019", known) == {"title": "A cat, found", "date": "2019"}
    assert parse_given("title=a = b, c=d, body = x", known) == {"title": "a = b, c=d", "body": "x"}
    assert parse_given("", known) == {}
    for wrong, said in (("cat", "has no ="), ("titel=x", "did you mean title"), ("title=x,title=y", "given twice")):
        with pytest.raises(UserError, match=said):
            parse_given(wrong, known)


@pytest.mark.parametrize(
    ("given", "want", "said"),
    [
        ({"titel": "x"}, ["body"], "the model knows no field 'titel'; did you mean title"),
        ({"title": "x"}, ["titel"], "--want: the model knows no field"),
        ({"title": "x"}, ["title"], "title is given and wanted"),
        ({"title": "a <|body|> b"}, ["body"], "holds <|body|>"),
        ({"title": "x", "body": "y", "year": "z"}, [], "every field is given"),
        ({"title": "x"}, ["body", "body"], "wanted twice"),
    ],
)
def test_what_cannot_be_written_is_a_line(writer: Writer, given: dict[str, str], want: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        write_fields(writer, given, want)
    assert said in str(caught.value)


def test_the_verb(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(home / "run")
    assert main(["generate", run, "--fields", "title=bird sings, year=1992", "--want", "body", "--greedy"]) == 0
    assert "bird" in capsys.readouterr().out
    assert main(["generate", run, "--fields", "title=bird sings", "--json", "--greedy"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["given"] == {"title": "bird sings"} and set(record["written"]) == {"body", "year"}
    assert main(["generate", run, "a prompt", "--want", "body"]) == 2
    assert "leave out prompts" in capsys.readouterr().err


def test_a_file_of_records_gets_the_wanted_field_of_each(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / "given.jsonl"
    lines = [{"title": f"{who} runs", "year": 1990 + i, "note": "unknown"} for i, who in enumerate(ANIMALS)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = ["generate", str(home / "run"), "--file", str(file), "--want", "body", "--json", "--greedy"]
    assert main(asked) == 0
    made = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["given"] for one in made] == [{"title": line["title"], "year": str(line["year"])} for line in lines]
    assert sum(who in one["written"]["body"] for who, one in zip(ANIMALS, made, strict=True)) >= 4
    assert main([*asked, "--fields", "title"]) == 0
    assert all('"given": {"title"' in line and '"year"' not in line for line in capsys.readouterr().out.splitlines())
    file.write_text(file.read_text() + "not json\n")
    assert main(asked) == 2
    out, err = capsys.readouterr()
    assert "line 6: not a record in JSON" in err and not out
    file.write_text('{"year": 1990}\n')
    assert main([*asked, "--fields", "title"]) == 2
    assert "line 1: the record has no field 'title'" in capsys.readouterr().err


def test_a_field_that_is_opened_inside_another_ends_that(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A young or warm model writes any token anywhere."""
    from bertkin.tasks import fields

    def strays(writer: Writer, prompts: list[str], *args: object, **options: object) -> list[Generated]:
        return [Generated(prompt, "the cat <|year|>1991<|/year|>", 4, "stop") for prompt in prompts]

    monkeypatch.setattr(fields, "generate", strays)
    (record,) = write_fields(writer, {"title": "cat runs"}, ["body", "year"])
    assert record.written == {"body": "the cat", "year": "the cat"} and not record.ended


def test_given_fields_that_are_too_long_can_lose_their_beginning(writer: Writer) -> None:
    given = {"title": "cat runs", "body": "the cat runs by the sea . " * 20}
    with pytest.raises(UserError, match="truncate left"):
        write_fields(writer, given, ["year"], GREEDY)
    (record,) = write_fields(writer, given, ["year"], GREEDY, truncate="left")
    assert set(record.written) == {"year"}
