"""What a task model's answers come to: scores with intervals, which classes are taken for which, and its worst mistakes.

    found = review(task, examples, predictions)      plain data, for the report and the card
    mistakes(task, examples, predictions)            every wrong answer, the surest first

Nothing is drawn or written here: `bertkin.tasks.concluding` does that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bertkin.tasks.answering import Prediction
from bertkin.tasks.comparing import best_of, cmrc_exact, exact
from bertkin.tasks.data.schemes import spans_of
from bertkin.tasks.metrics import METRICS, by_type, confusion, constant, measure
from bertkin.tasks.significance import interval
from bertkin.tasks.task import Example, Task, tidy

MOST_SHOWN = 20
"""Classes up to which a confusion is a table; above, the commonest confusions are listed."""
MOST_DRAWN = 30
"""Classes up to which every metric has an interval; above, the headline alone, as they take classes² numbers an example."""
BINS = 10
POINTS = 200
"""Examples that a plot of scores shows at most."""
CLASSED = ("class", "classes", "tokens")


@dataclass(frozen=True)
class Mistake:
    """A wrong answer.

    Attributes:
        texts: what was read; of tags the sentence.
        wanted, answered: labels by name, a number, or a text. Of entities lists of (text, type), of other tags lists of
            (word, tag), both only where the two differ.
        probability: that the model gave its answer; of tags that of its least sure word, of a score None.
        where: file and line.
    """

    texts: tuple[str, ...]
    wanted: Any
    answered: Any
    probability: float | None
    where: str

    def to_mapping(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self) | {"texts": list(self.texts)}


def mistakes(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Mistake]:
    """Every labelled example whose answer is wrong, the surest of itself first; of scores, those off by more than a tenth of
    the range, the farthest off first."""
    found = []
    for example, prediction in zip(examples, predictions, strict=True):
        if example.label is None:
            continue
        wanted, answered, weight = _compared(task, example, prediction)
        if weight is not None:
            chance = None if task.output == "score" else round(prediction.sure, 5)
            found.append((weight, Mistake(example.texts, wanted, answered, chance, example.where)))
    return [mistake for _, mistake in sorted(found, key=lambda pair: -pair[0])]


def _compared(task: Task, example: Example, prediction: Prediction) -> tuple[Any, Any, float | None]:
    """What was wanted, what was answered, and how bad that is; None where it is right."""
    answer, label, sure = prediction.answer, example.label, prediction.sure
    if task.output == "score":
        off = abs(float(answer) - label)
        return label, tidy(answer), off if off > task.near else None
    if task.output in ("class", "choice"):
        names = task.labels if task.output == "class" else example.choices
        return names[label], names[int(answer)], sure if int(answer) != label else None
    if task.output == "classes":
        wanted, said = ([task.labels[at] for at in sorted(one)] for one in (label, answer))
        return wanted, said, sure if wanted != said else None
    if task.output == "tokens":
        gold, tags = [task.labels[tag] for _, _, tag in label], [task.labels[int(tag)] for tag in answer]
        if task.scheme:
            one, two = set(spans_of(gold)), set(spans_of(tags))
            named = [
                [(example.texts[-1][label[s.start][0] : label[s.end - 1][1]], s.type) for s in sorted(spans)]
                for spans in (one - two, two - one)
            ]
            return named[0], named[1], sure if one != two else None
        odd = [at for at, pair in enumerate(zip(gold, tags, strict=True)) if pair[0] != pair[1]]
        words = example.words
        return [(words[at], gold[at]) for at in odd], [(words[at], tags[at]) for at in odd], sure if odd else None
    same = cmrc_exact if task.metric.startswith("cmrc") else exact
    wrong = not best_of(same, str(answer), example.references)
    return example.references[0], str(answer), sure if wrong else None


def review(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """All that is to be shown of answers to labelled examples, as plain data.

    Returns:
        examples: how many.
        scores: for each metric, the headline first, value, and low and high of a 95% bootstrap interval (or None).
        degenerate: what is said everywhere, or "".
        calibration: error, and for each bin that holds any: mean probability, share right, answers (class, choice).
        classes: label to precision, recall, F1 and count (classes; tags without a scheme).
        confusion: labels and counts, a row for each class wanted; or confused: the commonest (wanted, answered, count).
        entities: type to precision, recall, F1 and count (tags with a scheme).
        points: scores wanted and answered, of some examples (score).

    Raises:
        UserError: as `bertkin.tasks.metrics.measure`.
    """
    pairs = [(e, p) for e, p in zip(examples, predictions, strict=True) if e.label is not None]
    known, given = [e for e, _ in pairs], [p for _, p in pairs]
    answers = [p.answer for p in given]
    found: dict[str, Any] = {"examples": len(known), "scores": scored(task, known, answers)}
    found["degenerate"] = said_everywhere(task, known, answers)
    if task.output in ("class", "choice"):
        found["calibration"] = calibration(known, given)
    if task.output in CLASSED and not task.scheme:
        found["classes"] = by_class(task, known, answers)
    if task.output in ("class", "tokens") and not task.scheme:
        if len(task.labels) <= MOST_SHOWN:
            table = confusion(task, known, answers)
            found["confusion"] = {"labels": list(task.labels), "counts": table.tolist()}
        else:
            found["confused"] = _commonest(task, known, answers)
    if task.scheme:
        found["entities"] = {name: list(row) for name, row in by_type(task, known, answers).items()}
    if task.output == "score":
        step = -(-len(known) // POINTS)
        chosen = zip(known[::step], answers[::step], strict=True)
        found["points"] = [[e.label, tidy(answer)] for e, answer in chosen]
    return found


def scored(task: Task, examples: Sequence[Example], answers: Sequence[Any]) -> dict[str, dict[str, float | None]]:
    """Every metric of labelled examples with its 95% bootstrap interval."""
    table: dict[str, dict[str, float | None]] = {}
    for name, value in measure(task, examples, answers).items():
        low: float | None = None
        high: float | None = None
        if name == task.metric or len(task.labels) <= MOST_DRAWN:
            low, high = (tidy(edge) for edge in interval(name, task, examples, answers))
        table[name] = {"value": tidy(value), "low": low, "high": high}
    return table


def said_everywhere(task: Task, examples: Sequence[Example], answers: Sequence[Any]) -> str:
    """What a model answers everywhere, where the examples differ: it has learnt nothing. "" where it tells them apart."""
    if not constant(task, answers) or constant(task, [_wanted(task, example) for example in examples]):
        return ""
    first = answers[0]
    if task.output == "class":
        return repr(task.labels[int(first)])
    if task.output == "classes":
        return repr([task.labels[int(at)] for at in first])
    if task.output == "tokens":
        return repr(task.labels[int(next(tag for tags in answers for tag in tags))])
    return repr(f"choice {int(first) + 1}") if task.output == "choice" else repr(first)


def _wanted(task: Task, example: Example) -> Any:
    """A label in the form of an answer."""
    if task.output == "tokens":
        return [tag for _, _, tag in example.label]
    return example.references[0] if task.output in ("span", "sequence") else example.label


def calibration(examples: Sequence[Example], predictions: Sequence[Prediction], bins: int = BINS) -> dict[str, Any]:
    """How far probabilities are from shares of right answers: the expected calibration error over bins of equal width
    (Guo et al. 2017), and the bins."""
    sure = np.array([p.sure for p in predictions])
    right = np.array([p.answer == e.label for e, p in zip(examples, predictions, strict=True)], np.float64)
    places = np.minimum((sure * bins).astype(np.int64), bins - 1)
    table, error = [], 0.0
    for at in range(bins):
        mine = places == at
        if mine.any():
            confidence, share, count = float(sure[mine].mean()), float(right[mine].mean()), int(mine.sum())
            table.append([round(confidence, 5), round(share, 5), count])
            error += abs(confidence - share) * count / len(sure)
    return {"error": round(error, 5), "bins": table}


def by_class(task: Task, examples: Sequence[Example], answers: Sequence[Any]) -> dict[str, list[float]]:
    """Precision, recall, F1 and how many there are, of each class; of tags by words."""
    counts = METRICS["f1_macro"].rows(task, examples, answers).sum(0).reshape(-1, 3)
    table = {}
    for name, (right, wrong, missed) in zip(task.labels, counts.tolist(), strict=True):
        precision, recall = (right / max(right + other, 1) for other in (wrong, missed))
        table[name] = [precision, recall, 2 * right / max(2 * right + wrong + missed, 1), int(right + missed)]
    return table


def _commonest(task: Task, examples: Sequence[Example], answers: Sequence[Any]) -> list[list[Any]]:
    """(wanted, answered, how often) of the commonest confusions."""
    counter: Counter[tuple[int, int]] = Counter()
    for example, answer in zip(examples, answers, strict=True):
        wanted = _wanted(task, example)
        pairs = zip(wanted, answer, strict=True) if task.output == "tokens" else [(wanted, answer)]
        counter.update((int(a), int(b)) for a, b in pairs if int(a) != int(b))
    return [[task.labels[a], task.labels[b], count] for (a, b), count in counter.most_common(MOST_SHOWN)]
