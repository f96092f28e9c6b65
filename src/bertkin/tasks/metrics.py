"""How well a task is done. A metric is a few numbers for each example and a function of their sums.

    measure(task, examples, predictions)         every metric of the task, the headline first
    interval(name, task, examples, predictions)  where the headline lies with other examples (bootstrap)
    difference(name, task, examples, one, two)   whether two models differ by more than chance

Because scores come from sums, drawing examples anew a thousand times is one product of matrices. A prediction is, by the
task's output,

    class, choice    int, the index of the class or choice
    classes          a collection of such indices
    score            float
    tokens           a tag's index for each labelled word of the example
    span, sequence   str; "" for no answer

All scores are 0 to 1 (correlations −1 to 1, errors 0 and up), and examples without a label are passed over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bertkin.errors import NonFiniteLoss, UserError, nearest
from bertkin.tasks import comparing
from bertkin.tasks.data.schemes import spans_of
from bertkin.tasks.task import Example, Task

Floats = NDArray[np.float64]
Rows = Callable[[Task, Sequence[Example], Sequence[Any]], Floats]


@dataclass(frozen=True)
class Metric:
    """A way to count.

    Attributes:
        outputs: kinds of task it is for.
        rows: [examples, k], what each example adds.
        of: sums of rows [..., k] to scores [...].
        higher: whether more is better.
        whole: `of` takes the rows themselves [examples, k], as it needs all of them at once.
        offered: whether `measure` counts it without being asked.
    """

    outputs: tuple[str, ...]
    rows: Rows
    of: Callable[[Floats], Any]
    higher: bool = True
    whole: bool = False
    offered: bool = True

    def best(self, scores: Iterable[float]) -> float:
        """The best of some scores."""
        return max(scores) if self.higher else min(scores)

    def score(self, rows: Floats) -> float:
        """The score of examples with these rows."""
        return float(self.of(rows if self.whole else rows.sum(0)))


# What each example adds.


def _gold(examples: Sequence[Example]) -> Floats:
    return np.array([example.label for example in examples], np.float64)


def _right(task: Task, examples: Sequence[Example], predictions: Sequence[Any]) -> Floats:
    """[n, 2]: how many answers are right, how many there are."""
    rows = []
    for example, predicted in zip(examples, predictions, strict=True):
        if task.output == "tokens":
            tags = [tag for _, _, tag in example.label]
            rows.append([sum(int(a) == int(b) for a, b in zip(tags, predicted, strict=True)), len(tags)])
        elif task.output == "classes":
            rows.append([set(example.label) == {int(one) for one in predicted}, 1])
        else:
            rows.append([int(predicted) == example.label, 1])
    return np.array(rows, np.float64)


def _share(sums: Floats) -> Floats:
    return _divided(sums[..., 0], sums[..., 1])


def _divided(above: Floats, below: Floats) -> Floats:
    """A quotient; 0 where there is nothing to divide by, as the field has it."""
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=np.asarray(below) != 0)


def _sets(task: Task, example: Example, predicted: Any) -> tuple[list[int], list[int]]:
    """Classes of an example and those predicted, where each class counts once (tokens: once a word)."""
    if task.output == "tokens":
        return [tag for _, _, tag in example.label], [int(tag) for tag in predicted]
    if task.output == "classes":
        return list(example.label), [int(one) for one in predicted]
    return [example.label], [int(predicted)]


def _by_class(task: Task, examples: Sequence[Example], predictions: Sequence[Any]) -> Floats:
    """[n, 3 · classes]: for each class how often rightly said, wrongly said, and missed."""
    counts = np.zeros((len(examples), len(task.labels), 3))
    for row, (example, predicted) in enumerate(zip(examples, predictions, strict=True)):
        gold, said = _sets(task, example, predicted)
        pairs = zip(gold, said, strict=True) if task.output != "classes" else ()
        for a, b in pairs:
            if a == b:
                counts[row, a, 0] += 1
            else:
                counts[row, b, 1] += 1
                counts[row, a, 2] += 1
        if task.output == "classes":
            for at in {*gold, *said}:
                counts[row, at, 0 if at in gold and at in said else 1 if at in said else 2] += 1
    return counts.reshape(len(examples), -1)


def _f1(sums: Floats) -> Floats:
    """F1 from (right, wrongly said, missed) in the last three columns."""
    right, wrong, missed = sums[..., 0], sums[..., 1], sums[..., 2]
    return _divided(2 * right, 2 * right + wrong + missed)


def _precision(sums: Floats) -> Floats:
    """How much of what was said is right, from the columns of `_f1`."""
    return _divided(sums[..., 0], sums[..., 0] + sums[..., 1])


def _recall(sums: Floats) -> Floats:
    """How much of what there is was found, from the columns of `_f1`."""
    return _divided(sums[..., 0], sums[..., 0] + sums[..., 2])


def _f1_macro(sums: Floats) -> Floats:
    """Mean over the classes that are there or are said."""
    each = sums.reshape(*sums.shape[:-1], -1, 3)
    return _divided(_f1(each).sum(-1), (each.sum(-1) > 0).sum(-1).astype(np.float64))


def _f1_micro(sums: Floats) -> Floats:
    return _f1(sums.reshape(*sums.shape[:-1], -1, 3).sum(-2))


def _f1_binary(task: Task, examples: Sequence[Example], predictions: Sequence[Any]) -> Floats:
    """[n, 3]: right, wrongly said and missed, of the positive one of two classes."""
    first = 3 * task.labels.index(task.positive)
    return _by_class(task, examples, predictions)[:, first : first + 3]


def _margins(task: Task, examples: Sequence[Example], predictions: Sequence[Any]) -> Floats:
    """[n, 1 + 2 · classes]: whether it is right, and one where its class is, and where what is said is: all that the
    correlation needs of the table of classes."""
    size = len(task.labels)
    rows = np.zeros((len(examples), 1 + 2 * size))
    for row, (example, predicted) in enumerate(zip(examples, predictions, strict=True)):
        for a, b in zip(*_sets(task, example, predicted), strict=True):
            rows[row, [0, 1 + a, 1 + size + b]] += a == b, 1, 1
    return rows


def _matthews(sums: Floats) -> Floats:
    """Correlation of two classifications with any number of classes (Gorodkin 2004)."""
    right, (gold, said) = sums[..., 0], np.split(sums[..., 1:], 2, axis=-1)
    total = gold.sum(-1)
    above = right * total - (gold * said).sum(-1)
    below = (total**2 - (said**2).sum(-1)) * (total**2 - (gold**2).sum(-1))
    return _divided(above, np.sqrt(np.maximum(below, 0)))


def _moments(task: Task, examples: Sequence[Example], predictions: Sequence[Any]) -> Floats:
    """[n, 6]: x, y, x², y², xy, 1; both counted from the mean of the scores, so that little is lost in sums."""
    gold, said = _numbers(task, examples, predictions).T
    x, y = gold - gold.mean(), said - gold.mean()
    return np.stack([x, y, x * x, y * y, x * y, np.ones(len(x))], axis=1)


def _numbers(task: Task, examples: Sequence[Example], predictions: Sequence[Any]) -> Floats:
    """[n, 2]: the scores and those predicted."""
    return np.stack([_gold(examples), np.array(predictions, np.float64)], axis=1)


def _pearson(sums: Floats) -> Floats:
    x, y, xx, yy, xy, n = np.moveaxis(sums, -1, 0)
    above = n * xy - x * y
    spread = np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0)
    still = (n * yy - y * y) <= 1e-12 * n * np.maximum(yy, 1e-300)  # the same prediction everywhere, but for rounding
    return np.where(still, 0.0, _divided(above, np.sqrt(spread)))


def _ranks(values: Floats) -> Floats:
    """Ranks; equal values share the mean of theirs."""
    order = np.argsort(values, kind="stable")
    _, start, inverse, counts = np.unique(values[order], return_index=True, return_inverse=True, return_counts=True)
    ranks = np.empty(len(values))
    ranks[order] = (start + (counts - 1) / 2)[inverse]
    return ranks


def _correlation(x: Floats, y: Floats) -> float:
    x, y = x - x.mean(), y - y.mean()
    below = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / below if below else 0.0


def _spearman(rows: Floats) -> float:
    return _correlation(_ranks(rows[:, 0]), _ranks(rows[:, 1]))


def _both(rows: Floats) -> float:
    """Mean of Pearson's and Spearman's, as GLUE reports STS-B."""
    same = np.ptp(rows[:, 1]) == 0
    return 0.0 if same else (_correlation(rows[:, 0], rows[:, 1]) + _spearman(rows)) / 2


def _errors(power: int) -> Rows:
    def rows(task: Task, examples: Sequence[Example], predictions: Sequence[Any]) -> Floats:
        gold, said = _numbers(task, examples, predictions).T
        return np.stack([np.abs(gold - said) ** power, np.ones(len(gold))], axis=1)

    return rows


def _compared(compare: Callable[[str, str], float]) -> Rows:
    def rows(task: Task, examples: Sequence[Example], predictions: Sequence[Any]) -> Floats:
        pairs = zip(examples, predictions, strict=True)
        return np.array([[comparing.best_of(compare, text, example.references), 1.0] for example, text in pairs])

    return rows


def _spans(task: Task, examples: Sequence[Example], predictions: Sequence[Any]) -> Floats:
    """[n, 3]: entities found, wrongly said and missed, as conlleval counts: right when both edges and the type are."""
    rows = []
    for example, predicted in zip(examples, predictions, strict=True):
        gold = set(spans_of([task.labels[tag] for _, _, tag in example.label]))
        said = set(spans_of([task.labels[int(tag)] for tag in predicted]))
        rows.append([len(gold & said), len(said - gold), len(gold - said)])
    return np.array(rows, np.float64)


def _texts(make: Callable[..., Floats], *more: str) -> Rows:
    def rows(task: Task, examples: Sequence[Example], predictions: Sequence[Any]) -> Floats:
        return make([str(p) for p in predictions], [example.references for example in examples], *more)

    return rows


def _chrf(task: Task, examples: Sequence[Example], predictions: Sequence[Any]) -> Floats:
    """[n, 1]: each sentence's own; a set's chrF is then their mean, which sacrebleu's own is not quite."""
    return np.array(
        [[comparing.chrf([str(p)], [e.references]), 1.0] for e, p in zip(examples, predictions, strict=True)]
    )


