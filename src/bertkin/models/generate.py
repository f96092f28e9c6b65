"""Writing: a prompt is read at once, then every token costs one step that looks at what is kept.

    greedy     the likeliest token, always
    sampling   by chance, out of what temperature, top-k, top-p and min-p leave (Holtzman et al. 2020, Nguyen et al. 2024)
    beams      several beginnings side by side, the best of them in the end

Prompts of different lengths are read packed, without padding, and a sequence's tokens do not depend on its company: it
has its own keys, its own length, and its own draws.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bertkin.models.cache import Cache
from bertkin.models.heads import LanguageModel
from bertkin.models.steps import Bound, Steps
from bertkin.text.layout import Layout
from bertkin.text.shuffle import mix, noise, unit

Ids = Sequence[int]
Written = list[tuple[int, int]]
"""What a step wrote: the number of a prompt, and its token."""
FEW = 256
"""So many of the likeliest tokens are looked at first; seldom has top-p to look at all."""


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen. The defaults sample."""

    max_new_tokens: int = 64
    temperature: float = 0.8
    """What scores are divided by; 0 always takes the likeliest token."""
    top_k: int = 0
    """Only the k likeliest may be drawn; 0 for all."""
    top_p: float = 0.95
    """Only the likeliest that together have this chance."""
    min_p: float = 0.0
    """Only those with at least this share of the likeliest one's chance."""
    beams: int = 1
    """Beginnings kept side by side; more than 1 means beam search, without chance."""
    length_penalty: float = 1.0
    """A beam's score is divided by its length to this power: above 1 favours longer ones."""
    repetition_penalty: float = 1.0
    """Scores of tokens that were there already are divided by it if positive, else multiplied (Keskar et al. 2019)."""
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True)
class Manner:
    """How a model was taught to write."""

    start: tuple[int, ...] = ()
    """What an encoder–decoder's decoder begins with; the prompt is what its encoder reads."""
    both_sides: bool = False
    """The prompt is seen from both sides (prefix language models)."""
    blank: int | None = None
    """A [MASK] to put where the next token is asked for, where the model answers in that place (UniLM)."""


def write(
    model: LanguageModel,
    prompts: Sequence[Ids],
    how: Decoding,
    *,
    ends: Collection[int] = (),
    manner: Manner = Manner(),
    segments: Sequence[Ids | None] | None = None,
    numbers: Sequence[int] | None = None,
    stopped: Callable[[int, int], bool] | None = None,
    steps: Steps | None = None,
) -> Iterator[Written]:
    """Go on with prompts, a token of each a step; with beams, all tokens come at once in the end.

    Args:
        prompts: ids of each, at least one; of an encoder–decoder, what the encoder reads.
        segments: of each prompt's tokens, 0 or 1; by default all are 0.
        ends: tokens that end a text; they are handed out too. A text also ends where the model reads no further.
        numbers: of the prompts, which their draws depend on; by default 0, 1, 2 …
        steps: the model's weights made ready for fast steps, where that was done.
        stopped: asked after each token (number of the prompt, token) whether the prompt's text shall end here.

    Yields:
        What each step wrote, (place of the prompt in `prompts`, token).
    """
    with torch.inference_mode():
        if how.beams > 1:
            yield from beam_search(model, prompts, how, ends, manner, steps, segments)
            return
        reader = Reader(model, prompts, how.max_new_tokens, manner, steps=steps, segments=segments)
        rows = list(range(len(prompts)))
        keys = mix(how.seed, np.array(rows if numbers is None else numbers))
        seen = [list(begin) for begin in reader.begins] if how.repetition_penalty != 1 else None
        plain = how.greedy and seen is None
        scores = reader.first()
        chosen: Tensor | None = None
        for step in range(how.max_new_tokens):
            if seen is not None:
                scores = penalised(scores, seen, how.repetition_penalty)
            if chosen is None:
                chosen = choose(scores, how, unit(noise(keys[rows], step)) if not how.greedy else None)
            tokens = chosen.tolist()
            written = list(zip(rows, tokens, strict=True))
            yield written
            over = [
                i
                for i, (row, token) in enumerate(written)
                if (stopped is not None and stopped(row, token)) or token in ends or step + 1 >= reader.rooms[row]
            ]
            if len(over) == len(rows):
                return
            for i in reversed(over):
                reader.cache.drop(i)
                _drop(rows, i)
                _drop(tokens, i)
                if seen is not None:
                    _drop(seen, i)
            if seen is not None:
                for one, token in zip(seen, tokens, strict=True):
                    one.append(token)
            if over:
                chosen = torch.tensor(tokens, device=chosen.device)
            if plain:
                chosen = reader.likeliest(chosen)
            else:
                scores = reader.next(chosen)
                chosen = None


