"""What a model knows of grammar, asked with minimal pairs: two sentences, one of them right.

    evaluate_pairs(model, tokenizer, folder)    BLiMP (Warstadt et al. 2020) and whatever is written like it
    evaluate_scorer(scorer, folder)             the same with scores from anywhere else

How a sentence is scored is said in `bertkin.tasks.scoring`: every member of the family can.

Nothing is trained and nothing is tuned: the model is right where it gives the good sentence the higher score.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bertkin.errors import UserError
from bertkin.models.heads import LanguageModel
from bertkin.tasks.scoring import NAMES, WITHIN_WORD, Floats, Method, choose_way, score_sentences
from bertkin.text.tokenizer import Tokenizer
from bertkin.train.machine import pick_precision

Scorer = Callable[[Sequence[str]], Any]
"""Sentences to a number each, the higher the better: a list, an array or a tensor on the CPU."""


def score_pairs(good: Any, bad: Any) -> float:
    """Share of the pairs whose good sentence scores higher; a tie is half a hit.

    Args:
        good, bad: [pairs], scores in the same order.

    Raises:
        UserError: a score is not a number.
    """
    good, bad = np.asarray(good, np.float64), np.asarray(bad, np.float64)
    if good.shape != bad.shape or not len(good):
        raise ValueError(f"{good.shape} good scores, but {bad.shape} bad ones")
    if np.isnan(good).any() or np.isnan(bad).any():
        raise UserError("a sentence's score is not a number", mend="see that the model's weights are finite")
    return float(np.mean((good > bad) + 0.5 * (good == bad)))


# BLiMP.


class Pair(NamedTuple):
    """A right sentence and a wrong one."""

    good: str
    bad: str
    field: str = ""
    """What branch of grammar it is about, where the file says: morphology, syntax, …"""


def read_blimp(folder: str | Path, limit: int | None = None) -> dict[str, list[Pair]]:
    """Read minimal pairs: files of JSON lines, one a paradigm, with `sentence_good` and `sentence_bad`.

    Args:
        folder: with *.jsonl files, or one such file.
        limit: pairs a file at most, the first ones.

    Returns:
        Paradigm (the file's name) to pairs, by name.

    Raises:
        UserError: nothing there, or a line that is not a pair, with its number.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else [folder]
    if not folder.exists():
        raise UserError("no such folder", where=folder, mend="give a folder of minimal pairs, such as BLiMP's data/")
    if not files:
        raise UserError(
            "holds no .jsonl file", where=folder, mend="give a folder of minimal pairs, such as BLiMP's data/"
        )
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} pairs", mend="choose at least 1")
    return {file.stem: _read_pairs(file, limit) for file in files}


def _read_pairs(file: Path, limit: int | None) -> list[Pair]:
    pairs: list[Pair] = []
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=file) from None
    for number, line in enumerate(lines, 1):
        if limit is not None and len(pairs) == limit:
            break
        if line.strip():
            pairs.append(_read_pair(line, f"{file}:{number}"))
    if not pairs:
        raise UserError("holds no pairs", where=file, mend="remove it, or write one JSON object a line")
    return pairs


def _read_pair(line: bytes, where: str) -> Pair:
    mend = 'write each line as {"sentence_good": "…", "sentence_bad": "…"}'
    try:
        entry = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError("not UTF-8", where=where, mend="convert the file to UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({str(error).splitlines()[0]})", where=where, mend=mend) from None
    if not isinstance(entry, dict):
        raise UserError(f"expected an object, found {type(entry).__name__}", where=where, mend=mend)
    texts = []
    for name in ("sentence_good", "sentence_bad"):
        text = entry.get(name)
        if not isinstance(text, str) or not text.strip():
            what = f"no field {name!r}" if name not in entry else f"{name} is not a sentence"
            raise UserError(what, where=where, mend=mend)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{name} holds half a character (a lone surrogate)", where=where) from None
        texts.append(text)
    about = entry.get("field")
    return Pair(texts[0], texts[1], about if isinstance(about, str) else "")


