"""Prompting: a model that knows the answers gives them, whichever way it is asked, and what cannot be asked is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import bertkin
from bertkin.cli import main
from bertkin.errors import UserError
from bertkin.models.heads import LanguageModel
from bertkin.tasks.asker import FRAME, Plan, fitted, likelihoods, open_asker, whole, written
from bertkin.tasks.continuations import score_blanks, score_continuations
from bertkin.tasks.fill import Loaded, load
from bertkin.tasks.patterns import Example, Pattern
from bertkin.tasks.prompt import evaluate_prompts, normalised
from bertkin.tasks.prompted import Prompted, Run, judged
from bertkin.text.tokenizer import Tokenizer, train_tokenizer

from .support import TEXT, filler, grown, writer

ANIMALS, TOOLS = ("dog", "cat", "cow", "horse", "goat"), ("hammer", "saw", "drill", "rake", "axe")
KNOWN = [Example(word, "animal") for word in ANIMALS] + [Example(word, "tool") for word in TOOLS]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has read nothing but which words are animals and which are tools, and writes and fills blanks."""
    home = tmp_path_factory.mktemp("home")
    lines = [f"{one.input} => {one.output}" for _ in range(200) for one in KNOWN]
    (home / "corpus.txt").write_text("\n".join(lines))
    (home / "known.tsv").write_text("input\toutput\n" + "".join(f"{one.input}\t{one.output}\n" for one in KNOWN))
    options: dict[str, Any] = {"model.layers": 2, "model.hidden": 64, "model.heads": 2, "objective.kind": "hybrid"}
    options |= {"train.steps": 80, "train.lr": 3e-3, "train.batch_tokens": 512, "train.length": 64}
    options |= {"train.threads": 1, "train.eval_rows": 4, "data.documents": "line"}
    bertkin.pretrain(str(home / "corpus.txt"), out=home / "run", preset="gpt2-tiny", **options)
    return home


@pytest.fixture(scope="module")
def knowing(home: Path) -> Loaded:
    return load(home / "run")


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_tokenizer(TEXT * 3, vocab_size=90)


# What a model knows.


def test_a_model_that_knows_the_answers_chooses_them_writes_them_and_fills_them_in(knowing: Loaded) -> None:
    for how in (
        {},
        {"normalise": "length"},
        {"normalise": "calibrated"},
        {"pattern": "{input} => [MASK]"},
        {"score": "generation"},
    ):
        prompted = evaluate_prompts([knowing], KNOWN, shots=[0], **how)  # type: ignore[arg-type]
        assert prompted.mean(str(knowing.folder), 0)[0] >= 0.9, how
    assert prompted.measures[:2] == ["exact", "f1"]


def test_examples_come_before_the_input_and_may_mislead(knowing: Loaded) -> None:
    """Trained on single lines, it takes the prompt for something else: what is shown is read."""
    told = evaluate_prompts([knowing], KNOWN, shots=[0, 4], seeds=2)
    assert told.mean(told.models[0], 4)[0] < told.mean(told.models[0], 0)[0]
    assert [(run.shots, run.seed) for run in told.runs] == [(0, 0), (4, 0), (4, 1)]


def test_a_model_named_several_times_is_told_apart(knowing: Loaded) -> None:
    prompted = evaluate_prompts([knowing] * 3, KNOWN, shots=[0], limit=2)
    assert prompted.models == [str(knowing.folder), f"{knowing.folder} (2)", f"{knowing.folder} (3)"]


def test_a_run_is_the_same_again_and_rows_do_not_depend_on_each_other(knowing: Loaded) -> None:
    ask: Callable[..., Any] = lambda **how: evaluate_prompts([knowing], KNOWN, shots=[2], seeds=2, **how).runs  # noqa: E731
    assert ask() == ask()
    test = KNOWN[::-1]
    both = evaluate_prompts([knowing], KNOWN, test=test, shots=[2], seeds=2).runs
    assert both == evaluate_prompts([knowing], KNOWN, test=KNOWN, shots=[2], seeds=2).runs


