"""Minimal pairs: read by paradigm, ties are half, and a bad line is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bertkin
from bertkin.cli import main
from bertkin.errors import UserError
from bertkin.models.heads import LanguageModel
from bertkin.models.pretrained import save_model
from bertkin.tasks.pairs import Pair, evaluate_pairs, evaluate_scorer, read_blimp, score_pairs
from bertkin.text.tokenizer import Tokenizer, train_tokenizer

from .support import TEXT, grown


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXT * 3, vocab_size=90)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> LanguageModel:
    return grown(tokenizer)


def test_ties_count_half() -> None:
    assert score_pairs([1.0, 2.0, 3.0, 3.0], [0.0, 2.0, 4.0, 3.0]) == (1 + 0.5 + 0 + 0.5) / 4


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match="not a number"):
        score_pairs([float("nan")], [0.0])


# Files.


def write(folder: Path, name: str, pairs: list[tuple[str, str]], field: str) -> None:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"sentence_good": good, "sentence_bad": bad, "field": field}) for good, bad in pairs]
    (folder / name).write_text("\n".join(lines) + "\n\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "pairs", "number.jsonl", [("the cats sleep", "the cats sleeps"), ("a", "bb")], "morphology")
    write(tmp_path / "pairs", "case.jsonl", [("The dogs", "the dogs")] * 3, "morphology")
    write(tmp_path / "pairs", "order.jsonl", [("the mat", "mat the")], "syntax")
    return tmp_path / "pairs"


def test_pairs_are_read_by_paradigm_up_to_a_limit(folder: Path) -> None:
    pairs = read_blimp(folder, limit=2)
    assert {name: len(members) for name, members in pairs.items()} == {"case": 2, "number": 2, "order": 1}
    assert pairs["order"] == [Pair("the mat", "mat the", "syntax")]
    assert read_blimp(folder / "case.jsonl").keys() == {"case"}


def test_any_function_of_sentences_can_be_scored(folder: Path) -> None:
    scores = evaluate_scorer(lambda sentences: [-len(text) for text in sentences], folder)
    assert scores.paradigms == {"case": 0.5, "number": 1.0, "order": 0.5}
    assert scores.fields == {"morphology": 0.75, "syntax": 0.5}
    assert scores.mean == pytest.approx(2 / 3)


def test_scores_read_well_and_go_into_json(folder: Path) -> None:
    scores = evaluate_scorer(lambda sentences: [-len(text) for text in sentences], folder, method="brevity")
    text = str(scores)
    assert "morphology" in text and " 75.0%" in text and text.splitlines()[-1].endswith("66.7%  mean of 3, by brevity")
    plain = json.loads(json.dumps(scores.to_mapping()))
    assert plain["mean"] == pytest.approx(0.66667) and plain["method"] == "brevity" and plain["pairs"] == 6


def test_a_model_is_asked_in_any_precision(tokenizer: Tokenizer, model: LanguageModel, folder: Path) -> None:
    done: list[tuple[int, int]] = []
    for precision in ("float32", "bfloat16"):
        scores = evaluate_pairs(
            model, tokenizer, folder, precision=precision, progress=lambda *numbers: done.append(numbers)
        )
        assert scores.paradigms["case"] == 0.5  # a lowercasing tokenizer cannot tell them apart
        assert scores.method == "pseudo-log-likelihood"
    assert done[-1] == (6, 6)
    assert next(model.parameters()).dtype == torch.float32
    assert "within word" in evaluate_pairs(model, tokenizer, folder, within_word=True).method


def test_a_transformers_model_gets_the_same_scores_by_the_same_code(
    tokenizer: Tokenizer, folder: Path, tmp_path: Path
) -> None:
    model = grown(tokenizer, "bert")
    save_model(model, tmp_path / "model", tokenizer=tokenizer)
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "model").eval()
    encode = AutoTokenizer.from_pretrained(tmp_path / "model")

    @torch.no_grad()
    def scorer(sentences: list[str]) -> list[float]:
        scores = []
        for text in sentences:
            ids = encode(text, return_tensors="pt").input_ids
            places = torch.arange(1, ids.shape[1] - 1)
            copies = ids.repeat(len(places), 1)
            copies[torch.arange(len(places)), places] = encode.mask_token_id
            answers = theirs(copies).logits.log_softmax(-1)[torch.arange(len(places)), places]
            scores.append(round(float(answers.gather(1, ids[0, places, None]).sum()), 4))
        return scores

    ours = evaluate_pairs(model, tokenizer, folder, precision="float32")
    assert evaluate_scorer(scorer, folder).paradigms == ours.paradigms


GOOD_LINE = b'{"sentence_good": "a b", "sentence_bad": "b a"}\n'


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"the cats sleep", "not JSON"),
        (b'["a", "b"]', "expected an object, found list"),
        (b'{"sentence_good": "a b"}', "no field 'sentence_bad'"),
        (b'{"sentence_good": "a b", "sentence_bad": 3}', "sentence_bad is not a sentence"),
        (b'{"sentence_good": " ", "sentence_bad": "b"}', "sentence_good is not a sentence"),
        (b'{"sentence_good": "\xff", "sentence_bad": "b"}', "not UTF-8"),
        (b'{"sentence_good": "\\ud800", "sentence_bad": "b"}', "surrogate"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, line: bytes, complaint: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(GOOD_LINE + b"\n" + line + b"\n" + GOOD_LINE)
    with pytest.raises(UserError, match=complaint) as caught:
        read_blimp(tmp_path)
    assert str(caught.value).startswith(f"{file}:3: ")
    assert len(read_blimp(tmp_path, limit=1)["bad"]) == 1  # what is not read is not checked


@given(content=st.binary(max_size=200))
def test_garbage_is_read_or_refused_never_more(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("garbage") / "some.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError):
        read_blimp(file)


def test_a_missing_or_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_blimp(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no \.jsonl file"):
        read_blimp(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no pairs"):
        read_blimp(tmp_path)
    with pytest.raises(UserError, match="limit of 0"):
        read_blimp(tmp_path, limit=0)


# The command line.


def test_the_command_prints_a_table_or_json(
    tokenizer: Tokenizer, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "model"
    save_model(grown(tokenizer, "gpt2"), run, tokenizer=tokenizer, extra={"objective": "hybrid"})
    asked = ["pairs", str(run), str(folder), "--precision", "float32"]
    assert main(asked) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("mean of 3, by pseudo-log-likelihood")
    assert main([*asked, "--json", "--limit", "1", "--method", "causal"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["pairs"] == 3 and plain["method"] == "log-likelihood from left to right"
    scores = bertkin.pairs(run, folder, limit=1, method="causal", precision="float32")
    assert {name: round(value, 5) for name, value in scores.paradigms.items()} == plain["paradigms"]
    for arguments, complaint in (
        (["--method", "decoder"], "choose masked or causal"),
        (["--limit", "0"], "limit of 0"),
        (["--method", "causal", "--within-word"], "--within-word"),
    ):
        assert main([*asked, *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and complaint in err
    assert main(["pairs", str(run), str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_run_says_what_it_learnt_and_is_asked_so(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\n\n".join(TEXT * 20))
    options: dict[str, Any] = {"model.layers": 1, "model.hidden": 32, "model.heads": 2, "train.steps": 1}
    options |= {"train.batch_tokens": 256, "train.length": 32, "train.threads": 1, "train.eval_rows": 2}
    for preset, more, told, method in (
        ("bart-tiny", {"objective.noise": "mass"}, ("denoise", "mass"), "given an empty input"),
        ("bert-tiny", {"objective.kind": "causal"}, ("causal", None), "from left to right"),
    ):
        run = tmp_path / preset
        bertkin.pretrain(str(tmp_path / "corpus.txt"), out=run, preset=preset, **options, **more)
        loaded = bertkin.load(run)
        assert (loaded.objective, loaded.noise) == told
        assert method in bertkin.pairs(loaded, folder).method