@dataclass(frozen=True)
class Scores:
    """How often the good sentence won; shares from 0 to 1, where guessing gives 0.5."""

    method: str
    """How a sentence is scored."""
    paradigms: dict[str, float]
    counts: dict[str, int]
    """Pairs of each paradigm."""
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Branch of grammar to its paradigms."""

    @property
    def mean(self) -> float:
        """Mean over paradigms, each weighing the same, as BLiMP reports it."""
        return float(np.mean(list(self.paradigms.values())))

    @property
    def fields(self) -> dict[str, float]:
        """Mean over the paradigms of each branch of grammar."""
        return {name: float(np.mean([self.paradigms[p] for p in members])) for name, members in self.groups.items()}

    def to_mapping(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        rounded = {name: round(value, 5) for name, value in self.paradigms.items()}
        fields = {name: round(value, 5) for name, value in self.fields.items()}
        pairs = sum(self.counts.values())
        return {
            "mean": round(self.mean, 5),
            "method": self.method,
            "pairs": pairs,
            "fields": fields,
            "paradigms": rounded,
        }

    def __str__(self) -> str:
        width = max(map(len, ("all", *self.paradigms, *self.groups)))
        rows = []
        for name, members in (self.groups or {"": list(self.paradigms)}).items():
            if name:
                rows.append(f"{name:<{width + 2}}  {100 * self.fields[name]:5.1f}%")
            rows += [f"  {p:<{width}}  {100 * self.paradigms[p]:5.1f}%  of {self.counts[p]:,}" for p in members]
        rows.append(f"{'all':<{width + 2}}  {100 * self.mean:5.1f}%  mean of {len(self.paradigms)}, by {self.method}")
        return "\n".join(rows)


def evaluate_pairs(
    model: LanguageModel,
    tokenizer: Tokenizer,
    folder: str | Path,
    limit: int | None = None,
    *,
    method: Method = "auto",
    objective: str | None = None,
    noise: str | None = None,
    within_word: bool = False,
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Ask a model all minimal pairs of a folder.

    Args:
        folder, limit: see `read_blimp`.
        method, objective, noise, within_word: see `bertkin.tasks.scoring.score_sentences`.
        precision: auto computes in bfloat16 where that is faster here; scores are summed in float64 either way.
        progress: called with pairs done and pairs in all.

    Raises:
        UserError: see `read_blimp` and `bertkin.tasks.scoring.score_sentences`.
    """
    way = choose_way(model, tokenizer, method, objective)
    parameter = next(model.parameters())
    dtype = pick_precision(precision, parameter.device.type)
    if parameter.dtype != dtype:
        model = copy.deepcopy(model).to(dtype)

    def scorer(sentences: Sequence[str]) -> Floats:
        how: dict[str, Any] = {"objective": objective, "noise": noise, "within_word": within_word}
        return score_sentences(model, tokenizer, sentences, way, **how)

    name = NAMES[way] + (WITHIN_WORD if within_word else "")
    return evaluate_scorer(scorer, folder, limit, method=name, progress=progress)


def evaluate_scorer(
    scorer: Scorer,
    folder: str | Path,
    limit: int | None = None,
    *,
    method: str = "a scorer of one's own",
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Ask anything that scores sentences all minimal pairs of a folder.

    Args:
        scorer: called once a paradigm, with its good sentences and then its bad ones.
        method: how it scores, for the record.
        folder, limit, progress: see `evaluate_pairs`.

    Raises:
        UserError: see `read_blimp`, or a score is not a number.
    """
    paradigms = read_blimp(folder, limit)
    total, done = sum(map(len, paradigms.values())), 0
    accuracies: dict[str, float] = {}
    groups: dict[str, list[str]] = {}
    for name, pairs in paradigms.items():
        scores = np.asarray(scorer([pair.good for pair in pairs] + [pair.bad for pair in pairs]), np.float64)
        accuracies[name] = score_pairs(scores[: len(pairs)], scores[len(pairs) :])
        if pairs[0].field:
            groups.setdefault(pairs[0].field, []).append(name)
        done += len(pairs)
        if progress:
            progress(done, total)
    ungrouped = [name for name, pairs in paradigms.items() if not pairs[0].field]
    if groups and ungrouped:
        groups["other"] = ungrouped
    return Scores(method, accuracies, {name: len(pairs) for name, pairs in paradigms.items()}, groups)