def test_a_word_may_stand_for_each_output(home: Path, knowing: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    numbered = [Example(row.input, "1" if row.output == "animal" else "0") for row in KNOWN]
    words = {"1": "animal", "0": "tool"}
    told = evaluate_prompts([knowing], numbered, shots=[0, 2], seeds=1, choices=words)
    assert told.runs == evaluate_prompts([knowing], KNOWN, shots=[0, 2], seeds=1, choices=["animal", "tool"]).runs
    file = home / "numbered.tsv"
    file.write_text("input\toutput\n" + "".join(f"{row.input}\t{row.output}\n" for row in numbered))
    capsys.readouterr()
    assert (
        main(["prompt", str(home / "run"), "--examples", str(file), "--shots", "0", "--choices", "1=animal,0=tool"])
        == 0
    )
    assert "2 choices" in capsys.readouterr().out
    for choices, complaint in (
        ("1=animal", "no word for the output '0'; give 0=WORD, too"),
        ("1=animal,0=animal", "one word stands for two outputs"),
        ("1=animal,tool", "write it as 1=great,0=bad"),
        ("1=animal,0=", "write it as 1=great,0=bad"),
    ):
        assert main(["prompt", str(home / "run"), "--examples", str(file), "--choices", choices]) == 2
        assert complaint in capsys.readouterr().err


# How choices are compared.

LOGS = arrays(np.float64, (3, 4), elements=st.floats(-50, 0))


@given(scores=LOGS, free=LOGS)
def test_calibration_divides_by_what_an_empty_input_gives(scores: np.ndarray, free: np.ndarray) -> None:
    p, p_free = (np.exp(logs) / np.exp(logs).sum(axis=1, keepdims=True) for logs in (scores, free))
    q = np.stack([np.diag(1 / weights) @ chances for weights, chances in zip(p_free, p, strict=True)])
    q /= q.sum(axis=1, keepdims=True)
    found = np.exp(normalised(scores, np.ones((3, 4), np.int64), "calibrated", free))
    np.testing.assert_allclose(found, q, atol=1e-9)
    even = np.exp(normalised(scores, np.ones((3, 4), np.int64), "calibrated", scores))
    np.testing.assert_allclose(even, 0.25, atol=1e-9)  # an input that says nothing gives no choice an advantage


@given(scores=LOGS, tokens=arrays(np.int64, (3, 4), elements=st.integers(1, 9)))
def test_length_divides_by_tokens_and_none_leaves_the_sum(scores: np.ndarray, tokens: np.ndarray) -> None:
    np.testing.assert_array_equal(normalised(scores, tokens, "length") * tokens, scores / tokens * tokens)
    assert normalised(scores, tokens, "none") is scores


# How answers are judged.


def test_written_answers_are_judged_as_squad_does_and_translations_by_bleu_too() -> None:
    written, wanted = ["The cat sat on the mat.", "b c"], ["cat sat on mat", "b d"]
    assert judged(written, wanted) == {"exact": 0.5, "f1": 0.75}
    pytest.importorskip("sacrebleu")
    long = ["the cat sat on the mat today"] * 2
    assert judged(long, long, translated=True) == {"exact": 1, "f1": 1, "bleu": pytest.approx(1)}
    assert 0 < judged(long, ["the cat sat on the mat", long[1]], translated=True)["bleu"] < 1


# The context.


def test_examples_that_do_not_fit_are_left_out_the_first_ones_first_and_counted(words: Tokenizer) -> None:
    model = filler(grown(words, "gpt2"), words)
    rows = [Example("the " * n, "cats" if n % 2 else "dogs") for n in range(3, 9)]
    prompted = evaluate_prompts([model], rows, shots=[0, 1, 5], seeds=1, pattern="{input} {output}")
    few, some, many = prompted.runs
    assert few.left_out == some.left_out == 0
    assert 0 < many.left_out < 5 * 6
    assert "of 30 examples, 5 a row," in str(prompted) and "did not fit" in str(prompted)
    assert prompted.to_mapping()["means"][2]["left_out"] == many.left_out


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(1, 20), min_size=2, max_size=8), order=st.randoms(use_true_random=False))
def test_what_is_kept_are_the_last_examples_as_many_as_fit(words: Tokenizer, sizes: list[int], order: Any) -> None:
    rows = [Example("the " * n, "cats" if n % 2 else "dogs") for n in sizes]
    plan = Plan("", Pattern("{input} "), rows, rows[:1], True, ("cats", "dogs"))
    asker = open_asker(filler(grown(words, "gpt2"), words), plan, "auto")
    wanted = order.sample(range(len(rows)), len(rows))
    (kept,) = fitted(asker, plan, [wanted])
    assert kept == wanted[len(wanted) - len(kept) :]

    def size(some: list[int]) -> int:
        before, _ = whole(plan, some, rows[0].input)
        return FRAME + len(words.encode(before)) + max(len(words.encode(choice)) for choice in plan.choices)

    assert size(kept) <= 48 and (kept == wanted or size(wanted[len(wanted) - len(kept) - 1 :]) > 48)