def _drop(values: list[Any], place: int) -> None:
    """Take one out; the last one takes its place, as in `Cache.drop`."""
    values[place] = values[-1]
    values.pop()


class Reader:
    """A model and what it has read: scores of the next token, for prompts and then for token after token.

    Args:
        room: tokens that will be written at most.
        copies: sequences for each prompt (beams).
        steps: the fast body of a step, where there is one.
        segments: of the prompts' tokens, as for `write`.

    Attributes:
        begins: what each decoder's sequence begins with.
        rooms: how many tokens each may get, as the model reads no longer sequences.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Ids],
        room: int,
        manner: Manner,
        copies: int = 1,
        steps: Steps | None = None,
        segments: Sequence[Ids | None] | None = None,
    ) -> None:
        self.model, self.manner, self.steps = model, manner, steps
        self.fast: Bound | None = None
        two = model.source is not None
        self.source = _packed(prompts, model, segments=segments) if two else None
        self.segments = None if two or segments is None or not any(one is not None for one in segments) else segments
        if self.segments is not None:
            self.steps = None  # its body reads one segment only
        self.begins = [list(manner.start)] * len(prompts) if model.source is not None else [list(p) for p in prompts]
        extra, longest = int(manner.blank is not None), model.architecture.max_length
        self.rooms = [min(room, longest - len(begin) - extra + 1) for begin in self.begins]  # the last is never read
        capacity = min(max(map(len, self.begins)) + room + extra, longest)
        self.cache = Cache(model.stack, len(prompts) * copies, capacity)

    def first(self) -> Tensor:
        """Scores [prompts, vocab] after the prompts."""
        model, blank = self.model, self.manner.blank
        begins = self.begins if blank is None else [[*begin, blank] for begin in self.begins]
        ids, layout = _packed(begins, model, both_sides=self.manner.both_sides, segments=self.segments)
        memory = None
        if self.source is not None and model.source is not None:
            memory = (model.source(*self.source), self.source[1])
        if self.steps is not None:
            if memory is not None:
                model.stack.look_at(memory, self.cache)
            self.fast = self.steps.bind(self.cache)
            scores = self.fast.read(ids, layout)
        else:
            scores = model.answer(model.stack(ids, layout, layout.starts[1:].long() - 1, memory, self.cache))
        if blank is not None:
            self.cache.back()
        return scores

    def next(self, tokens: Tensor) -> Tensor:
        """Scores [n, vocab] after one more token of each sequence, int64 [n]; they last until the next call."""
        scores = self._step(tokens)
        if self.manner.blank is not None:
            scores = self._step(torch.full_like(tokens, self.manner.blank))
            self.cache.back()
        return scores

    def likeliest(self, tokens: Tensor) -> Tensor:
        """The likeliest token, int64 [n], after one more token of each sequence."""
        if self.fast is not None and self.manner.blank is None:
            return self.fast.likeliest(tokens)
        return self.next(tokens).argmax(dim=-1)

    def _step(self, tokens: Tensor) -> Tensor:
        if self.fast is not None:
            return self.fast.scores(tokens)
        hidden: Tensor = self.model.stack(tokens, self.cache.next(), None, None, self.cache)
        return self.model.answer(hidden)


def _packed(
    sequences: Sequence[Ids],
    model: LanguageModel,
    *,
    both_sides: bool = False,
    segments: Sequence[Ids | None] | None = None,
) -> tuple[Tensor, Layout]:
    """Flat ids and their layout on the model's device; a stack that is not causal is told to see the left alone."""
    device = model.table.device
    lengths = np.array([len(one) for one in sequences])
    layout = Layout.from_lengths(lengths)
    if both_sides or not (model.architecture.causal or model.architecture.both):
        reach = np.repeat(lengths, lengths) if both_sides else layout.positions + 1
        layout = replace(layout, reach=reach.astype(np.int32))
    if segments is not None and any(one is not None for one in segments):
        kinds = zip(sequences, segments, strict=True)
        kept = [np.zeros(len(ids), np.int32) if kind is None else np.asarray(kind, np.int32) for ids, kind in kinds]
        layout = replace(layout, segments=np.concatenate(kept))
    return torch.from_numpy(np.concatenate(sequences).astype(np.int64)).to(device), layout.to(device)


