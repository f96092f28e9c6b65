"""Examples become rows of tokens: texts joined as the family wants them, cut or read in windows, labels found again by offset.

    template = Template.of(tokenizer)                 what stands before, between and after texts
    rows     = encode(examples, task, tokenizer, …)   one row an example, or a window or choice of it

Nothing is cut silently: `Rows.cut` counts the examples that lost text. A text with the answer inside (tags, spans) is never
cut: one longer than the model is read in overlapping windows, and every word is answered in the window where it has most
text around it. Where one answer is of the whole text (a class, several, a score), it is read in as many
windows as are asked for, and answered by the mean of their scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from bertkin.errors import UserError
from bertkin.tasks.task import Example, Task
from bertkin.text.batches import Ints
from bertkin.text.layout import Layout
from bertkin.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

Offsets = list[tuple[int, int]]
NONE: Ints = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Template:
    """The special tokens that a tokenizer's own post-processor puts around one text and two."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    segmented: bool
    """Whether texts after the first are of segment 1."""
    alone: int | None = None
    """What stands for texts without any token where nothing is put around them, if anything is to."""

    @staticmethod
    def of(tokenizer: Tokenizer) -> Template:
        """Read off what the tokenizer makes of two texts. One that puts nothing between gets its end token there."""
        encoding = tokenizer.backend.encode("a", "b")
        owners = encoding.sequence_ids
        first, second = owners.index(0), owners.index(1)
        last_first = len(owners) - 1 - owners[::-1].index(0)
        last = len(owners) - 1 - owners[::-1].index(1)
        ids = encoding.ids
        between = tuple(ids[last_first + 1 : second]) or (tokenizer.sep_id,)
        before, after = tuple(ids[:first]), tuple(ids[last + 1 :])
        return Template(before, between, after, any(encoding.type_ids), tokenizer.sep_id)

    def extra(self, texts: int) -> int:
        """How many special tokens so many texts take."""
        return len(self.before) + len(self.between) * (texts - 1) + len(self.after)


@dataclass(frozen=True)
class Row:
    """What a model reads at once: an example, or one window or choice of it."""

    ids: Ints
    segments: Any
    """int32 [tokens], 0 or 1, or None."""
    example: int
    """Index of the example."""
    places: Ints
    """[n]: of a tagged word the place of its first token here; of a span's context the place of each of its tokens."""
    words: Ints
    """[n]: which word of the example (tokens), or which token of its context (span), stands there."""
    target: Any = None
    """What the loss compares with: a class, several, a score, tags [n], or the places of a span's first and last token;
    None where the label is not known."""
    answer: Ints = field(default_factory=lambda: NONE)
    """int64 [n]: the tokens of an answer that is written, its end among them (`bertkin.tasks.frames`)."""

    @property
    def n_tokens(self) -> int:
        """What is read and written."""
        return len(self.ids) + len(self.answer)


@dataclass(frozen=True)
class Rows:
    """All rows of some examples, in order."""

    rows: list[Row]
    examples: Sequence[Example]
    task: Task
    contexts: list[Offsets]
    """Of spans: for each example the character offsets of its context's tokens."""
    cut: int
    """Examples that lost text."""

    @cached_property
    def lengths(self) -> Ints:
        """[rows], in tokens."""
        return np.array([row.n_tokens for row in self.rows], np.int64)

    @cached_property
    def groups(self) -> Ints:
        """[examples + 1]: example e owns rows groups[e]:groups[e + 1]."""
        owner = np.array([row.example for row in self.rows], np.int64)
        return np.searchsorted(owner, np.arange(len(self.examples) + 1))


