"""Texts in, texts out: whole characters, stop strings, and who cannot write is told so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bertkin
from bertkin.cli import main
from bertkin.config import Model
from bertkin.errors import UserError
from bertkin.models.generate import Decoding, Manner
from bertkin.models.presets import build, resolve_model
from bertkin.models.pretrained import save_model
from bertkin.tasks import generate as room
from bertkin.tasks.generate import Writer, generate, open_writer, stream
from bertkin.text.tokenizer import train_tokenizer

TEXTS = ["the quick brown fox jumps over the lazy dog", "où est le café, 你好 世界 😀🎉 naïve", "a dog is a dog."]
HOT = Decoding(max_new_tokens=24, temperature=3.0, top_p=1.0)
KINDS = [("gpt2", "byte-bpe"), ("llama", "unigram"), ("gpt2", "wordpiece"), ("bart", "byte-bpe"), ("t5", "unigram")]


@pytest.fixture(scope="module", params=KINDS, ids=lambda p: "-".join(p))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    family, kind = request.param
    yield made(family, kind, tmp_path_factory.mktemp(f"{family}-{kind}"))


def made(family: str, kind: str, path: Path, objective: str | None = None, **changes: Any) -> Path:
    """A small model that writes anything at all."""
    sentinels = 8 if family == "t5" else 0
    size = 300 if kind == "byte-bpe" else None
    tokenizer = train_tokenizer(TEXTS * 30, kind=kind, vocab_size=size, sentinels=sentinels)  # type: ignore[arg-type]
    shape = {"layers": 2, "hidden": 64, "heads": 2, "intermediate": 96, "max_length": 40, **changes}
    model = build(resolve_model(Model(family=family, **shape), tokenizer.vocab_size))  # type: ignore[arg-type]
    save_model(model, path, tokenizer=tokenizer, extra={"objective": objective})
    return path


def test_a_text_is_the_tokens_that_were_written(folder: Path) -> None:
    """Read together with the prompt, as one reads a whole text."""
    writer = open_writer(folder, precision="float32")
    tokenizer = writer.tokenizer
    for seed in range(8):
        (found,) = generate(writer, "the quick", replace(HOT, seed=seed))
        ids: list[int] = []
        from bertkin.models.generate import write

        begin = room._encode(writer, "the quick", 1, HOT, None)
        ends = {tokenizer.sep_id}
        for ((_, token),) in write(
            writer.model, [begin], replace(HOT, seed=seed), ends=ends, manner=writer.manner, numbers=[0]
        ):
            ids.append(token)
        assert found.tokens == len(ids)
        assert found.ended == ("end" if ids[-1] in ends else "length")
        shown = [i for i in ids if i not in {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id}]
        before = begin[1:] if writer.goes_on else []
        whole, head = tokenizer.decode([*before, *shown]), tokenizer.decode(before)
        assert found.text == whole[len(head) :]
        assert str(found) == ("the quick" if writer.goes_on else "") + found.text


@given(st.integers(0, 10_000), st.integers(1, 24))
@settings(max_examples=40, deadline=None)
def test_pieces_are_whole_characters_and_make_the_text(seed: int, length: int) -> None:
    for writer in WRITERS:
        how = replace(HOT, seed=seed, max_new_tokens=length)
        pieces = list(stream(writer, "où est", how))
        (found,) = generate(writer, "où est", how)
        assert "".join(pieces) == found.text
        assert all(pieces)
        assert not any("\ufffd" in piece and not found.text.count("\ufffd") for piece in pieces)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_a_stop_string_ends_the_text_before_it_wherever_tokens_fall(seed: int) -> None:
    for writer in WRITERS:
        how = replace(HOT, seed=seed)
        whole = generate(writer, "a dog", how)[0].text
        for at in range(0, max(1, len(whole) - 2), 5):
            stop = whole[at : at + 2 + seed % 3]
            if not stop:
                continue
            (found,) = generate(writer, "a dog", how, stop=[stop, "never this"])
            assert found.ended == "stop" and found.text == whole[: whole.find(stop)]
            assert "".join(stream(writer, "a dog", how, stop=[stop, "never this"])) == found.text


def writers() -> list[Writer]:
    """One of bytes, one of pieces of words; their models are never saved."""
    found = []
    for kind in ("byte-bpe", "wordpiece"):
        tokenizer = train_tokenizer(TEXTS * 30, kind=kind, vocab_size=290 if kind == "byte-bpe" else None)  # type: ignore[arg-type]
        shape = Model(family="gpt2", layers=1, hidden=32, heads=1, max_length=64)
        model = build(resolve_model(shape, tokenizer.vocab_size)).eval()
        found.append(Writer(Path(), model, tokenizer, Manner()))  # type: ignore[arg-type]
    return found


WRITERS = writers()


def test_bytes_of_one_character_come_together() -> None:
    """A character of four tokens is shown once, and never in halves."""
    writer = WRITERS[0]
    ids = writer.tokenizer.encode("x 😀你 y")
    one = room._Pieces(writer, [], (), live=True)
    pieces = []
    for token in ids:
        one.add(token)
        pieces.append(one.new())
    assert "".join(pieces) == "x 😀你 y" == one.generated("").text
    assert "\ufffd" not in "".join(pieces)
    assert "" in pieces  # while bytes are missing


def test_texts_do_not_depend_on_the_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = open_writer(folder, precision="float32")
    prompts = [("the quick brown fox " * 3)[: 3 + 4 * n] for n in range(9)]
    whole = generate(writer, prompts, HOT)
    for size in (1, 4):
        monkeypatch.setattr(room, "AT_ONCE", size)
        assert generate(writer, prompts, HOT) == whole
    several = generate(writer, prompts[:2], HOT, num=3)
    assert [text.prompt for text in several] == [prompts[0]] * 3 + [prompts[1]] * 3
    assert [several[0], several[3]] == whole[:2]
    assert len({text.text for text in several[:3]}) == 3


def test_the_python_face(folder: Path) -> None:
    one = bertkin.generate(folder, "the quick", greedy=True, max_new_tokens=5)
    assert one.prompt == "the quick" and one.tokens <= 5
    assert bertkin.generate(bertkin.load(folder), ["the quick"], greedy=True, max_new_tokens=5)[0].tokens <= 5
    assert len(bertkin.generate(folder, "a", num=2, max_new_tokens=3)) == 2  # type: ignore[arg-type, call-overload]
    with pytest.raises(UserError, match="unknown option 'max_tokens'; did you mean max_new_tokens"):
        bertkin.generate(folder, "a", max_tokens=3)


@pytest.mark.parametrize("precision", ["auto", "bfloat16", "int8"])
def test_precisions_write(folder: Path, precision: Any) -> None:
    try:
        writer = open_writer(folder, precision=precision)
    except UserError as error:
        assert precision == "int8" and "int8 needs" in str(error)
        return
    assert writer.model.table.dtype in (torch.float32, torch.bfloat16)
    assert generate(writer, "the", HOT)[0].tokens > 0


def test_a_prompt_that_is_too_long_is_refused_or_cut(folder: Path) -> None:
    writer = open_writer(folder, precision="float32")
    long = "dog " * 100
    with pytest.raises(
        UserError, match=r"prompt 2: 'dog dog .*…' has \d+ tokens, the model reads 40; .*--truncate left"
    ):
        generate(writer, ["a", long], HOT)
    (cut,) = generate(writer, long, HOT, truncate="left")
    assert cut.tokens >= 1
    assert writer.tokenizer.decode(room._encode(writer, f"fox {long}", 1, HOT, "left")).count("fox") == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens: 0 is out of range; choose a number of at least 1"),
        ({"temperature": -1.0}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"top_k": -1}, "--top-k"),
        ({"top_p": 0.0}, "--top-p: 0.0 is out of range; choose a share above 0, up to 1"),
        ({"top_p": 1.5}, "--top-p"),
        ({"min_p": 1.5}, "--min-p: 1.5 is out of range; choose a number from 0 to 1"),
        ({"beams": 0}, "--beams"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty"),
        ({"length_penalty": float("-inf")}, "--length-penalty: -inf is out of range; choose a number from -10 to 10"),
        ({"seed": 1 << 63}, "--seed: 9223372036854775808 is out of range; choose a whole number of 64 bits"),
        ({"length_penalty": float("nan")}, "--length-penalty: nan is out of range; choose a number from -10 to 10"),
    ],
)
def test_numbers_out_of_range_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        generate(WRITERS[0], "a", replace(HOT, **change))


def test_several_texts_need_chance() -> None:
    for how in (replace(HOT, temperature=0.0), replace(HOT, beams=2)):
        with pytest.raises(UserError, match="2 texts would be the same, without chance"):
            generate(WRITERS[0], "a", how, num=2)


def test_who_cannot_write_is_told_who_can(tmp_path: Path) -> None:
    for family, objective, what in (("bert", "masked", "fills blanks"), ("modern", None, "fills blanks")):
        with pytest.raises(UserError, match=f"this model {what} and cannot write; gpt2, llama, bart and t5 can"):
            open_writer(made(family, "wordpiece", tmp_path / f"{family}", objective))


@pytest.mark.parametrize("objective", ["causal", "hybrid", "prefix", "unilm"])
def test_encoders_that_were_taught_to_write_do(objective: str, tmp_path: Path) -> None:
    writer = open_writer(made("modern", "wordpiece", tmp_path, objective))
    assert generate(writer, ["the quick", "a"], HOT)[1].tokens > 0
    assert (writer.manner.blank is not None) == (objective == "unilm")
    assert writer.manner.both_sides == (objective == "prefix")


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(folder), "the quick", "a dog", "--max-new-tokens", "6", "--json", "--seed", "3"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in lines] == ["the quick", "a dog"]
    file = tmp_path / "prompts.txt"
    file.write_text("the quick\n\na dog\n")
    options = ["--file", str(file), "--max-new-tokens", "6", "--json", "--seed", "3"]
    assert main(["generate", str(folder), *options]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == lines
    for more in (["--greedy"], ["--beams", "2"], ["--top-k", "5", "--top-p", "1", "--min-p", "0.1"]):
        assert main(["generate", str(folder), "the quick", "--max-new-tokens", "6", *more]) == 0
        shown = capsys.readouterr().out
        assert main(["generate", str(folder), "the quick", "--max-new-tokens", "6", *more, "--stream"]) == 0
        assert capsys.readouterr().out == shown
    several = ["generate", str(folder), "the quick", "a dog", "--max-new-tokens", "6", "-n", "2", "--seed", "3"]
    assert main(several) == 0
    shown = capsys.readouterr().out
    assert main([*several, "--stream"]) == 0
    assert capsys.readouterr().out == shown


def test_mistakes_of_the_command_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(made("gpt2", "byte-bpe", tmp_path / "model"))
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    for arguments, said in (
        (["--file", str(empty)], "no prompt"),
        (["--file", str(tmp_path / "none.txt")], "cannot be read"),
        (["word " * 99], "--truncate left"),
        (["a", "--temperature", "-2"], "--temperature"),
        (["a", "--stop", ""], "empty stop string"),
        (["a", "--stream", "--json"], "leave out --stream or --json"),
        (["a", "-n", "2", "--greedy"], "leave out --greedy"),
    ):
        assert main(["generate", folder, *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
