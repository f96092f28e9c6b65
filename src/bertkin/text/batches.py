"""Rows out of a token store: packing, shuffling, and the batch that everything else reads.

The corpus is one endless circle of documents, each wrapped as [CLS] tokens [SEP]. An epoch cuts the circle in rows of
`length` tokens, from an offset of its own, and visits them in a shuffled order; a row number alone says which row that
is (`plan`), so the position in the data is one integer and nothing has to be remembered or written down.

Inside a row each document's piece is its own sequence: attention never crosses a document. A row that begins inside a
document begins with an extra [CLS], one that ends inside a document ends with an extra [SEP]; neighbouring rows overlap
by the token or two that this takes, so that rows are full and no token is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from bertkin.errors import UserError
from bertkin.text.fields import frames_of
from bertkin.text.layout import Layout
from bertkin.text.shuffle import Bits, below, mix, permute

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Marks = NDArray[np.uint8]

GOES_ON, BEGINS = 1, 2
"""Marks of a token: it is hidden with what began before it; it begins what is hidden at once."""
IGNORED = -100
"""The target of a position that only fills up a shape; torch's cross_entropy leaves it out by default."""


class SplitLike(Protocol):
    """What batches need of a part of a token store (`bertkin.text.store.Split`). Tokens are raw: no [CLS], no [SEP]."""

    @property
    def tokens(self) -> Any:
        """Ids, [n_tokens], document after document."""

    @property
    def documents(self) -> Any:
        """int64 [n_documents + 1]: document d owns tokens documents[d]:documents[d + 1], never none."""

    @property
    def sentences(self) -> Any:
        """int64, sorted: offsets at which a sentence starts."""

    @property
    def marks(self) -> Any:
        """uint8 [n_tokens], see `bertkin.text.words`: what is hidden at once, where the tokens do not tell; or None."""

    @property
    def n_tokens(self) -> int: ...

    @property
    def n_documents(self) -> int: ...


@dataclass(frozen=True)
class Specials:
    """What batches need to know of a tokenizer."""

    cls: int
    """Begins a sequence: [CLS], <s>, or whatever begins a text."""
    sep: int
    """Ends one: [SEP], </s>, or whatever ends a text."""
    mask: int
    """-1 where the tokenizer has none."""
    pad: int
    special_ids: Ints
    vocab_size: int
    word_starts: Bools
    """[vocab]: whether the token begins a word."""
    frames: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """Special tokens that are written as text is: those around fields (`bertkin.text.fields`)."""
    sentinels: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """T5's <extra_id_0>, <extra_id_1>, …, in the order they are used; empty where the tokenizer has none."""
    weights: NDArray[np.float64] | None = None
    """[vocab]: how readily each token is hidden (`bertkin.objectives.adaptive`); None for all alike."""

    @staticmethod
    def of(tokenizer: Any) -> Specials:
        return Specials(
            cls=int(tokenizer.cls_id),
            sep=int(tokenizer.sep_id),
            mask=int(tokenizer.mask_id) if tokenizer.has("mask") else -1,
            pad=int(tokenizer.pad_id),
            special_ids=np.asarray(tokenizer.special_ids, np.int64),
            vocab_size=int(tokenizer.vocab_size),
            word_starts=np.asarray(tokenizer.word_starts, np.bool_),
            frames=np.array([mark for pair in frames_of(tokenizer).values() for mark in pair], np.int64),
            sentinels=np.asarray(tokenizer.sentinels, np.int64),
        )

    @cached_property
    def ordinary(self) -> Bools:
        """[vocab]: whether the token is text, not a special one. Only text is ever hidden."""
        table = np.ones(self.vocab_size, np.bool_)
        table[self.special_ids] = False
        return table

    @cached_property
    def written(self) -> Bools:
        """[vocab]: whether whoever writes is asked for the token: text, and the marks of fields."""
        table = self.ordinary.copy()
        table[self.frames] = True
        return table

    @cached_property
    def ordinary_ids(self) -> Ints:
        """The ids a random replacement is drawn from."""
        return np.flatnonzero(self.ordinary)


@dataclass(frozen=True)
class Source:
    """What the encoder of an encoder–decoder reads: sequence s here belongs to sequence s of the batch."""

    ids: Ints
    """[tokens of the source]."""
    layout: Layout
    row_starts: Ints
    """[n_rows + 1], as of the batch: row r owns tokens row_starts[r]:row_starts[r + 1] of the source."""


