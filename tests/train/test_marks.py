"""What a run hides at once is part of the run: phrases, entities and Chinese words, from the recipe to the resumed run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertkin.errors import UserError
from bertkin.text.batches import GOES_ON
from bertkin.text.tokenizer import Tokenizer, train_tokenizer
from bertkin.train import pretraining
from bertkin.train.pretraining import pretrain, resume
from bertkin.train.progress import QuietListener

from .support import corpus, recipe


class Heard(QuietListener):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def hidden_of(monkeypatch: pytest.MonkeyPatch, tokenizer: Path, train: Any) -> list[str]:
    """The runs of hidden tokens in the batches of a training, but those at the ends of a sequence, where a row may have
    cut a phrase in two."""
    found, real, decoder = [], pretraining.make_batch, Tokenizer.load(tokenizer)

    def watch(*arguments: Any, **named: Any) -> Any:
        batch = real(*arguments, **named)
        places = np.split(np.arange(len(batch.asked)), np.flatnonzero(np.diff(batch.asked) > 1) + 1)
        edges = [decoder.cls_id, decoder.sep_id]
        for run in places:
            at = batch.asked[run]
            if not np.isin(batch.ids[[at[0] - 1, at[-1] + 1]], edges).any():
                found.append(decoder.decode(batch.targets[run]))
        return batch

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "make_batch", watch)
        train()
    return found


def test_phrases_of_the_corpus_are_hidden_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ground, heard = corpus(tmp_path / "c"), Heard()
    plan = recipe(ground, tmp_path / "cache", objective={"unit": "phrase"})
    found = hidden_of(monkeypatch, ground[1], lambda: pretrain(plan, tmp_path / "run", listener=heard))
    text = " ".join(found)
    for phrase, words in {"his letter": ["letter"], "some bread": ["some", "bread"]}.items():
        for word in words:
            assert text.count(word) == text.count(phrase) > 0
    (said,) = [message for message in heard.messages if "phrases found in the corpus" in message]
    assert "my sister" in Path(said.split(": ")[1]).read_text()


def test_entities_of_a_list_are_hidden_whole_and_the_list_must_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground, heard = corpus(tmp_path / "c"), Heard()
    (tmp_path / "list.txt").write_text("an open door\nthe last train\nAtlantis\n")
    monkeypatch.chdir(tmp_path)
    plan = recipe(ground, tmp_path / "cache", objective={"unit": "entity", "phrases": "list.txt"})
    found = hidden_of(monkeypatch, ground[1], lambda: pretrain(plan, tmp_path / "run", listener=heard))
    text = " ".join(found)
    assert text.count("open") == text.count("an open door") > 0
    assert any("2 of the 3 entries" in message for message in heard.messages)
    monkeypatch.chdir("/")
    assert resume(tmp_path / "run").step == 6
    (tmp_path / "list.txt").write_text("an open door\n")
    with pytest.raises(UserError, match="what is hidden at once has changed"):
        resume(tmp_path / "run")


def test_marks_that_are_gone_are_made_again_on_resuming(tmp_path: Path) -> None:
    ground = corpus(tmp_path / "c")
    plan = recipe(ground, tmp_path / "cache", objective={"unit": "phrase"})
    first = pretrain(plan, tmp_path / "run")
    (marks,) = [folder for folder in (tmp_path / "cache" / "marks").iterdir() if folder.is_dir()]
    before = (marks / "train.marks").read_bytes()
    for file in marks.iterdir():
        file.unlink()
    ground[0].unlink()  # nor is the corpus needed for it: the store is there
    assert resume(tmp_path / "run") == first
    assert (marks / "train.marks").read_bytes() == before and GOES_ON in before


def test_words_of_chinese_text_are_hidden_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rjieba")
    lines = ["我们在北京大学学习自然语言处理。", "今天天气很好，我们去公园。", "他说中国的历史非常悠久。"]
    path, heard = tmp_path / "zh.txt", Heard()
    path.write_text("\n\n".join(line * 3 for line in lines * 20), encoding="utf-8")
    train_tokenizer(lines, kind="character").save(tmp_path / "tokenizer")
    plan = recipe((path, tmp_path / "tokenizer"), tmp_path / "cache", objective={"unit": "word"})
    found = hidden_of(monkeypatch, tmp_path / "tokenizer", lambda: pretrain(plan, tmp_path / "run", listener=heard))
    text = "".join(found).replace(" ", "")
    for word in ("公园", "历史", "学习"):
        assert text.count(word[0]) >= text.count(word) > 0
    assert text.count("园") == text.count("公园")
    assert any("words are hidden whole, as rjieba" in message for message in heard.messages)


def test_bad_lists_stop_a_run_before_it_begins(tmp_path: Path) -> None:
    plan = recipe(corpus(tmp_path / "c"), tmp_path / "cache")
    for fields, message in (
        ({"unit": "entity"}, "entities are told by a list"),
        ({"unit": "entity", "phrases": str(tmp_path / "absent.txt")}, "no such list"),
        ({"unit": "word", "phrases": str(tmp_path / "absent.txt")}, "not for unit word"),
    ):
        with pytest.raises(UserError, match=message):
            pretrain(replace(plan, objective=replace(plan.objective, **fields)), tmp_path / "run")
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()
