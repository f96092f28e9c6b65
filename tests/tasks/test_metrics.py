"""Metrics: to the numbers of scikit-learn and SciPy where they have them, and to cases worked by hand where not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from bertkin.errors import MissingExtra, UserError
from bertkin.tasks.comparing import best_of, cmrc_exact, cmrc_overlap, exact, normalised, overlap
from bertkin.tasks.metrics import METRICS, by_type, confusion, constant, measure
from bertkin.tasks.significance import difference, interval, mcnemar
from bertkin.tasks.task import Example, Task, joined

TWO, THREE = Task("class", 1, ("no", "yes")), Task("class", 1, ("a", "b", "c"))
SCORE = Task("score", 2, low=0, high=5)
NER = Task("tokens", 1, ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"), scheme="iob2")
SPAN = Task("span", 2)


def labelled(labels: Any) -> list[Example]:
    return [Example(("x",), label) for label in labels]


def tagged(*sentences: str) -> tuple[list[Example], list[list[int]]]:
    """Examples from "gold|said" pairs of tags."""
    examples, said = [], []
    for sentence in sentences:
        gold, _, other = sentence.partition("|")
        tags = [NER.labels.index(tag) for tag in gold.split()]
        examples.append(Example(("x",), tuple((at, at + 1, tag) for at, tag in enumerate(tags))))
        said.append([NER.labels.index(tag) for tag in other.split()])
    return examples, said


pairs_of = st.integers(2, 40).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 2), min_size=n, max_size=n) for _ in range(2)])
)


@given(pairs_of)
def test_classes_are_counted_as_scikit_learn_counts(pair: tuple[list[int], list[int]]) -> None:
    gold, said = pair
    scores = measure(THREE, labelled(gold), said)
    assert next(iter(scores)) == "accuracy"
    assert scores["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(gold, said))
    macro = sklearn.metrics.f1_score(gold, said, average="macro", zero_division=0)
    assert scores["f1_macro"] == pytest.approx(macro)
    assert scores["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(gold, said))
    table = sklearn.metrics.confusion_matrix(gold, said, labels=[0, 1, 2])
    assert (confusion(THREE, labelled(gold), said) == table).all()


@given(pairs_of, st.sampled_from(["", "no", "yes"]))
def test_f1_of_two_classes_is_of_the_second_or_of_the_one_that_is_named(
    pair: tuple[list[int], list[int]], positive: str
) -> None:
    gold, said = [min(g, 1) for g in pair[0]], [min(s, 1) for s in pair[1]]
    scores = measure(Task("class", 1, ("no", "yes"), positive=positive), labelled(gold), said)
    how: Any = {"pos_label": 0 if positive == "no" else 1, "zero_division": 0}
    assert scores["f1"] == pytest.approx(sklearn.metrics.f1_score(gold, said, **how))
    assert scores["precision"] == pytest.approx(sklearn.metrics.precision_score(gold, said, **how))
    assert scores["recall"] == pytest.approx(sklearn.metrics.recall_score(gold, said, **how))
    assert scores["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(gold, said))


@pytest.mark.parametrize(
    ("labels", "positive"),
    [
        (("0", "1"), "1"),
        (("equivalent", "not_equivalent"), "equivalent"),
        (("not_equivalent", "equivalent"), "equivalent"),
        (("Correct", "not correct"), "Correct"),
        (("correct", "incorrect"), "incorrect"),
        (("entailment", "not entailment"), "entailment"),
        (("ham", "spam"), "spam"),
        (("no", "nowhere"), "nowhere"),
        (("a", "b", "c"), ""),
    ],
)
def test_a_class_that_only_denies_the_other_is_not_the_positive_one(labels: tuple[str, ...], positive: str) -> None:
    task = Task("class", 1, labels)
    assert task.positive == positive
    assert Task.from_mapping(task.to_mapping()) == task


def test_wide_punctuation_is_passed_over_where_words_have_no_blanks() -> None:
    assert exact("北京。", "北京") == exact("北京", "《北京》") == 1
    assert exact("北京", "南京") == 0 and exact("the cat.", "Cat") == 1


def test_a_positive_class_that_is_none_is_said() -> None:
    with pytest.raises(UserError, match="no class 'maybe'; choose no or yes"):
        Task("class", 1, ("no", "yes"), positive="maybe")
    with pytest.raises(UserError, match="only of two classes"):
        Task("class", 1, ("a", "b", "c"), positive="a")


@given(st.lists(st.tuples(st.sets(st.integers(0, 2)), st.sets(st.integers(0, 2))), min_size=1, max_size=20))
def test_several_classes_at_once_are_counted_as_scikit_learn_counts(rows: list[tuple[set[int], set[int]]]) -> None:
    task = Task("classes", 1, ("a", "b", "c"))
    gold = np.array([[at in g for at in range(3)] for g, _ in rows])
    said = np.array([[at in s for at in range(3)] for _, s in rows])
    scores = measure(task, labelled([tuple(sorted(g)) for g, _ in rows]), [s for _, s in rows])
    assert scores["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(gold, said))
    assert scores["f1_micro"] == pytest.approx(sklearn.metrics.f1_score(gold, said, average="micro", zero_division=0))
    seen = [at for at in range(3) if gold[:, at].any() or said[:, at].any()]
    if seen:
        each = sklearn.metrics.f1_score(gold, said, average=None, zero_division=0)
        assert scores["f1_macro"] == pytest.approx(each[seen].mean())


numbers = st.integers(-40, 40).map(lambda n: n / 8)


@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=40))
def test_scores_are_counted_as_scipy_counts(rows: list[tuple[float, float]]) -> None:
    gold, said = (list(column) for column in zip(*rows, strict=True))
    scores = measure(SCORE, labelled(gold), said)
    if len(set(gold)) > 1 and len(set(said)) > 1:
        assert scores["pearson"] == pytest.approx(scipy.stats.pearsonr(gold, said).statistic, abs=1e-7)
        assert scores["spearman"] == pytest.approx(scipy.stats.spearmanr(gold, said).statistic, abs=1e-7)
    else:
        assert (scores["pearson"], scores["spearman"], scores["pearson_spearman"]) == (0, 0, 0)
    assert scores["pearson_spearman"] == pytest.approx((scores["pearson"] + scores["spearman"]) / 2, abs=1e-7)
    assert scores["mean_squared_error"] == pytest.approx(sklearn.metrics.mean_squared_error(gold, said))
    assert scores["mean_absolute_error"] == pytest.approx(sklearn.metrics.mean_absolute_error(gold, said))


def test_pearson_keeps_its_digits_far_from_zero() -> None:
    gold = [1e6 + at for at in range(50)]
    said = [1e6 + at + (at % 3) * 0.1 for at in range(50)]
    exactly = scipy.stats.pearsonr(gold, said).statistic
    assert measure(SCORE, labelled(gold), said)["pearson"] == pytest.approx(exactly, abs=1e-9)


@pytest.mark.parametrize(
    ("sentence", "right", "wrong", "missed"),
    [
        ("O B-PER I-PER O|O B-PER I-PER O", 1, 0, 0),
        ("O B-PER I-PER O|O B-PER O O", 0, 1, 1),  # an edge is off: wrong and missed
        ("O B-PER I-PER O|O B-LOC I-LOC O", 0, 1, 1),  # the type is off
        ("O B-PER I-PER O|O I-PER I-PER O", 1, 0, 0),  # conlleval forgives an I that begins
        ("B-PER B-PER O|B-PER I-PER O", 0, 1, 2),
        ("B-PER I-LOC|B-PER I-PER", 0, 1, 2),  # a change of type begins another
        ("O O|O O", 0, 0, 0),
    ],
)
def test_entities_are_counted_as_conlleval_counts(sentence: str, right: int, wrong: int, missed: int) -> None:
    examples, said = tagged(sentence)
    assert METRICS["span_f1"].rows(NER, examples, said).tolist() == [[right, wrong, missed]]


def test_the_table_of_types_adds_up() -> None:
    examples, said = tagged(
        "B-PER I-PER O B-LOC|B-PER I-PER O B-LOC", "B-LOC O B-PER|B-LOC B-LOC O", "O O O O B-LOC|O O O O O"
    )
    scores = measure(NER, examples, said)
    assert scores == pytest.approx(
        {
            "span_f1": 2 * 3 / (4 + 5),
            "accuracy": 9 / 12,
            "span_precision": 3 / 4,
            "span_recall": 3 / 5,
        }
    )
    table = by_type(NER, examples, said)
    assert table["PER"] == pytest.approx((1.0, 1 / 2, 2 / 3, 2))
    assert table["LOC"] == pytest.approx((2 / 3, 2 / 3, 2 / 3, 3))


def test_texts_are_compared_as_squad_compares() -> None:
    assert normalised("The  cat's, a Hat!") == "cats hat"
    assert exact("the Denver Broncos.", "Denver Broncos") == 1
    assert overlap("in the 10th century", "10th and 11th centuries") == pytest.approx(2 * 1 / (3 + 4))
    assert overlap("", "Paris") == 0
    assert overlap("", "") == 1
    assert overlap("北京大學", "北京") == pytest.approx(2 * 2 / 6)  # characters where there are no blanks


def test_chinese_texts_are_compared_as_cmrc_compares() -> None:
    assert cmrc_exact("《三国志》", "三国志") == 1
    assert cmrc_exact("三国 志", "三国志") == 0
    assert cmrc_overlap("光荣和ω-force开发", "光荣和ω-force") == pytest.approx(2 * 4 / (6 + 4))
    # The longest common piece counts, not the characters in common: 北京 of five and four characters.
    assert cmrc_overlap("北京的大学", "大北京学") == pytest.approx(2 * 2 / (5 + 4))
    assert cmrc_overlap("南", "北") == 0


def test_the_best_of_several_answers_counts_and_no_answer_is_an_answer() -> None:
    context = "The Normans came from Denmark, Iceland and Norway."
    places = tuple((context.index(a), context.index(a) + len(a)) for a in ("Denmark", "Denmark, Iceland and Norway"))
    examples = [Example(("Where from?", context), places), Example(("Who sang?", context), ())]
    assert examples[0].references == ("Denmark", "Denmark, Iceland and Norway")
    assert measure(SPAN, examples, ["Denmark", ""]) == {"answer_f1": 1, "exact_match": 1}
    assert measure(SPAN, examples, ["", "Denmark"]) == {"answer_f1": 0, "exact_match": 0}
    assert best_of(cmrc_exact, "A", ("A",)) == best_of(cmrc_overlap, "A", ("A", "。")) == 1  # no article in Chinese
    assert best_of(exact, "", ("the", "Denmark")) == 0  # a reference that says nothing does not count beside one


def test_examples_without_a_label_are_passed_over() -> None:
    examples = [*labelled([0, 1]), Example(("x",), None)]
    assert measure(TWO, examples, [0, 0, 1])["accuracy"] == 0.5
    with pytest.raises(UserError, match="no example has a label"):
        measure(TWO, [Example(("x",), None)], [0])


@pytest.mark.parametrize(
    ("task", "name", "mend"),
    [(TWO, "acuracy", "accuracy"), (TWO, "pearson", "choose one of"), (THREE, "f1", "choose one of")],
)
def test_a_metric_that_is_none_of_the_task_names_those_that_are(task: Task, name: str, mend: str) -> None:
    with pytest.raises(UserError, match=mend):
        measure(task, labelled([0, 1]), [0, 1], [name])


def test_a_score_that_is_not_a_number_is_said() -> None:
    with pytest.raises(UserError, match="not a number"):
        measure(SCORE, labelled([1.0, 2.0]), [1.0, float("nan")])


def test_a_run_that_learnt_nothing_is_seen() -> None:
    assert constant(TWO, [1, 1, 1]) and not constant(TWO, [1, 0, 1]) and not constant(TWO, [1])
    assert constant(NER, [[0, 0], [0]]) and not constant(NER, [[0], [1]])
    assert constant(SCORE, [2.0, 2.0 + 1e-9]) and not constant(SCORE, [2.0, 2.1])
    assert constant(SPAN, ["", ""]) and not constant(SPAN, ["", "x"])


# How sure.


def test_the_interval_of_a_share_is_that_of_the_binomial() -> None:
    random = np.random.default_rng(0)
    said = (random.random(2000) < 0.8).astype(int)
    low, high = interval("accuracy", TWO, labelled([1] * 2000), list(said), draws=2000)
    share = said.mean()
    half = 1.96 * math.sqrt(share * (1 - share) / 2000)
    assert low == pytest.approx(share - half, abs=0.003)
    assert high == pytest.approx(share + half, abs=0.003)


@pytest.mark.parametrize("name", ["pearson", "spearman", "pearson_spearman"])
def test_intervals_of_correlations_hold_them_and_summed_ones_are_redrawn_ones(name: str) -> None:
    random = np.random.default_rng(1)
    gold = random.normal(size=200)
    said = list(gold + random.normal(size=200))
    examples = labelled(list(gold))
    low, high = interval(name, SCORE, examples, said, draws=300)
    assert low < measure(SCORE, examples, said, [name])[name] < high
    drawn = np.random.default_rng(0).integers(0, 200, (300, 200))
    again = [measure(SCORE, [examples[i] for i in d], [said[i] for i in d], [name])[name] for d in drawn]
    assert (low, high) == pytest.approx(tuple(np.quantile(again, [0.025, 0.975])), abs=1e-9)


@settings(max_examples=25)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 5))
def test_mcnemar_is_the_binomial_test(one: int, two: int, both: int) -> None:
    right_one = [True] * one + [False] * two + [True] * both
    right_two = [False] * one + [True] * two + [True] * both
    known = scipy.stats.binomtest(min(one, two), one + two).pvalue if one + two else 1.0
    assert mcnemar(right_one, right_two) == pytest.approx(known)


def test_swapping_predictions_finds_what_mcnemar_finds() -> None:
    gold = [1] * 300
    one = [1] * 220 + [0] * 80
    two = [1] * 200 + [0] * 20 + [1] * 45 + [0] * 35
    found = difference("accuracy", TWO, labelled(gold), one, two)
    assert (found.one, found.two) == pytest.approx((220 / 300, 245 / 300))
    assert found.p == pytest.approx(mcnemar(np.array(one) == 1, np.array(two) == 1), abs=0.005)
    assert "more than chance" in str(found)


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews"])
def test_equal_models_do_not_differ(name: str) -> None:
    gold = [0, 1] * 50
    said = [0, 1, 1, 0] * 25
    assert difference(name, TWO, labelled(gold), said, said, rounds=200).p == 1.0


def test_by_luck_a_difference_is_found_no_more_often_than_it_says() -> None:
    random = np.random.default_rng(2)
    gold = labelled(list(random.normal(size=60)))
    values = np.array([example.label for example in gold])
    found = []
    for seed in range(60):
        one, two = (list(values + random.normal(size=60)) for _ in range(2))
        found.append(difference("pearson", SCORE, gold, one, two, rounds=200, seed=seed).p)
    assert sum(p < 0.1 for p in found) <= 14  # 6 expected


def test_metrics_of_texts_say_which_extra_they_need() -> None:
    task = Task("sequence", 1, metric="exact_match")
    examples = [Example(("in",), "the cat sat on the mat"), Example(("in",), "a dog ran home today")]
    said = ["the cat sat on the mat", "a dog ran away today"]
    assert measure(task, examples, said)["exact_match"] == 0.5
    for name, module in (("bleu", "sacrebleu"), ("chrf", "sacrebleu"), ("rougeL", "rouge_score")):
        try:
            __import__(module)
        except ImportError:
            with pytest.raises(MissingExtra, match="text-metrics"):
                measure(task, examples, said, [name])
        else:
            assert 0.5 < measure(task, examples, said, [name])[name] < 1


def test_texts_of_any_script_are_compared_by_their_words() -> None:
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    task = Task("sequence", 1, metric="exact_match")
    for gold, said in (
        ("старая кошка спит на окне весь день", "старая кошка спит на окне каждый день"),
        ("那只老猫整天在窗台上睡觉", "那只老猫整天在地板上睡觉"),
    ):
        for name in ("rougeL", "bleu"):
            assert 0.3 < measure(task, [Example(("in",), gold)], [said], [name])[name] < 1
    import sacrebleu

    weak = [
        ("the cat sat on the mat", "a cat is here"),
        ("one two three four", "one two five"),
    ]  # no run of three in common
    examples = [Example(("in",), gold) for gold, _ in weak]
    theirs = sacrebleu.corpus_bleu([said for _, said in weak], [[gold for gold, _ in weak]]).score
    assert measure(task, examples, [said for _, said in weak], ["bleu"])["bleu"] == pytest.approx(theirs / 100)
    assert theirs > 0
    from rouge_score.rouge_scorer import RougeScorer

    one, two = "The cat_s don't sit on 3.5 mats!", "A cat can't sit on 3 mats."
    theirs = RougeScorer(["rougeL"]).score(one, two)["rougeL"].fmeasure
    assert measure(task, [Example(("in",), one)], [two], ["rougeL"])["rougeL"] == pytest.approx(theirs)


def test_many_classes_cost_their_table_alone() -> None:
    """Matthews' correlation of 2,000 examples of 1,500 classes: their rows would be 36 gigabytes."""
    from sklearn.metrics import matthews_corrcoef

    draw, task = np.random.default_rng(0), Task("class", 1, tuple(map(str, range(1500))), metric="accuracy")
    gold = draw.integers(0, 1500, 2000)
    said = np.where(draw.random(2000) < 0.5, gold, draw.integers(0, 1500, 2000))
    examples = [Example(("a",), int(at)) for at in gold]
    found = measure(task, examples, said.tolist(), ["matthews"])["matthews"]
    assert found == pytest.approx(matthews_corrcoef(gold, said))


def test_joined_words_are_where_it_says() -> None:
    words = ["I", "like", "北", "京", "Opera"]
    text, places = joined(words)
    assert text == "I like 北京 Opera"
    assert [text[start:end] for start, end in places] == words


def test_cmrc_tells_both_of_its_scores() -> None:
    task, example = Task("span", 2, metric="cmrc_f1"), Example(("谁", "《三国志》"), ((1, 4),), answers=("三国志",))
    assert list(measure(task, [example], ["《三国志》"]))[:2] == ["cmrc_f1", "cmrc_exact_match"]