def choose(scores: Tensor, how: Decoding, draws: np.ndarray | None) -> Tensor:
    """A token for each row of scores [n, vocab]: int64 [n].

    Args:
        draws: float64 [n], uniform in [0, 1); None for the likeliest token.
    """
    if how.greedy or draws is None:
        return scores.argmax(dim=-1)
    chosen = torch.empty(len(scores), dtype=torch.int64, device=scores.device)
    points = torch.from_numpy(draws).to(scores.device)
    for rows, chances, tokens in candidates(scores, how):
        sums = chances.double().cumsum(dim=-1)
        place = torch.searchsorted(sums, points[rows, None] * sums[:, -1:], right=True).clamp(max=sums.shape[1] - 1)
        chosen[rows] = (place if tokens is None else tokens.gather(1, place)).squeeze(1)
    return chosen


def candidates(scores: Tensor, how: Decoding) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """What may be drawn in each row of scores [n, vocab]: temperature comes first, then top-k, top-p of what that leaves,
    then min-p.

    Yields:
        For some of the rows (int64 [m], every row comes once) the chances, float32 [m, k], 0 of what may not be drawn,
        and their tokens, int64 [m, k]; None for the whole vocabulary in order. How a row is looked at depends on that row.
    """
    scores = scores.float() / how.temperature
    rows, vocabulary = torch.arange(len(scores), device=scores.device), scores.shape[1]
    few = min(how.top_k or FEW, vocabulary)
    if how.top_k or how.top_p < 1:
        best, tokens = scores.topk(few)
        whole = best if how.top_k else scores
        chances = (best - whole.logsumexp(dim=-1, keepdim=True)).exp()
        kept = (chances.cumsum(dim=-1) - chances < how.top_p) & (chances >= how.min_p * chances[:, :1])
        kept[:, 0] = True
        enough = chances.sum(dim=-1) >= how.top_p if not how.top_k and few < vocabulary else rows >= 0
        # In the order of the vocabulary: by chance, two that are all but equal would change places with the company.
        tokens, order = tokens[enough].sort(dim=-1)
        yield rows[enough], torch.where(kept, chances, 0)[enough].gather(1, order), tokens
        rows, scores = rows[~enough], scores[~enough]
    if len(rows):
        chances = scores.softmax(dim=-1)
        kept = chances >= how.min_p * chances.amax(dim=-1, keepdim=True)
        if how.top_p < 1:
            kept &= nucleus(chances, how.top_p)
        yield rows, torch.where(kept, chances, 0), None


def nucleus(chances: Tensor, p: float) -> Tensor:
    """Which tokens are the fewest that together have the chance p: bool, of chances [n, vocab], without sorting them all.

    Chances are put into bins by size; only the bin in which p is reached is sorted.
    """
    bins = ((chances.amax(dim=-1, keepdim=True) / chances).log2() * 16).clamp(max=1023).long()
    mass = chances.new_zeros(len(chances), 1024, dtype=torch.float64).scatter_add_(1, bins, chances.double())
    before = mass.cumsum(dim=-1) - mass
    edge = (before < p).sum(dim=-1, keepdim=True) - 1
    kept = bins < edge
    for row, last in enumerate(edge.squeeze(1).tolist()):
        inside = (bins[row] == last).nonzero().squeeze(1)
        sizes, order = chances[row, inside].double().sort(descending=True)
        kept[row, inside[order[sizes.cumsum(0) - sizes + before[row, last] < p]]] = True
    return kept


