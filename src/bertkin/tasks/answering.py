"""What a task model answers: rows to scores, scores to a loss, scores to answers for people.

scores(model, rows)                   of every row, in batches of many short or few long ones
loss_of(task, scores, part)           what training lowers
answers(task, rows, scores)           an answer for each example, windows and choices joined again
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bertkin.models.crf import Chain, Crf
from bertkin.models.task_heads import Answer, Head, Pooling, TaskModel
from bertkin.tasks.encoding import Row, Rows, alike, at_once, packed
from bertkin.tasks.task import ONE_ANSWER, Task
from bertkin.text.layout import Layout

HEADS: dict[str, Head] = {
    "class": "class", "classes": "class", "score": "class", "choice": "choice", "tokens": "tokens", "span": "span",
}  # fmt: skip
"""The head that answers each output."""


def answer_for(task: Task, pooling: Pooling, *, crf: bool = False) -> Answer:
    """What a model must answer for a task."""
    outputs = {"class": len(task.labels), "classes": len(task.labels), "tokens": len(task.labels), "span": 2}
    return Answer(HEADS[task.output], outputs.get(task.output, 1), pooling, crf and task.output == "tokens")


def loss_of(
    task: Task,
    scores: Tensor,
    rows: Sequence[Row],
    layout: Layout,
    *,
    weights: Tensor | None = None,
    crf: Crf | None = None,
) -> tuple[Tensor, Tensor, int]:
    """The summed loss in float32, how many answers are right, and of how many.

    Args:
        scores: what the model gives for the packed rows.
        rows: whole examples, every one with a target.
        weights: of the classes or tags, float32 [classes].
        crf: what scores the tags of an example together, through all of its windows, for tokens.
    """
    device, scores = scores.device, scores.float()
    if task.output in ONE_ANSWER:
        scores, rows = by_example(scores, rows)
    if task.output == "class":
        targets = torch.tensor([row.target for row in rows], device=device)
        loss = F.cross_entropy(scores, targets, weights, reduction="sum")
        return loss, (scores.argmax(-1) == targets).sum(), len(rows)
    if task.output == "classes":
        wanted = torch.zeros_like(scores)
        for i, row in enumerate(rows):
            wanted[i, list(row.target)] = 1.0
        loss = F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum") / scores.shape[1]
        return loss, ((scores > 0) == (wanted > 0)).all(-1).sum(), len(rows)
    if task.output == "score":
        wanted = torch.tensor([row.target for row in rows], dtype=torch.float32, device=device)
        distance = scores.squeeze(-1) - wanted
        return distance.square().sum(), (distance.abs() <= task.near).sum(), len(rows)
    if task.output == "choice":
        spread = spread_choices(scores.squeeze(-1), rows)
        targets = torch.tensor([rows[i].target for i in _opens(rows)], device=device)
        return F.cross_entropy(spread, targets, reduction="sum"), (spread.argmax(-1) == targets).sum(), len(targets)
    if task.output == "tokens":
        starts = layout.starts[:-1].tolist()
        places = np.concatenate([row.places + start for row, start in zip(rows, starts, strict=True)])
        targets = torch.from_numpy(np.concatenate([row.target for row in rows])).to(device)
        picked = scores[torch.from_numpy(places).to(device)]
        if crf is not None:
            tags = np.array([len(row.places) for row in rows])
            loss = crf(
                picked, targets, np.add.reduceat(tags, _opens(rows)).tolist()
            )  # an example's windows are one chain
        else:
            loss = F.cross_entropy(picked, targets, weights, reduction="sum")
        return loss, (picked.argmax(-1) == targets).sum(), len(targets)
    wanted = torch.tensor([row.target for row in rows], device=device)
    lowest = torch.finfo(scores.dtype).min
    first, last = (layout.padded(scores[:, i], lowest) for i in (0, 1))
    loss = (
        F.cross_entropy(first, wanted[:, 0], reduction="sum") + F.cross_entropy(last, wanted[:, 1], reduction="sum")
    ) / 2
    right = (first.argmax(-1) == wanted[:, 0]) & (last.argmax(-1) == wanted[:, 1])
    return loss, right.sum(), len(rows)


def _opens(rows: Sequence[Row]) -> list[int]:
    """Where each example's rows begin."""
    return [i for i, row in enumerate(rows) if not i or row.example != rows[i - 1].example]