def test_an_input_longer_than_the_context_is_refused_with_both_lengths(words: Tokenizer) -> None:
    model = filler(grown(words, "gpt2"), words)
    rows = [Example("the", "cats"), Example("the " * 60, "dogs", "some.tsv:3")]
    with pytest.raises(UserError, match=r"some.tsv:3: task, input and answer have 6\d tokens, the model reads 48"):
        evaluate_prompts([model], rows, shots=[0], score="likelihood")


# Every member.


@pytest.mark.parametrize("pattern", ["{input} {output}", "{input} [MASK] on the table.", "{input} {output}."])
@pytest.mark.parametrize(
    ("family", "objective"),
    [("gpt2", None), ("gpt2", "hybrid"), ("bert", None), ("modern", "unilm"), ("llama", "prefix"), ("bart", "denoise"),
     ("bart", None), ("t5", "denoise"), ("t5", None)],
)  # fmt: skip
def test_every_member_that_writes_or_fills_blanks_can_be_asked(
    words: Tokenizer, family: str, objective: str | None, pattern: str
) -> None:
    tokens = train_tokenizer(TEXT * 3, vocab_size=93, sentinels=3) if family == "t5" else words
    model = filler(grown(tokens, family), tokens, objective)
    rows = [Example("the cats", "sleep"), Example("the dogs", "are sleeping"), Example("the table", "sleep")]
    chosen = evaluate_prompts([model], rows, shots=[0, 1], seeds=1, pattern=pattern, score="likelihood")
    assert 0 <= chosen.mean(".", 1)[0] <= 1
    if family != "bert":
        answers = evaluate_prompts([model], rows, shots=[0, 1], seeds=1, pattern=pattern, score="generation")
        assert answers.measures[:2] == ["exact", "f1"]


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_an_encoder_decoder_s_answer_ends_where_its_blank_does(words: Tokenizer, family: str) -> None:
    """BART goes on with the text before the blank, T5 with <extra_id_0>, and both stop where the pattern goes on."""
    tokens = train_tokenizer(TEXT * 3, vocab_size=93, sentinels=3) if family == "t5" else words
    model = filler(grown(tokens, family), tokens, "denoise")
    rows = [Example("the cats", "sleep"), Example("the dogs", "are sleeping")]
    from bertkin.tasks.prompt import _plan

    plan = _plan(rows, "", None, "{input} [MASK] on the table.", "generation", "none", None, ("input", "output"), None)
    asker = open_asker(model, replace(plan, max_new_tokens=8), "auto")
    assert asker.blank
    prompts = [
        (f"{one} ", " on the table.") for one in ("the cats", "the dogs", "the cats", "the grandmother who reads")
    ]
    answers = written(asker, replace(plan, max_new_tokens=8), prompts)
    assert answers == [written(asker, replace(plan, max_new_tokens=8), [one])[0] for one in prompts]
    assert answers[0] == answers[2]
    for text in answers:
        assert "<extra_id_1>" not in text and " on the table." not in text


def test_who_fills_in_as_many_words_as_there_are_blanks_does_not_write_an_answer(words: Tokenizer) -> None:
    rows = [Example("the cats", "sleep"), Example("the dogs", "are sleeping")]
    model = filler(grown(words, "bart"), words, "denoise", "mass")
    with pytest.raises(UserError, match=r"nobody knows how many; give --score likelihood"):
        evaluate_prompts([model], rows, shots=[0], score="generation")
    evaluate_prompts([model], rows, shots=[0], score="likelihood")
    for noise in ("drop", "deletion"):
        evaluate_prompts([filler(grown(words, "bart"), words, "denoise", noise)], rows, shots=[0], score="generation")