def encode(
    examples: Sequence[Example],
    task: Task,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    stride: int | None = None,
    windows: int = 1,
) -> Rows:
    """Rows of at most `max_length` tokens.

    Args:
        stride: tokens that neighbouring windows share; by default a quarter of the room.
        windows: most windows of a text with one answer; what is behind them is cut.

    Raises:
        UserError: a model that reads too few tokens for the task.
    """
    template = Template.of(tokenizer)
    whole = _whole if windows == 1 else partial(_slid, windows)
    maker = {"tokens": _tagged, "span": _spanned, "choice": _chosen}.get(task.output, whole)
    rows: list[Row] = []
    contexts: list[Offsets] = []
    cut = 0
    found = tokenize(examples, tokenizer, placed=task.output in ("tokens", "span"))
    for number, (example, texts) in enumerate(zip(examples, found, strict=True)):
        beside = len(example.texts) + 1 if task.output == "choice" else len(texts)  # one choice stands in a row
        room = max_length - template.extra(beside)
        if room < 2 * beside:
            raise UserError(f"rows of {max_length} tokens leave no room for {beside} texts", mend="choose longer rows")
        made, lost = maker(number, example, texts, template, room, stride if stride is not None else room // 4)
        rows += made
        cut += lost
        contexts.append(texts[-1][1] if task.output == "span" else [])
    return Rows(rows, examples, task, contexts, cut)


Text = tuple[list[int], Offsets]
"""Ids of a text and the characters of each, where they are wanted."""


def tokenize(examples: Sequence[Example], tokenizer: Tokenizer, *, placed: bool = True) -> list[list[Text]]:
    """Each example's texts, its choices after them, all tokenized on all cores; `placed` asks for the characters of each
    token, which take longer than the tokens."""
    flat = [text for example in examples for text in (*example.texts, *example.choices)]
    if placed:
        encodings = tokenizer.backend.encode_batch(flat, add_special_tokens=False)
        pieces = iter([(encoding.ids, encoding.offsets) for encoding in encodings])
    else:
        encodings = tokenizer.backend.encode_batch_fast(flat, add_special_tokens=False)
        pieces = iter([(encoding.ids, []) for encoding in encodings])
    return [[next(pieces) for _ in (*example.texts, *example.choices)] for example in examples]


def put_together(texts: Sequence[Sequence[int]], template: Template) -> tuple[Ints, Any, list[int]]:
    """Ids, segments, and where each text begins."""
    ids: list[int] = list(template.before)
    segments = [0] * len(ids)
    begins = []
    for number, text in enumerate(texts):
        if number:
            ids += template.between
            segments += [min(number - 1, 1)] * len(template.between)
        begins.append(len(ids))
        ids += text
        segments += [min(number, 1)] * len(text)
    ids += template.after
    segments += [min(len(texts) - 1, 1)] * len(template.after)
    if not ids and template.alone is not None:  # a sequence has a token that its answer is read at
        ids, segments = [template.alone], [0]
    kinds = np.array(segments, np.int32) if template.segmented and len(texts) > 1 else None
    return np.array(ids, np.int64), kinds, begins


def fit(texts: Sequence[Sequence[int]], room: int) -> tuple[list[Sequence[int]], bool]:
    """Texts that fit together: tokens are taken from the end of whichever is the longest."""
    sizes = [len(text) for text in texts]
    excess = sum(sizes) - room
    if excess <= 0:
        return list(texts), False
    while excess > 0:
        longest = max(range(len(sizes)), key=lambda i: sizes[i])
        others = max([size for i, size in enumerate(sizes) if i != longest], default=0)
        off = min(excess, max(1, sizes[longest] - others))
        sizes[longest] -= off
        excess -= off
    return [text[:size] for text, size in zip(texts, sizes, strict=True)], True


LEAST = 16
"""Tokens of the last text that a window must have room for."""
Made = tuple[list[Row], bool]


def _whole(number: int, example: Example, texts: list[Text], template: Template, room: int, stride: int) -> Made:
    """One row with one answer: a class, several, a score."""
    fitted, lost = fit([ids for ids, _ in texts], room)
    ids, segments, _ = put_together(fitted, template)
    return [Row(ids, segments, number, NONE, NONE, example.label)], lost


def _slid(
    windows: int, number: int, example: Example, texts: list[Text], template: Template, room: int, stride: int
) -> Made:
    """A row for each of the first `windows` windows of the longest text, the other texts beside each; all of one answer."""
    parts: list[Sequence[int]] = [ids for ids, _ in texts]
    if sum(map(len, parts)) <= room:
        return _whole(number, example, texts, template, room, stride)
    longest = max(range(len(parts)), key=lambda i: len(parts[i]))
    others, lost = fit([ids for i, ids in enumerate(parts) if i != longest], room // 2)
    left = room - sum(map(len, others))
    places = _windows(len(parts[longest]), left, min(stride, left // 2))
    rows = []
    for low, high, _, _ in places[:windows]:
        ids, segments, _ = put_together([*others[:longest], parts[longest][low:high], *others[longest:]], template)
        rows.append(Row(ids, segments, number, NONE, NONE, example.label))
    return rows, lost or len(places) > windows


def _chosen(number: int, example: Example, texts: list[Text], template: Template, room: int, stride: int) -> Made:
    """A row for each choice: the texts, and the choice last."""
    rows, lost = [], False
    shared = len(example.texts)
    for choice in texts[shared:]:
        fitted, short = fit([ids for ids, _ in (*texts[:shared], choice)], room)
        ids, segments, _ = put_together(fitted, template)
        rows.append(Row(ids, segments, number, NONE, NONE, example.label))
        lost |= short
    return rows, lost


def _tagged(number: int, example: Example, texts: list[Text], template: Template, room: int, stride: int) -> Made:
    """Words of the last text found by their characters; a row for each window, the other texts before each. A word whose text
    gives no token is nowhere."""
    head, room, lost = _head(texts, room)
    ids, offsets = texts[-1]
    starts = np.array([start for start, _ in offsets], np.int64)
    ends = np.array([end for _, end in offsets], np.int64)
    spans = example.spans
    # The first token that ends behind the word's beginning; byte-level tokens begin with the blank before a word.
    firsts = np.searchsorted(ends, [start for start, _ in spans], side="right")
    real = np.array([f < len(starts) and starts[f] < end for f, (_, end) in zip(firsts, spans, strict=True)], np.bool_)
    tags = np.array([tag for *_, tag in example.label], np.int64) if example.label else None
    rows = []
    for low, high, own_low, own_high in _windows(len(ids), room, min(stride, room // 2)):
        mine = np.flatnonzero(real & (firsts >= own_low) & (firsts < own_high)) if len(spans) else NONE
        row, segments, begins = put_together([*head, ids[low:high]], template)
        target = None if tags is None else tags[mine]
        rows.append(Row(row, segments, number, firsts[mine] - low + begins[-1], mine, target))
    return rows, lost


def _spanned(number: int, example: Example, texts: list[Text], template: Template, room: int, stride: int) -> Made:
    """Windows of the last text, the others before each. A span outside a window is, there, no answer."""
    if len(texts) == 1 and not template.before and template.alone is not None:  # where "no answer" has its place
        template, room = replace(template, before=(template.alone,)), room - 1
    head, room, lost = _head(texts, room)
    context, offsets = texts[-1]
    answer = _answer(example, offsets)
    rows = []
    for low, high, _, _ in _windows(len(context), room, min(stride, room // 2)):
        ids, segments, begins = put_together([*head, context[low:high]], template)
        at = begins[-1]
        target = None
        if answer is not None:
            inside = low <= answer[0] and answer[1] < high
            target = (answer[0] - low + at, answer[1] - low + at) if inside else (0, 0)
        places = np.arange(at, at + high - low)
        rows.append(Row(ids, segments, number, places, np.arange(low, high), target))
    return rows, lost


def _head(texts: list[Text], room: int) -> tuple[list[Sequence[int]], int, bool]:
    """The texts that stand before each window of the last one, the room that they leave it, and whether they lost their
    ends for it: they stand whole unless that leaves next to no room, and else have half."""
    head: list[Sequence[int]] = [ids for ids, _ in texts[:-1]]
    left = room - sum(map(len, head))
    lost = False
    if head and left < min(LEAST, len(texts[-1][0])):
        head, lost = fit(head, room // 2)
        left = room - sum(map(len, head))
    return head, left, lost


def _answer(example: Example, offsets: Offsets) -> tuple[int, int] | None:
    """First and last token of the first answer; (-1, -1) where there is none, None where nobody knows."""
    if example.label is None:
        return None
    for start, end in example.label:
        inside = [i for i, (low, high) in enumerate(offsets) if low < end and high > start]
        if inside:
            return inside[0], inside[-1]
    return -1, -1


def _windows(length: int, room: int, stride: int) -> list[tuple[int, int, int, int]]:
    """Windows over `length` tokens: first and last, and what of it is the window's own, so that each token is one's."""
    if length <= room:
        return [(0, length, 0, length)]
    step = room - stride
    lows = list(range(0, max(length - room, 0) + step, step))
    lows[-1] = length - room
    middles = [(lows[i] + lows[i + 1] + room) // 2 for i in range(len(lows) - 1)]  # half-way through what they share
    edges = [0, *middles, length]
    return [(low, low + room, edges[i], edges[i + 1]) for i, low in enumerate(lows)]


def at_once() -> int:
    """Tokens that are best read together: as many as stay in cache, or, where tiles multiply so fast that the way to each
    product counts, more."""
    from bertkin.models import kernels

    return 8192 if kernels.has_tiles() else 2048


def alike(lengths: Ints, batch_tokens: int) -> Iterator[Ints]:
    """Which rows are read together: those of like length, about so many tokens at a time; every row once."""
    order = np.argsort(lengths, kind="stable")
    batch = np.cumsum(lengths[order]) // batch_tokens
    edges = [0, *(np.flatnonzero(np.diff(batch)) + 1).tolist(), len(order)]
    for low, high in pairwise(edges):
        if high > low:
            yield order[low:high]


def packed(rows: Sequence[Row], device: str = "cpu") -> tuple[Tensor, Layout]:
    """Rows end to end: ids [tokens] and their layout."""
    import torch

    segments = None
    if any(row.segments is not None for row in rows):
        segments = np.concatenate(
            [np.zeros(len(row.ids), np.int32) if row.segments is None else row.segments for row in rows]
        )
    layout = Layout.from_lengths([len(row.ids) for row in rows], segments=segments)
    return torch.from_numpy(np.concatenate([row.ids for row in rows])).to(device), layout.to(device)
