"""Every recipe in recipes/ can be cooked, names no machine's paths, and is listed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bertkin.config import load_recipe
from bertkin.train.setup import complete

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_leaves_only_the_corpus_open(path: Path) -> None:
    recipe = complete(load_recipe(path))
    assert recipe.data.corpus == ()
    assert recipe.train.lr is not None and recipe.model.hidden is not None and recipe.objective.rate is not None


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_no_place_on_a_machine(path: Path) -> None:
    assert not re.search(r"(^|\s)(/|~|[A-Z]:\\)\w", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_listed(path: Path) -> None:
    assert f"[{path.stem}]({path.name})" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_english_mini_is_what_it_says() -> None:
    recipe = complete(load_recipe(FOLDER / "english-mini.yaml"))
    assert recipe.preset == "modern-mini" and recipe.train.minutes == 60
    assert recipe.data.max_words == 10_000_000 and recipe.data.vocab_size == 8192
    assert (recipe.model.layers, recipe.model.hidden, recipe.model.heads) == (4, 256, 4)


def test_bert_original_is_the_original() -> None:
    recipe = complete(load_recipe(FOLDER / "bert-original.yaml"))
    assert recipe.objective.static and recipe.objective.sentence == "next" and recipe.objective.rate == 0.15
    assert recipe.train.optimizer == "adamw" and recipe.train.lr == 1e-4 and recipe.model.dropout == 0.1