# What is refused.


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"shots": [10]}, "10 shots, but only 9 examples besides the row that is asked"),
        ({"shots": [11], "test": KNOWN}, "11 shots, but only 10 examples"),
        ({"shots": [-1]}, "--shots"),
        ({"seeds": 0}, "0 seeds"),
        ({"limit": 0}, "a limit of 0 rows"),
        ({"max_new_tokens": 0}, "no room for an answer"),
        ({"choices": ["animal"]}, "one choice alone"),
        ({"choices": ["animal", "tol"]}, "'tool' is not among the choices; did you mean tol?"),
        ({"choices": ["animal", " "]}, "an empty choice"),
        ({"normalise": "lenght"}, "did you mean length?"),
        ({"score": "generation", "choices": ["animal", "tool"]}, "written answers are not chosen"),
        ({"score": "generation", "normalise": "length"}, "written answers are not chosen"),
        ({"score": "generation", "pattern": "{output}: {input}"}, "the input stands after the output"),
        ({"test": []}, "no examples"),
    ],
)
def test_what_cannot_be_asked_is_said(knowing: Loaded, how: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        evaluate_prompts([knowing], KNOWN, **{"shots": [0], **how})
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_choices_that_begin_with_one_another_are_refused_from_left_to_right_alone(words: Tokenizer) -> None:
    rows = [Example("the cats", "the mat"), Example("the dogs", "the mat table")] * 2
    gpt, bert = filler(grown(words, "gpt2"), words), filler(grown(words, "bert"), words)
    with pytest.raises(UserError, match=r"the choice 'the mat table' begins with the choice 'the mat'.*'\{output\}\.'"):
        evaluate_prompts([gpt], rows, shots=[0], pattern="{input} {output}")
    evaluate_prompts([gpt], rows, shots=[0], pattern="{input} {output}.")
    evaluate_prompts([bert], rows, shots=[0], pattern="{input} {output}")
    alike = [Example("the cats", "The mat"), Example("the dogs", "the mat")]
    with pytest.raises(UserError, match="cannot tell the choices 'The mat' and 'the mat' apart"):
        evaluate_prompts([bert], alike, shots=[0], score="likelihood")


def test_too_many_choices_are_refused(knowing: Loaded) -> None:
    rows = [Example(f"a{n}", f"b{n}") for n in range(101)]
    with pytest.raises(UserError, match="101 different outputs are too many"):
        evaluate_prompts([knowing], rows, shots=[0], score="likelihood")


def test_a_model_that_cannot_be_prompted_is_refused(words: Tokenizer) -> None:
    def ask(model: LanguageModel, **how: Any) -> Prompted:
        return evaluate_prompts([filler(model, words)], KNOWN, shots=[0], **how)

    with pytest.raises(UserError, match="finds replaced tokens and cannot be prompted"):
        ask(grown(words, "electra"))
    with pytest.raises(UserError, match=r"fills blanks and cannot write.*--score likelihood"):
        ask(grown(words, "bert"), score="generation")
    with pytest.raises(UserError, match="no model"):
        evaluate_prompts([], KNOWN)


def test_weights_that_are_no_numbers_are_said(words: Tokenizer) -> None:
    model = grown(words, "gpt2")
    model.stack.embeddings.tokens.data.fill_(float("nan"))
    rows = [Example("the cats", "sleep"), Example("the dogs", "are sleeping")]
    with pytest.raises(UserError, match="score is not a number"):
        evaluate_prompts([filler(model, words)], rows, shots=[0], score="likelihood")


# What comes out.


def outcome(models: int = 1) -> Prompted:
    runs = [
        Run(f"m{m}", 10 ** (6 + m), shots, seed, {"accuracy": 0.5 + 0.1 * seed + 0.05 * shots}, shots * (m == 0))
        for m in range(models)
        for shots in (0, 2)
        for seed in range(3 if shots else 1)
    ]
    baselines = {"majority": 0.6, "guessing": 0.5}
    return Prompted("A task", "{input} {output}", "by likelihood", 10, ("a", "b"), baselines, tuple(runs))


def test_a_table_has_means_and_deviations_over_seeds_and_what_to_compare_with() -> None:
    lines = str(outcome(2)).splitlines()
    assert lines[:3] == ["task     A task", "pattern  '{input} {output}'", "asked    10 rows, by likelihood"]
    assert lines[4].split() == ["parameters", "0", "shots", "2", "shots"]
    assert lines[5].split() == ["m0", "1.0M", "50.0%", "70.0%", "±", "10.0"]
    assert lines[6].split()[:2] == ["m1", "10.0M"]
    assert lines[7].split() == ["majority", "60.0%", "60.0%"]
    assert lines[-1] == "m0: of 60 examples, 2 a row, 6 did not fit and were left out"
    plain = json.loads(json.dumps(outcome(2).to_mapping()))
    assert plain["means"][1] == {
        "model": "m0", "parameters": 10**6, "shots": 2, "accuracy": 0.7, "accuracy_deviation": 0.1, "left_out": 6
    }  # fmt: skip
    assert len(plain["runs"]) == 8


@pytest.mark.parametrize("models", [1, 3])
def test_a_picture_is_drawn_over_shots_and_over_sizes(tmp_path: Path, models: int) -> None:
    pytest.importorskip("matplotlib")
    outcome(models).plot(tmp_path / "new" / "some.svg")
    text = (tmp_path / "new" / "some.svg").read_text()
    assert text.count('id="axes_') == (2 if models > 1 else 1)
    outcome(models).plot(tmp_path / "some.png")
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="no picture is named so"):
        outcome(models).plot(tmp_path / "some.xyz")