def by_example(scores: Tensor, rows: Sequence[Row]) -> tuple[Tensor, Sequence[Row]]:
    """Scores [rows, outputs] of windows as their means [examples, outputs], and the first row of each example."""
    opens = _opens(rows)
    if len(opens) == len(rows):
        return scores, rows
    sizes = torch.from_numpy(np.diff([*opens, len(rows)])).to(scores.device)
    owner = torch.repeat_interleave(torch.arange(len(opens), device=scores.device), sizes)
    sums = scores.new_zeros(len(opens), scores.shape[1]).index_add(0, owner, scores)
    return sums / sizes[:, None], [rows[i] for i in opens]


def spread_choices(scores: Tensor, rows: Sequence[Row]) -> Tensor:
    """Scores [rows] of choices as [examples, most choices], with the lowest number where an example has fewer."""
    opens = _opens(rows)
    sizes = np.diff([*opens, len(rows)])
    return Layout.from_lengths(sizes).to(scores.device).padded(scores, torch.finfo(scores.dtype).min)


@torch.inference_mode()
def scores(model: TaskModel, rows: Rows, *, batch_tokens: int | None = None, device: str = "cpu") -> list[np.ndarray]:
    """Of each row: float32 [outputs], or [tokens, outputs] for tags and spans. Rows of like length go together."""
    found: list[Any] = [None] * len(rows.rows)
    for mine in alike(rows.lengths, batch_tokens or at_once()):
        ids, layout = packed([rows.rows[i] for i in mine], device)
        out = model(ids, layout).float().cpu().numpy()
        by_row = np.split(out, layout.starts[1:-1].cpu().numpy()) if model.answer.head in ("tokens", "span") else out
        for i, value in zip(mine, by_row, strict=True):
            found[i] = value
    return found


@dataclass(frozen=True)
class Prediction:
    """What a model answers to one example."""

    answer: Any
    """class: index; classes: indices; score: number; choice: index; tokens: a tag index for each word, that of
    "O" or the first where a word has no token; span: the text, "" for no answer."""
    sure: float
    """Probability of the answer; of a score, 1."""
    best: list[tuple[Any, float]] = field(default_factory=list)
    """Answers with their probability, likeliest first (class, choice, span); of classes each by itself."""
    where: tuple[int, int] | None = None
    """Characters of a span in its context."""


LONGEST_ANSWER = 30
"""Tokens that a span may always have, as in BERT's own reader."""


def longest_answer(task: Task, rows: Sequence[Row]) -> int:
    """How many tokens a span may have where these rows are what is learnt from: as many as all but one in a thousand of
    their answers."""
    if task.output != "span":
        return LONGEST_ANSWER
    sizes = [row.target[1] - row.target[0] + 1 for row in rows if row.target not in (None, (0, 0))]
    return max(LONGEST_ANSWER, int(np.quantile(sizes, 0.999, method="higher"))) if sizes else LONGEST_ANSWER


def answers(
    task: Task,
    rows: Rows,
    found: Sequence[np.ndarray],
    *,
    top: int = 5,
    chain: Chain | None = None,
    longest: int = LONGEST_ANSWER,
) -> list[Prediction]:
    """An answer for each example; "no answer" where a task has such questions and that beats every span.

    Args:
        chain: of a model with a CRF, what its tags may follow, and how gladly (`bertkin.tasks.chaining`).
        longest: most tokens of a span.
    """
    out = []
    outside = task.labels.index("O") if "O" in task.labels else 0
    for number in range(len(rows.examples)):
        mine = range(int(rows.groups[number]), int(rows.groups[number + 1]))
        given = [found[i] for i in mine]
        if task.output in ONE_ANSWER:
            given = [np.mean(given, axis=0)]
        if task.output == "class":
            out.append(_ranked(given[0], top))
        elif task.output == "choice":
            out.append(_ranked(np.concatenate(given), top))
        elif task.output == "classes":
            chances = 1 / (1 + np.exp(-given[0].astype(np.float64)))
            said, order = tuple(np.flatnonzero(chances > 0.5).tolist()), np.argsort(-chances, kind="stable")
            likeliest = [(int(i), float(chances[i])) for i in order[: max(top, len(said))]]
            out.append(Prediction(said, float(np.abs(chances - 0.5).min() + 0.5), likeliest))
        elif task.output == "score":
            out.append(Prediction(float(given[0][0]), 1.0))
        elif task.output == "tokens":
            words = len(rows.examples[number].spans)
            out.append(_tags([rows.rows[i] for i in mine], given, words, outside, chain))
        else:
            out.append(_span([rows.rows[i] for i in mine], given, rows, number, top, longest))
    return out


