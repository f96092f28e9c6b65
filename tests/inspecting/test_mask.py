"""What is drawn is what happens: change a token, and see whose state moves."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bertkin.cli import main
from bertkin.config import Model, Objective, Recipe
from bertkin.errors import UserError
from bertkin.inspect.mask import Grid, Masks, inspect_mask, seen
from bertkin.inspect.words import ANSWERS, HIDDEN, STACKS, WHO
from bertkin.models import presets
from bertkin.models.attention import Rule
from bertkin.models.heads import LanguageModel
from bertkin.models.pretrained import save_model
from bertkin.objectives.make import MAKERS, SERVES
from bertkin.text.layout import Layout
from bertkin.text.tokenizer import train_tokenizer
from bertkin.train.setup import complete

EVERY = [(family, kind) for family, kinds in SERVES.items() for kind in kinds]
SHAPE = {"layers": 1, "hidden": 32, "heads": 2}


def reach_of(sees: str, grid: Grid) -> np.ndarray | None:
    """The reach that a kind of sequence is fed to the model with, read off its name and the length of its beginning."""
    n = len(grid.rows)
    left = np.arange(1, n + 1)
    if sees == "both":
        return np.full(n, n, np.int32)
    return np.maximum(left, sum(grid.seen[0]) if sees == "beginning" else 0).astype(np.int32)


def moved(model: LanguageModel, grid: Grid) -> np.ndarray:
    """bool [rows, columns]: whether the state of the row's token changes when the column's token does."""
    n, m = len(grid.rows), len(grid.columns)
    draw = torch.Generator().manual_seed(3)
    stack = model.source if grid.part == "encoder" else model.stack
    assert stack is not None
    ids = torch.randint(5, 60, (n,), generator=draw)
    layout = Layout.from_lengths([n], reach=reach_of(grid.sees, grid)).to("cpu")
    if grid.part in ("encoder", "decoder"):  # of these, the rule alone says who sees whom
        layout = replace(layout, reach=None)
    memory = (
        (torch.randn(4, 32, generator=draw), Layout.from_lengths([4]).to("cpu")) if grid.part == "decoder" else None
    )
    if grid.part == "cross":
        layout = replace(layout, reach=None)
        states, read = torch.randn(m, 32, generator=draw), Layout.from_lengths([m]).to("cpu")
        whole = stack(ids, layout, None, (states, read))
        changes = []
        for j in range(m):
            other = states.clone()
            other[j] += 1
            changes.append(stack(ids, layout, None, (other, read)))
    else:
        whole = stack(ids, layout, None, memory)
        changes = []
        for j in range(n):
            other = ids.clone()
            other[j] = 5 + (other[j] - 4) % 55
            changes.append(stack(other, layout, None, memory))
    return torch.stack([(change - whole).abs().amax(dim=1) > 0 for change in changes], dim=1).numpy()


@pytest.mark.parametrize(("family", "kind"), EVERY)
def test_what_is_drawn_is_what_moves(family: str, kind: str) -> None:
    shape = SHAPE | ({"local_window": 4, "global_every": 1} if family == "modern" else {})
    masks = inspect_mask(f"{family}-tiny", objective={"kind": kind}, model=shape, text="a b c d e f g h i j k l m")
    resolved = presets.resolve_model(complete(Recipe(preset=f"{family}-tiny", model=Model(**shape))).model, 64)
    model = presets.build(resolved, seed=1)
    model = model if isinstance(model, LanguageModel) else model.model
    assert masks.grids
    with torch.no_grad():
        for grid in masks.grids:
            assert np.array_equal(moved(model, grid), np.array(grid.seen)), (grid.part, grid.sees)


def test_a_window_is_drawn_for_the_layers_that_have_one() -> None:
    shape = {"layers": 3, "hidden": 32, "heads": 2, "local_window": 4, "global_every": 3}
    text = "a b c d e f g h i j k l m"
    masks = inspect_mask("modern-tiny", model=shape, text=text)
    assert [grid.layers for grid in masks.grids] == [(1,), (2, 3)]
    window = np.array(masks.grids[1].seen)
    away = np.abs(np.subtract.outer(np.arange(15), np.arange(15)))
    assert np.array_equal(window, away <= 2)
    # The same by touch: a model of local layers alone.
    model = presets.build(presets.resolve_model(Model(family="modern", **(shape | {"layers": 2})), 64), seed=1)
    assert isinstance(model, LanguageModel)
    del model.stack.layers[0]
    model.stack.depth = 1
    with torch.no_grad():
        assert np.array_equal(moved(model, masks.grids[1]), window)


def test_mixtures_are_drawn_kind_by_kind() -> None:
    assert [grid.sees for grid in inspect_mask("gpt2-tiny", objective={"kind": "hybrid"}).grids] == ["both", "left"]
    drawn = inspect_mask("bert-tiny", objective={"kind": "unilm"}).grids
    assert [grid.sees for grid in drawn] == ["both", "left", "beginning"]
    assert [grid.sees for grid in inspect_mask("llama-tiny", objective={"kind": "prefix"}).grids] == ["beginning"]


def test_an_encoder_decoder_has_three_and_they_go_together() -> None:
    encoder, decoder, cross = inspect_mask("t5-tiny").grids
    assert (encoder.part, decoder.part, cross.part) == ("encoder", "decoder", "cross")
    assert (cross.rows, cross.columns) == (decoder.rows, encoder.rows)
    assert decoder.rows[0] == "[PAD]" and decoder.answers[-1] == "[SEP]"
    assert decoder.answers[:-1] == decoder.rows[1:]


def test_what_is_asked_stands_beside_the_row() -> None:
    (grid,) = inspect_mask("gpt2-tiny", text="one two three").grids
    assert grid.rows == ("[CLS]", "one", "two", "three", "[SEP]")
    assert grid.answers == ("one", "two", "three", "[SEP]", "")
    (grid,) = inspect_mask("bert-tiny", text="one two three four five six seven eight").grids
    assert all(answer for row, answer in zip(grid.rows, grid.answers, strict=True) if row == "[MASK]")


def test_a_wide_window_is_drawn_from_afar() -> None:
    near, far = inspect_mask("modern-mini").grids
    assert near.step == 1 and far.step == 16
    assert all(row[i] for i, row in enumerate(far.seen)) and not far.seen[0][-1]
    (_, given) = inspect_mask("modern-mini", text="just so").grids
    assert given.step == 1 and all(map(all, given.seen))


def test_every_family_and_objective_has_its_words() -> None:
    assert set(STACKS) == set(presets.FAMILIES)
    assert set(WHO) == set(HIDDEN) == set(ANSWERS) == set(MAKERS)
    for family, kind in EVERY:
        words = inspect_mask(f"{family}-tiny", objective={"kind": kind}).words
        assert all(text and "{" not in text for text in words.values())


def test_it_can_be_read_without_colour_and_without_unicode() -> None:
    masks = inspect_mask("gpt2-tiny", text="one two")
    lines = masks.draw().splitlines()
    assert "██ · · ·" in lines[4] and "████████" in lines[7]
    plain = masks.draw(ascii=True)
    assert re.search(r"^ 1 \[CLS\] ## \. \. \.  -> one$", plain, re.MULTILINE)
    assert "\x1b" not in masks.draw() and not set("█·→–") & set(plain)


def test_a_run_folder_is_drawn_as_it_was_trained(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["one two three four five six"] * 4, vocab_size=40)
    model = presets.build(presets.resolve_model(Model(family="gpt2", **SHAPE), tokenizer.vocab_size))
    save_model(model, tmp_path / "model", tokenizer=tokenizer)
    assert inspect_mask(tmp_path).objective == "causal"
    from bertkin.config import dump_recipe

    (tmp_path / "recipe.yaml").write_text(dump_recipe(Recipe(objective=Objective(kind="hybrid"))))
    assert inspect_mask(tmp_path, text="six five").objective == "hybrid"
    assert inspect_mask(tmp_path, objective={"kind": "prefix"}).objective == "prefix"


def test_seen_is_what_attention_weighs() -> None:
    layout = Layout.from_lengths([3], reach=np.array([2, 2, 3], np.int32))
    assert seen(layout, Rule()).tolist() == [[True, True, False], [True, True, False], [True, True, True]]


@pytest.mark.parametrize(
    ("what", "more", "said"),
    [
        ("gpt2-tiny", {"objective": {"kind": "masked"}}, "gpt2 cannot be asked masked"),
        ("gpt2-tny", {}, "did you mean gpt2-tiny"),
        ("gtp2-mini", {}, "did you mean gpt2-mini"),
        ("gpt2-tiny", {"objective": {"static": True}}, "--objective.static: causal hides no tokens"),
        ("bert-tiny", {"text": "  "}, "no text to draw"),
        ("bert-tiny", {"model": {"heads": 3}}, "do not divide"),
        ("bert-tiny", {"text": "word " * 600}, "the model reads 512"),
        ("bert-tiny", {"objective": {"kind": "masking"}}, "is not a choice"),
    ],
)
def test_what_cannot_be_drawn_is_a_line(what: str, more: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        inspect_mask(what, **more)  # type: ignore[arg-type]


def test_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "mask", "gpt2-tiny", "--objective.kind", "hybrid", "--ascii"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("gpt2-tiny - hybrid") and "answers" in out
    assert main(["inspect", "mask", "bert-tiny", "--text", "a b", "--json"]) == 0
    drawn = json.loads(capsys.readouterr().out)
    assert drawn["family"] == "bert" and drawn["grids"][0]["seen"] == [[1] * 4] * 4
    assert main(["inspect", "mask", "t5-tiny", "--objective.kind", "causal"]) == 2
    assert "t5 cannot be asked causal" in capsys.readouterr().err
    assert isinstance(inspect_mask("t5-tiny"), Masks)