def penalised(scores: Tensor, seen: Sequence[Ids], penalty: float) -> Tensor:
    """Scores [n, vocab] with those of the tokens seen in each row made worse, float32."""
    scores = scores.float().clone()
    for row, tokens in zip(scores, seen, strict=True):
        there = torch.tensor(sorted(set(tokens)), device=scores.device)
        were = row[there]
        row[there] = torch.where(were < 0, were * penalty, were / penalty)
    return scores


def beam_search(
    model: LanguageModel,
    prompts: Sequence[Ids],
    how: Decoding,
    ends: Collection[int],
    manner: Manner,
    steps: Steps | None = None,
    segments: Sequence[Ids | None] | None = None,
) -> Iterator[Written]:
    """Of `how.beams` beginnings of each prompt, each step's best continuations go on (Graves 2012, Wu et al. 2016).

    What ends among the best is set aside, with its score divided by its length to the power of the length penalty. A
    prompt is done when no beginning could still beat the worst of as many set aside, and its best is yielded.
    """
    width, vocabulary = how.beams, model.architecture.vocab_size
    reader = Reader(model, prompts, how.max_new_tokens, manner, copies=width, steps=steps, segments=segments)
    scores = reader.first()
    reader.cache.pick(torch.arange(len(prompts), device=scores.device).repeat_interleave(width))
    scores = scores.repeat_interleave(width, dim=0)
    groups = [
        _Beams(n, begin, room, width) for n, (begin, room) in enumerate(zip(reader.begins, reader.rooms, strict=True))
    ]
    for step in range(1, how.max_new_tokens + 1):
        chances = scores.float().log_softmax(dim=-1)
        if how.repetition_penalty != 1:
            chances = penalised(chances, [one for group in groups for one in group.texts], how.repetition_penalty)
        sums = chances.view(-1, width, vocabulary) + chances.new_tensor([group.sums for group in groups])[:, :, None]
        few = min(max(2, 1 + len(ends)) * width, width * vocabulary)
        best, places = (part.tolist() for part in sums.flatten(1).topk(few))
        rows: list[int] = []
        open_ones: list[_Beams] = []
        for i, group in enumerate(groups):
            best_here = [(total, *divmod(place, vocabulary)) for total, place in zip(best[i], places[i], strict=True)]
            went_on = group.go_on(best_here, ends, step, how)
            if group.done:
                yield [(group.number, token) for token in group.over[0][1][len(reader.begins[group.number]) :]]
            else:
                rows += [i * width + beam for beam in went_on]
                open_ones.append(group)
        if not open_ones:
            return
        reader.cache.pick(torch.tensor(rows, device=scores.device), same_source=len(open_ones) == len(groups))
        groups = open_ones
        last = [text[-1] for group in groups for text in group.texts]
        scores = reader.next(torch.tensor(last, device=scores.device))


class _Beams:
    """The beginnings of one prompt."""

    def __init__(self, number: int, begin: list[int], room: int, width: int) -> None:
        self.number, self.room, self.width, self.done = number, room, width, False
        self.texts = [begin] * width
        self.sums = [0.0] + [-1e9] * (width - 1)  # all are the same yet: only one may be continued
        self.over: list[tuple[float, list[int]]] = []

    def go_on(
        self, best: Sequence[tuple[float, int, int]], ends: Collection[int], length: int, how: Decoding
    ) -> list[int]:
        """Take the best continuations (sum, beam, token), likeliest first; the beams that went on, as they were numbered.

        Those that have no room left are over, as those with an end are.
        """
        last = length == self.room
        for total, beam, token in best[: self.width]:
            if token in ends or last:
                self.over.append((total / length**how.length_penalty, [*self.texts[beam], token]))
        self.over = sorted(self.over, key=lambda one: -one[0])[: self.width]
        went_on = [one for one in best if one[2] not in ends][: self.width]
        self.texts = [[*self.texts[beam], token] for _, beam, token in went_on]
        self.sums = [total for total, _, _ in went_on]
        full = len(self.over) == self.width
        self.done = last or (full and self.sums[0] / length**how.length_penalty <= self.over[-1][0])
        return [beam for _, beam, _ in went_on]
