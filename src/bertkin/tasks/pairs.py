"""What a masked model knows of grammar, asked with minimal pairs: two sentences, one of them right.

    pseudo_log_likelihood(model, tokenizer, sentences)    a score a sentence, any language
    evaluate_pairs(model, tokenizer, folder)              BLiMP (Warstadt et al. 2020) and whatever is written like it
    evaluate_scorer(scorer, folder)                       the same with scores from anywhere else

Nothing is trained and nothing is tuned: the model is right where it gives the good sentence the higher score.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from bertkin.errors import UserError
from bertkin.models.heads import LanguageModel
from bertkin.text.layout import Layout
from bertkin.text.tokenizer import Tokenizer
from bertkin.train.machine import pick_precision

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Scorer = Callable[[Sequence[str]], Any]
"""Sentences to a number each, the higher the better: a list, an array or a tensor on the CPU."""

ORIGINAL = "pseudo-log-likelihood"
WITHIN_WORD = "pseudo-log-likelihood, within word left to right"


def pseudo_log_likelihood(
    model: LanguageModel,
    tokenizer: Tokenizer,
    sentences: Sequence[str],
    *,
    within_word: bool = False,
    batch_tokens: int = 4096,
) -> Floats:
    """Score sentences by the sum, over their tokens, of log p(token | all the others) (Salazar et al. 2020).

    A sentence of n tokens is read n times, each time with another token hidden. The copies of all sentences are sorted
    by length and lie end to end, and only the hidden places reach the vocabulary. The same tokens always get the same
    score, so that what the tokenizer cannot tell apart ties.

    Args:
        model: computes in the type and on the device its weights are in.
        within_word: hide the later pieces of the same word as well (Kauf & Ivanova 2023): left visible they give the
            word away, and rare words cut in many pieces score too well. A word begins where `tokenizer.word_starts`
            says so.
        batch_tokens: read at once, about.

    Returns:
        float64 [sentences], in nats, not above 0; a sentence without tokens has 0.

    Raises:
        UserError: a sentence is too long for the model, or the tokenizer is of another model.
    """
    encoded = tokenizer.encode_batch(list(sentences))
    _check(encoded, sentences, model, tokenizer)
    numbers: dict[tuple[int, ...], int] = {}
    which = [numbers.setdefault(tuple(ids), len(numbers)) for ids in encoded]
    if not which:
        return np.zeros(0)
    scores = np.zeros(len(numbers))
    was, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with torch.inference_mode():
            for copies in _copies(list(numbers), tokenizer, within_word, batch_tokens):
                ids, asked, targets = (
                    torch.from_numpy(a).to(device) for a in (copies.ids, copies.asked, copies.targets)
                )
                logits = model.logits(ids, copies.layout.to(device), asked).float()
                loss = cross_entropy(logits, targets, reduction="none").double().cpu().numpy()
                scores -= np.bincount(copies.sentence, weights=loss, minlength=len(scores))
    finally:
        model.train(was)
    return scores[which]


class _Copies(NamedTuple):
    """Some copies of some sentences, each with one token asked; [n] is copies."""

    ids: Ints
    layout: Layout
    asked: Ints
    """[n]: flat positions."""
    targets: Ints
    sentence: Ints
    """[n]: the sentence each is a copy of."""


def _copies(
    sentences: Sequence[Sequence[int]], tokenizer: Tokenizer, within_word: bool, batch_tokens: int
) -> Iterator[_Copies]:
    """Every sentence once for each of its tokens, in batches of copies of nearly the same length."""
    counts = np.array([len(ids) for ids in sentences], np.int64)
    tokens = np.array([i for ids in sentences for i in (tokenizer.cls_id, *ids, tokenizer.sep_id)], np.int64)
    begins = np.cumsum(counts + 2) - counts - 2  # where in `tokens` each sentence's [CLS] is
    word_ends = _word_ends(tokens, begins, tokenizer) if within_word else None

    order = np.argsort(counts, kind="stable")
    sentence = np.repeat(order, counts[order])
    firsts = np.repeat(np.cumsum(counts[order]) - counts[order], counts[order])
    place = np.arange(len(sentence)) - firsts + 1  # of the hidden token, counted from [CLS]
    sizes = counts[sentence] + 2
    batch = (np.cumsum(sizes) - sizes) // batch_tokens
    edges = np.flatnonzero(np.diff(batch, prepend=-1, append=-1))
    for low, high in pairwise(edges):
        mine, size = sentence[low:high], sizes[low:high]
        starts = np.cumsum(size) - size
        ids = tokens[np.repeat(begins[mine] - starts, size) + np.arange(size.sum())]
        asked = starts + place[low:high]
        targets = ids[asked]
        ids[asked] = tokenizer.mask_id
        if word_ends is not None:
            left = (
                word_ends[begins[mine] + place[low:high]] - begins[mine] - place[low:high]
            )  # of the word, this token too
            hidden = np.repeat(asked - np.cumsum(left) + left, left) + np.arange(left.sum())
            ids[hidden] = tokenizer.mask_id
        yield _Copies(ids, Layout.from_lengths(size), asked, targets, mine)


def _word_ends(tokens: Ints, begins: Ints, tokenizer: Tokenizer) -> Ints:
    """[tokens]: the place after the last token of each token's word. [CLS] and [SEP] are words of their own."""
    opens = tokenizer.word_starts[tokens].copy()
    opens[begins] = True
    opens[begins + 1] = True  # the first token of a sentence, or the [SEP] of an empty one
    opens[np.append(begins[1:], len(tokens)) - 1] = True
    starts = np.append(np.flatnonzero(opens), len(tokens))
    return starts[np.searchsorted(starts, np.arange(len(tokens)), side="right")]


def _check(encoded: list[list[int]], sentences: Sequence[str], model: LanguageModel, tokenizer: Tokenizer) -> None:
    a = model.architecture
    if tokenizer.vocab_size > a.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, the model only {a.vocab_size:,}",
            mend="use the tokenizer the model was trained with",
        )
    room = a.max_length - 2
    for ids, text in zip(encoded, sentences, strict=True):
        if len(ids) > room:
            raise UserError(
                f"a sentence of {len(ids):,} tokens ({text[:40]!r} …), but the model reads at most {room:,}",
                mend="cut it into shorter ones",
            )


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
    within_word: bool = False,
    precision: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Ask a model all minimal pairs of a folder.

    Args:
        folder, limit: see `read_blimp`.
        within_word: see `pseudo_log_likelihood`.
        precision: auto computes in bfloat16 where that is faster here; scores are summed in float64 either way.
        progress: called with pairs done and pairs in all.

    Raises:
        UserError: see `read_blimp` and `pseudo_log_likelihood`.
    """
    parameter = next(model.parameters())
    dtype = pick_precision(precision, parameter.device.type)
    if parameter.dtype != dtype:
        model = copy.deepcopy(model).to(dtype)

    def scorer(sentences: Sequence[str]) -> Floats:
        return pseudo_log_likelihood(model, tokenizer, sentences, within_word=within_word)

    method = WITHIN_WORD if within_word else ORIGINAL
    return evaluate_scorer(scorer, folder, limit, method=method, progress=progress)


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