@dataclass(frozen=True)
class Batch:
    """Rows ready for a model: what it sees, and what it is asked. All numpy, all flat."""

    ids: Ints
    """[tokens]: the input, with the asked positions already corrupted."""
    layout: Layout
    asked: Ints
    """[n], sorted: the positions that are asked."""
    targets: Ints
    """[n]: what stood there."""
    pairs: Ints
    """[p], sorted: the positions of the [CLS] of sentence pairs."""
    pair_labels: Ints
    """[p]: 1 where the second part does not follow the first (next) or the two are swapped (order), else 0."""
    row_starts: Ints
    """[n_rows + 1]: row r owns tokens row_starts[r]:row_starts[r + 1]."""
    source: Source | None = None
    """What an encoder reads beside it, for an encoder–decoder; `ids` is then what the decoder has written so far."""
    edges: Ints | None = None
    """[n, 2]: for each asked position, the flat positions of the tokens just before and just after its hidden span
    (SpanBERT's boundary objective); None where nobody asks."""

    @property
    def n_rows(self) -> int:
        return len(self.row_starts) - 1

    @property
    def n_tokens(self) -> int:
        """Tokens read, those of a source included."""
        return len(self.ids) + (0 if self.source is None else len(self.source.ids))

    @property
    def idle(self) -> bool:
        """Whether nothing is asked."""
        return not len(self.asked) and not len(self.pairs)

    def slice(self, rank: int, world: int) -> Batch:
        """The rank-th of `world` nearly equal shares, in whole rows; the shares together are the whole batch."""
        first, last = self.n_rows * rank // world, self.n_rows * (rank + 1) // world
        begin, end = int(self.row_starts[first]), int(self.row_starts[last])
        sequences = np.searchsorted(self.layout.starts, [begin, end])
        asked = slice(*np.searchsorted(self.asked, [begin, end]))
        pairs = slice(*np.searchsorted(self.pairs, [begin, end]))
        return Batch(
            ids=self.ids[begin:end],
            layout=self.layout.take(int(sequences[0]), int(sequences[1])),
            asked=self.asked[asked] - begin,
            targets=self.targets[asked],
            pairs=self.pairs[pairs] - begin,
            pair_labels=self.pair_labels[pairs],
            row_starts=self.row_starts[first : last + 1] - begin,
            source=self._source(first, last, int(sequences[0]), int(sequences[1])),
            edges=None if self.edges is None else self.edges[asked] - begin,
        )

    def _source(self, first: int, last: int, begin: int, end: int) -> Source | None:
        """The source of rows first up to last, which hold the sequences begin up to end."""
        if self.source is None:
            return None
        ids, layout, starts = self.source.ids, self.source.layout, self.source.row_starts[first : last + 1]
        return Source(ids[starts[0] : starts[-1]], layout.take(begin, end), starts - starts[0])

    def split(self, n: int) -> list[Batch]:
        """The batch in n nearly equal shares of whole rows, for gradient accumulation."""
        return [self.slice(i, n) for i in range(n)]

    def fill_asked(self, count: int) -> tuple[Ints, Ints]:
        """`asked` and `targets` brought to a fixed length `count`, for compiled programs that want fixed shapes.

        The added places ask position 0 for `IGNORED`. With unit token, word or span a row never asks more than
        `masking.quota(rate, row_length - 2)` tokens.
        """
        short = count - len(self.asked)
        if short < 0:
            raise ValueError(f"{len(self.asked)} positions are asked, more than {count}")
        return np.pad(self.asked, (0, short)), np.pad(self.targets, (0, short), constant_values=IGNORED)


def stream_length(split: SplitLike) -> int:
    """Tokens of the circle: all tokens and a [CLS] and a [SEP] for each document."""
    return split.n_tokens + 2 * split.n_documents


def _size_and_stride(split: SplitLike, length: int) -> tuple[int, int]:
    """Tokens of a row, and how far apart rows start: two less, for the [CLS] and [SEP] a row may have to add."""
    if length < 3:
        raise UserError(f"a row of {length} tokens has no room between [CLS] and [SEP]", where="--train.length")
    size = min(length, stream_length(split))
    return size, size - 2