# The command line.


def test_the_command_asks_several_models_and_prints_a_table_or_json(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    known, run = str(home / "known.tsv"), str(home / "run")
    capsys.readouterr()
    common = ["prompt", run, run, "--examples", known, "--shots", "0,1", "--seeds", "2", "--limit", "6"]
    assert main([*common, "--task", "Which is it?", "--plot", str(tmp_path / "p.png")]) == 0
    text = capsys.readouterr().out
    assert "Which is it?" in text and f"{run} (2)" in text and "majority" in text and "0 shots" in text
    assert (tmp_path / "p.png").exists()
    assert main([*common, "--json", "--normalise", "length", "--choices", "animal,tool", "--per-row"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["rows"] == 6 and len(plain["means"]) == 4 and plain["choices"] == ["animal", "tool"]
    again = bertkin.prompt(run, known, shots=[0], limit=6).runs[0]
    assert again.scores["accuracy"] == pytest.approx(plain["means"][0]["accuracy"], abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--shots", "one"], "--shots: 'one' is no list of numbers"),
        (["--plot", "out.xyz"], "out.xyz: no picture is named so"),
        (["--columns", "text"], "--columns: 'text' does not name two columns"),
        (["--columns", "text,label"], "no column 'text'"),
        (["--pattern", "is it?"], "the pattern has no {input}"),
        (["--test", "nowhere.tsv"], "nowhere.tsv"),
    ],
)
def test_a_mistake_is_one_line(
    home: Path, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["prompt", str(home / "run"), "--examples", str(home / "known.tsv"), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("bertkin: ") and err.count("\n") == 1 and complaint in err


def test_without_a_model_or_examples_nothing_is_asked(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompt", "--examples", str(home / "known.tsv")]) == 2
    assert "no model" in capsys.readouterr().err
    empty = home / "empty.tsv"
    empty.write_text("")
    assert main(["prompt", str(home / "run"), "--examples", str(empty)]) == 2
    assert str(empty) in capsys.readouterr().err


def test_what_follows_the_output_in_the_pattern_is_scored_with_it(words: Tokenizer) -> None:
    """From left to right; a blank is scored alone, in sight of it."""
    gpt, bert = filler(grown(words, "gpt2"), words), filler(grown(words, "bert"), words)
    rows, pattern = [Example("the cats", "sleep"), Example("the dogs", "are sleeping")], Pattern("{input} ", ".")
    plan = Plan("", pattern, rows, rows, False, ("sleep", "are sleeping"))
    prompts = [("the cats ", ".")]
    for model, texts in ((gpt, ("sleep.", "are sleeping.")), (bert, plan.choices)):
        scores, tokens = likelihoods(open_asker(model, plan, "auto"), plan, prompts)
        assert tokens.tolist() == [[len(words.encode(text)) for text in texts]]
        expected = (
            score_continuations(writer(gpt.model, words), ["the cats "] * 2, texts)
            if model is gpt
            else score_blanks(bert, prompts * 2, texts)
        )
        np.testing.assert_allclose(scores[0], expected.scores, atol=1e-3)