CLASSED = ("class",)
METRICS: dict[str, Metric] = {
    "accuracy": Metric(("class", "classes", "choice", "tokens"), _right, _share),
    "f1": Metric(CLASSED, _f1_binary, _f1),
    "precision": Metric(CLASSED, _f1_binary, _precision),
    "recall": Metric(CLASSED, _f1_binary, _recall),
    "f1_macro": Metric(("class", "classes"), _by_class, _f1_macro),
    "f1_micro": Metric(("classes",), _by_class, _f1_micro),
    "matthews": Metric(CLASSED, _margins, _matthews),
    "pearson": Metric(("score",), _moments, _pearson),
    "spearman": Metric(("score",), _numbers, _spearman, whole=True),
    "pearson_spearman": Metric(("score",), _numbers, _both, whole=True),
    "mean_squared_error": Metric(("score",), _errors(2), _share, higher=False),
    "mean_absolute_error": Metric(("score",), _errors(1), _share, higher=False),
    "span_f1": Metric(("tokens",), _spans, _f1),
    "span_precision": Metric(("tokens",), _spans, _precision),
    "span_recall": Metric(("tokens",), _spans, _recall),
    "answer_f1": Metric(("span", "sequence"), _compared(comparing.overlap), _share),
    "exact_match": Metric(("span", "sequence"), _compared(comparing.exact), _share),
    "cmrc_f1": Metric(("span",), _compared(comparing.cmrc_overlap), _share, offered=False),
    "cmrc_exact_match": Metric(("span",), _compared(comparing.cmrc_exact), _share, offered=False),
    "bleu": Metric(("sequence",), _texts(comparing.bleu_rows), comparing.bleu_of, offered=False),
    "chrf": Metric(("sequence",), _chrf, _share, offered=False),
    "rouge1": Metric(("sequence",), _texts(comparing.rouge_rows, "rouge1"), _share, offered=False),
    "rouge2": Metric(("sequence",), _texts(comparing.rouge_rows, "rouge2"), _share, offered=False),
    "rougeL": Metric(("sequence",), _texts(comparing.rouge_rows, "rougeL"), _share, offered=False),
}
"""All metrics. f1, precision and recall are of the positive one of two classes (`Task.positive`); bleu, chrf and rouge need
`pip install "bertkin[text-metrics]"`."""
BESIDE = {"cmrc_f1": ("cmrc_exact_match",)}
"""What is told beside a headline that is not offered to every task."""