def rows_per_epoch(split: SplitLike, length: int) -> int:
    """Rows of `length` tokens in one pass over the split."""
    _, stride = _size_and_stride(split, length)
    return -(-stream_length(split) // stride)


def check_enough(split: SplitLike, length: int, n_rows: int) -> None:
    """Refuse a split too small to fill one batch.

    Raises:
        UserError: saying how many tokens there are, how many a batch needs, and what to change.
    """
    _size_and_stride(split, length)
    have, need = stream_length(split), n_rows * length
    if have >= need:
        return
    fits = have // length * length
    smaller = f"or set --train.batch_tokens to {fits} or less" if fits else f"or set --train.length below {have}"
    raise UserError(
        f"the corpus has {have:,} tokens, but one batch needs {need:,} ({n_rows:,} rows of {length:,})",
        mend=f"add text {smaller}",
    )


def plan(
    split: SplitLike, *, seed: int, first_row: int, n_rows: int, length: int, static: bool = False
) -> tuple[Ints, Bits]:
    """Which rows are rows first_row … first_row + n_rows - 1 of training.

    Row numbers count on over the epochs; each length has a circle of its own, so with a length curriculum count the
    rows of each length apart.

    Args:
        static: cut every epoch at the same places and give each row the same key in every epoch, for masks that are
            drawn once; only the order changes then.

    Returns:
        Where each row starts on the circle, and the key of all that is random in it.
    """
    _, stride = _size_and_stride(split, length)
    total = rows_per_epoch(split, length)
    epoch, index = np.divmod(np.arange(first_row, first_row + n_rows, dtype=np.int64), total)
    place = permute(index, total, mix(1, seed, length, epoch))
    if static:
        return place * stride % stream_length(split), mix(3, seed, length, place)
    offset = below(mix(2, seed, length, epoch), stride)
    return (place * stride + offset) % stream_length(split), mix(4, seed, length, epoch, place)


@dataclass(frozen=True)
class Pieces:
    """Rows as a table of the pieces of documents in them, in order; all arrays are [pieces].

    A piece with segment 0 starts a sequence; a piece with segment 1 is the second part of the one before.
    """

    row: Ints
    document: Ints
    """The document the piece is from; -1 for the filler of a row that could not be filled by text."""
    first: Ints
    """Offset of its first token in the split."""
    count: Ints
    """Tokens of text (of a filler: [PAD]s)."""
    segment: Ints

    def take(self, index: Any) -> Pieces:
        return Pieces(*(column[index] for column in (self.row, self.document, self.first, self.count, self.segment)))


def cut(split: SplitLike, starts: Ints, length: int) -> Pieces:
    """The pieces of the rows that start at these places of the circle.

    Every row has exactly `length` tokens once [CLS] and [SEP] are added (the whole circle if that is shorter). Where
    the document that begins in a row's last one or two places finds no room for a token, the row starts a little
    earlier instead; a row that cannot gets a filler of one or two [PAD]s, a sequence of its own.
    """
    around, n = stream_length(split), split.n_documents
    size, _ = _size_and_stride(split, length)

    def begin_of(document: Ints) -> Ints:  # documents are counted on, around after around
        turn, d = np.divmod(document, n)
        begin: Ints = turn * around + np.asarray(split.documents[d]) + 2 * d
        return begin

    def document_at(place: Ints) -> Ints:
        turn, place = np.divmod(place, around)
        return turn * n + _document_at(split, place)

    first = document_at(starts)
    on_sep = starts == begin_of(first + 1) - 1  # a row that begins with a lone [SEP] begins with the next document
    starts, first = starts + on_sep, first + on_sep
    inside = starts > begin_of(first)  # … so a [CLS] must be added
    end = starts + size - inside - 1  # the place of the row's last token, which is, or is replaced by, a [SEP]
    documents = document_at(end) - first + 1

    row = np.repeat(np.arange(len(starts)), documents)
    heads = np.cumsum(documents) - documents
    document = first[row] + np.arange(len(row)) - heads[row]
    begin = begin_of(document)
    low = np.maximum(starts[row], begin + 1)
    count = np.minimum(end[row], begin_of(document + 1) - 1) - low

    no_room = np.flatnonzero(count <= 0)
    if len(no_room):
        missing = count[no_room] + 2
        head = heads[row[no_room]]
        earlier = np.minimum(missing, low[head] - begin[head] - 1)
        low[head] -= earlier
        count[head] += earlier
        count[no_room] = missing - earlier
    filler = np.zeros(len(row), np.bool_)
    filler[no_room] = True
    document %= n
    pieces = Pieces(
        row=row,
        document=np.where(filler, -1, document),
        first=np.where(filler, 0, np.asarray(split.documents[document]) + low - begin - 1),
        count=count,
        segment=np.zeros(len(row), np.int64),
    )
    return pieces.take(count > 0)


def _document_at(split: SplitLike, place: Ints) -> Ints:
    """The document at each place of the circle: a bisection that reads only the offsets it needs."""
    low, high = np.zeros_like(place), np.full_like(place, split.n_documents)
    for _ in range(split.n_documents.bit_length()):
        middle = (low + high) // 2
        right = np.asarray(split.documents[middle]) + 2 * middle <= place
        low, high = np.where(right, middle, low), np.where(right, high, middle)
    return low


def ends_document(split: SplitLike, pieces: Pieces) -> Bools:
    """[pieces]: whether a piece ends where its document does, and not where its row was full."""
    document = np.maximum(pieces.document, 0)
    whole: Bools = pieces.first + pieces.count == np.asarray(split.documents[document + 1])
    return whole & (pieces.document >= 0)


def lay(split: SplitLike, pieces: Pieces, ids: Specials) -> tuple[Ints, Layout, Ints]:
    """Write the pieces out as tokens, with their [CLS] and [SEP].

    Returns:
        ids int64 [tokens], their layout (with segments if there are second parts), and row_starts int64 [rows + 1].
    """
    filler, opens, starts, ends = _places(pieces)
    sizes, n_tokens = ends - starts, int(ends[-1])
    closes = ends[~filler] - 1
    tokens = split.tokens[np.maximum(offsets(pieces), 0)].astype(np.int64)
    tokens[starts[opens]] = ids.cls
    tokens[closes] = ids.sep
    for i in np.flatnonzero(filler):
        tokens[starts[i] : ends[i]] = ids.pad

    new_row = np.flatnonzero(np.diff(pieces.row, prepend=-1))
    row_starts = np.append(starts[new_row], n_tokens)
    row_sizes = np.diff(row_starts)
    sequence_starts = starts[pieces.segment == 0]
    segments = np.repeat(pieces.segment, sizes).astype(np.int32) if pieces.segment.any() else None
    layout = Layout.from_lengths(
        np.diff(np.append(sequence_starts, n_tokens)),
        segments=segments,
        row_length=int(row_sizes[0]) if np.all(row_sizes == row_sizes[0]) else 0,
    )
    return tokens, layout, row_starts


def offsets(pieces: Pieces) -> Ints:
    """Of each token as `lay` writes them, where in the split it stands; -1 for special ones. int64 [tokens]."""
    filler, opens, starts, ends = _places(pieces)
    source = np.repeat(pieces.first - starts - opens, ends - starts) + np.arange(ends[-1])
    source[starts[opens]] = -1
    source[ends[~filler] - 1] = -1
    for i in np.flatnonzero(filler):
        source[starts[i] : ends[i]] = -1
    return cast(Ints, source)


def marks_of(split: SplitLike, pieces: Pieces) -> Marks | None:
    """The mark of each token as `lay` writes them, uint8 [tokens], 0 for special ones; None for an unmarked split."""
    if split.marks is None:
        return None
    at = offsets(pieces)
    return np.where(at >= 0, split.marks[np.maximum(at, 0)], np.uint8(0))


def _places(pieces: Pieces) -> tuple[Bools, Bools, Ints, Ints]:
    """Which pieces are fillers, which begin with a [CLS], and where each starts and ends; all [pieces]."""
    filler = pieces.document < 0
    opens = (pieces.segment == 0) & ~filler
    sizes = pieces.count + opens + ~filler
    ends = np.cumsum(sizes)
    return filler, opens, ends - sizes, ends


def rows_of(row_starts: Ints) -> Ints:
    """[tokens]: the row of each token."""
    return np.repeat(np.arange(len(row_starts) - 1), np.diff(row_starts))


def fill(batches: Sequence[Batch], ids: Specials) -> float:
    """Share of the batches' places that hold a document's token (with its [CLS] and [SEP])."""
    tokens = sum(batch.n_tokens for batch in batches)
    return 1 - sum(int(np.count_nonzero(batch.ids == ids.pad)) for batch in batches) / tokens