def _softmax(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores.astype(np.float64) - scores.max())
    share: np.ndarray = raised / raised.sum()
    return share


def _ranked(scores: np.ndarray, top: int) -> Prediction:
    chances = _softmax(scores)
    order = np.argsort(-chances, kind="stable")[:top]
    best = [(int(i), float(chances[i])) for i in order]
    return Prediction(best[0][0], best[0][1], best)


def _tags(
    rows: Sequence[Row], found: Sequence[np.ndarray], words: int, outside: int, chain: Chain | None
) -> Prediction:
    words = max([words, *(int(row.words.max()) + 1 for row in rows if len(row.words))])
    tags, sure = np.full(words, outside, np.int64), 1.0
    picked = [(row.words, scores[row.places]) for row, scores in zip(rows, found, strict=True) if len(row.places)]
    if chain is not None and picked:  # through all windows: their words are in order, and each is in one
        best, chances = chain.decode(np.concatenate([scores for _, scores in picked]))
        tags[np.concatenate([places for places, _ in picked])] = best
        return Prediction(tuple(tags.tolist()), float(chances.min()))
    for places, scores in picked:
        tags[places] = scores.argmax(-1)
        sure = min(sure, float(min(_softmax(one).max() for one in scores)))
    return Prediction(tuple(tags.tolist()), sure)


def _span(
    rows: Sequence[Row], found: Sequence[np.ndarray], rows_of: Rows, number: int, top: int, longest: int
) -> Prediction:
    """The best spans of all windows, as BERT's reader: a start and an end after it, not too far apart."""
    spans: dict[tuple[int, int], float] = {}
    none = np.inf
    for row, scores in zip(rows, found, strict=True):
        none = min(none, float(scores[0, 0] + scores[0, 1]))
        first, last = scores[row.places, 0], scores[row.places, 1]
        for start in np.argsort(-first)[:20]:
            ends = last[start : start + longest]
            for end in np.argsort(-ends)[:5]:
                place = int(row.words[start]), int(row.words[start + end])
                # Of windows that share it, the surer one says.
                spans[place] = max(spans.get(place, -np.inf), float(first[start] + ends[end]))
    candidates = sorted(spans.items(), key=lambda candidate: (-candidate[1], candidate[0]))
    text, offsets = rows_of.examples[number].texts[-1], rows_of.contexts[number]
    best: list[tuple[Any, float, tuple[int, int] | None]] = []
    for (start, end), score in candidates:
        said = text[offsets[start][0] : offsets[end][1]].strip()
        begins = text.find(said, offsets[start][0])  # byte-level tokens begin with the blank before a word
        place = (begins, begins + len(said))
        if said and said not in [one[0] for one in best]:
            best.append((said, score, place))
        if len(best) == top:
            break
    considered = list(spans.values())
    if rows_of.task.unanswerable:
        best = sorted([*best, ("", none, None)], key=lambda one: -one[1])[:top]
        considered.append(none)
    if not best:
        return Prediction("", 1.0)
    total = np.logaddexp.reduce(np.array(considered, np.float64))  # of all that were considered, not of the best alone
    chances = [float(np.exp(score - total)) for _, score, _ in best]
    answer, _, where = best[0]
    return Prediction(answer, chances[0], [(one[0], chance) for one, chance in zip(best, chances, strict=True)], where)