# Asking.


def metric(name: str, task: Task) -> Metric:
    """A metric by name.

    Raises:
        UserError: no such metric, or none for this task.
    """
    fitting = [known for known, one in METRICS.items() if task.output in one.outputs and _fits(known, task)]
    if name not in METRICS:
        raise UserError(f"no metric {name!r}", mend=nearest(name, fitting))
    if name not in fitting:
        raise UserError(f"{name} is no metric of this task ({task})", mend=f"choose one of {', '.join(fitting)}")
    return METRICS[name]


def _fits(name: str, task: Task) -> bool:
    if name in ("f1", "precision", "recall"):
        return len(task.labels) == 2
    return bool(task.scheme) if name.startswith("span_") else True


def measure(
    task: Task, examples: Sequence[Example], predictions: Sequence[Any], names: Sequence[str] = ()
) -> dict[str, float]:
    """Scores of predictions, the task's headline first.

    Args:
        names: of metrics beside the headline; by default all of the task's that need no extra library.

    Raises:
        UserError: a metric that is none of the task's, no labelled example, or a prediction that is not a number.
    """
    examples, predictions = answered(task, examples, predictions)
    offered = [name for name, one in METRICS.items() if one.offered and task.output in one.outputs]
    wanted = [task.metric, *(names or [*BESIDE.get(task.metric, ()), *(name for name in offered if _fits(name, task))])]
    kept: dict[Any, Floats] = {}
    scores: dict[str, float] = {}
    for name in dict.fromkeys(wanted):
        one = metric(name, task)
        if one.rows not in kept:
            kept[one.rows] = one.rows(task, examples, predictions)
        scores[name] = one.score(kept[one.rows])
    return scores


def answered(task: Task, examples: Sequence[Example], predictions: Sequence[Any]) -> tuple[list[Example], list[Any]]:
    """The labelled examples and their predictions.

    Raises:
        UserError: there is none, or a predicted score is not a number.
    """
    if len(examples) != len(predictions):
        raise ValueError(f"{len(examples)} examples, but {len(predictions)} predictions")
    pairs = [(e, p) for e, p in zip(examples, predictions, strict=True) if e.label is not None]
    if not pairs:
        raise UserError("no example has a label, so nothing can be scored", mend="give labelled data")
    if task.output == "score" and not np.isfinite([float(p) for _, p in pairs]).all():
        mend = "train again with a lower learning rate"
        raise NonFiniteLoss("a predicted score is not a number", mend=mend)
    return [e for e, _ in pairs], [p for _, p in pairs]


def constant(task: Task, predictions: Sequence[Any]) -> bool:
    """Whether a model says the same everywhere: a run that has not learnt (of tokens: one tag for every word)."""
    if task.output == "tokens":
        return len(predictions) > 1 and len({int(tag) for tags in predictions for tag in tags}) == 1
    if task.output == "score":
        return len(predictions) > 1 and float(np.ptp(np.array(predictions, np.float64))) < 1e-6 * (
            abs(task.high - task.low) or 1.0
        )
    return len(predictions) > 1 and len({tuple(sorted(p)) if task.output == "classes" else p for p in predictions}) == 1


def confusion(task: Task, examples: Sequence[Example], predictions: Sequence[Any]) -> NDArray[np.int64]:
    """[classes, classes]: how often a class (row) was called each class (column); of tokens, by words."""
    if task.output not in ("class", "tokens"):
        raise UserError(f"a task of {task.output} has no confusion of classes")
    examples, predictions = answered(task, examples, predictions)
    table = np.zeros((len(task.labels), len(task.labels)), np.int64)
    for example, predicted in zip(examples, predictions, strict=True):
        np.add.at(table, _sets(task, example, predicted), 1)
    return table


def by_type(
    task: Task, examples: Sequence[Example], predictions: Sequence[Any]
) -> dict[str, tuple[float, float, float, int]]:
    """(precision, recall, F1, entities) of each type of entity, as conlleval's table."""
    right, said, gold = Counter[str](), Counter[str](), Counter[str]()
    for example, predicted in zip(*answered(task, examples, predictions), strict=True):
        one = set(spans_of([task.labels[tag] for _, _, tag in example.label]))
        two = set(spans_of([task.labels[int(tag)] for tag in predicted]))
        for counter, spans in ((gold, one), (said, two), (right, one & two)):
            counter.update(span.type for span in spans)
    table = {}
    for name in sorted({*gold, *said}):
        precision, recall = (right[name] / count[name] if count[name] else 0.0 for count in (said, gold))
        table[name] = (precision, recall, 2 * right[name] / (said[name] + gold[name]), gold[name])
    return table
