"""Denoising: an encoder reads spoilt text, a decoder writes what is missing or the whole (BART, MASS, T5).

`objective.noise` says how the text is spoilt, in the words of `bertkin.objectives.noises`:

    infilling                       one noise
    permutation+infilling           one after the other, on the same text (only where the whole text is written)
    spans:0.5,prefix:0.5            each row one of these, by lot

How a text is framed follows from the tokenizer, so that one model may learn any mixture and write as `transformers`
would have it:

                  source               decoder reads             decoder is asked
    BART          [CLS] … [SEP]        [SEP] [CLS] w1 … wn       [CLS] w1 … wn [SEP]
    T5            … [SEP]              [PAD] w1 … wn             w1 … wn [SEP]

After a beginning that is gone on with (prefix) the [SEP] is asked only where the document ends. T5's frame is for
tokenizers with sentinels; what is called [CLS] and [SEP] here is <s> and </s> in theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bertkin.config import Objective
from bertkin.errors import UserError, nearest
from bertkin.objectives.noises import PARTERS, SPOILERS, Text, ranges
from bertkin.text.batches import IGNORED, Batch, Ints, Pieces, Source, Specials, SplitLike, ends_document
from bertkin.text.layout import Layout
from bertkin.text.shuffle import Bits, mix, noise, unit

NEED_MASK = ("masking", "infilling", "mass")

Mixture = tuple[tuple[tuple[str, ...], float], ...]
"""Noises that follow each other, and the share of rows that get them."""


def start_id(ids: Specials) -> int:
    """What a decoder reads first: [PAD] where the tokenizer has sentinels (T5), else [SEP] (BART), whatever the noise.

    The architectures of bart and t5 are written with this decoder_start_token_id; BART's forced_bos_token_id is [CLS],
    T5 has none.
    """
    return ids.pad if len(ids.sentinels) else ids.sep


def parse_noise(text: str | None) -> Mixture:
    """Read `objective.noise`.

    Raises:
        UserError: an unknown noise, noises that cannot follow each other, or shares that do not add up to 1.
    """
    where = "--objective.noise"
    if not text:
        raise UserError("no noise to repair", where=where, mend="name one, such as infilling or spans")
    mixture = []
    parts = text.split(",")
    for part in parts:
        names, colon, share = part.partition(":")
        steps = tuple(name.strip() for name in names.split("+"))
        for name in steps:
            if name not in SPOILERS and name not in PARTERS:
                raise UserError(f"{name!r} is not a noise", where=where, mend=nearest(name, [*SPOILERS, *PARTERS]))
            if name in PARTERS and len(steps) > 1:
                raise UserError(
                    f"{name} cannot be joined to another noise, as it does not ask for the whole text",
                    where=where,
                    mend=f"join {', '.join(SPOILERS)}, or mix: {name}:0.5,{next(s for s in steps if s != name)}:0.5"
                    if set(steps) != {name}
                    else f"write {name} once",
                )
        if not colon and len(parts) > 1:
            raise UserError(f"{part.strip()!r} has no share", where=where, mend="write it as spans:0.5,prefix:0.5")
        try:
            mixture.append((steps, float(share) if colon else 1.0))
        except ValueError:
            raise UserError(f"{share!r} is not a share", where=where, mend="write it as spans:0.5,prefix:0.5") from None
    shares = [share for _, share in mixture]
    if not abs(sum(shares) - 1) <= 1e-6 or not all(share > 0 for share in shares):  # nor nan
        raise UserError(f"the shares of {text!r} must be above 0, with a sum of 1", where=where)
    return tuple(mixture)


def check_noise(objective: Objective, ids: Specials | None = None) -> None:
    """Refuse a noise that cannot be read, or for which the tokenizer (if it is given) has no token.

    Raises:
        UserError: saying what the noise needs.
    """
    used = {name for names, _ in parse_noise(objective.noise) for name in names}
    if ids is None:
        return
    if "spans" in used and not len(ids.sentinels):
        raise UserError(
            "the tokenizer has no sentinels, which the noise spans needs",
            where="--objective.noise",
            mend="train one with --data.sentinels 100, or choose another noise",
        )
    hiding = [name for name in NEED_MASK if name in used]
    if hiding and ids.mask < 0:
        raise UserError(
            f"the tokenizer has no mask token, which the noise {hiding[0]} needs",
            where="--objective.noise",
            mend="choose a tokenizer with one, or deletion, permutation, rotation, spans, drop or prefix",
        )


def denoise(split: SplitLike, ids: Specials, pieces: Pieces, keys: Bits, objective: Objective, rate: float) -> Batch:
    """Every piece of a document is spoilt and framed by itself; see `masked` for the arguments.

    Source and decoder's text have a sequence for each piece. Neither is longer than the piece with its [CLS] and [SEP].
    Marks that stood in the text ([UNK]) are written, but not asked for.

    Raises:
        UserError: as `check_noise`.
    """
    check_noise(objective, ids)
    mixture = parse_noise(objective.noise)
    shares = np.cumsum([share for _, share in mixture])
    lot = np.minimum(np.searchsorted(shares, unit(mix(keys, 8)), side="right"), len(shares) - 1)
    kind = np.where(pieces.document < 0, len(mixture), lot[pieces.row])
    ordinal = np.arange(len(pieces.row)) - np.searchsorted(pieces.row, pieces.row)
    made = []
    for number in np.unique(kind):
        mine = np.flatnonzero(kind == number)
        if number == len(mixture):
            made.append((mine, _filler(pieces.count[mine], ids)))
            continue
        names, _ = mixture[number]
        own = pieces.take(mine)
        text = _read(split, own, "permutation" in names)
        steps = [noise(mix(keys, 9, step)[pieces.row[mine]], ordinal[mine]) for step in range(len(names))]
        framed = _framed(*_spoil(text, names, steps, ids, rate, objective.span_mean), ids)
        if names == ("prefix",):  # its text ends where the document does, not where a row was full
            framed.targets[(np.cumsum(framed.lengths) - 1)[~ends_document(split, own)]] = IGNORED
        made.append((mine, framed))

    order = np.argsort(np.concatenate([mine for mine, _ in made]), kind="stable")
    source, source_lengths = _merged([(one.source, one.source_lengths) for _, one in made], order)
    seen, lengths = _merged([(one.seen, one.lengths) for _, one in made], order)
    targets, _ = _merged([(one.targets, one.lengths) for _, one in made], order)
    layout, row_starts = _layout(lengths, pieces.row)
    asked = np.flatnonzero(targets != IGNORED)
    none = np.zeros(0, np.int64)
    return Batch(
        ids=seen,
        layout=layout,
        asked=asked,
        targets=targets[asked],
        pairs=none,
        pair_labels=none,
        row_starts=row_starts,
        source=Source(source, *_layout(source_lengths, pieces.row)),
    )


@dataclass(frozen=True)
class _Made:
    """Sequences: what the encoder reads, and what the decoder reads and is asked (IGNORED: nothing)."""

    source: Ints
    source_lengths: Ints
    seen: Ints
    targets: Ints
    lengths: Ints


def _read(split: SplitLike, pieces: Pieces, with_sentences: bool) -> Text:
    """The pieces as they stand in the corpus; their sentences are looked up only where somebody needs them."""
    tokens = split.tokens[ranges(pieces.first, pieces.count)].astype(np.int64)
    begins = np.zeros(len(tokens), np.int64)
    text = Text(tokens, pieces.count, begins)
    if with_sentences:
        low = np.searchsorted(split.sentences, pieces.first, side="right")
        inner = np.searchsorted(split.sentences, pieces.first + pieces.count) - low
        begins[text.starts] = 1
        begins[np.asarray(split.sentences[ranges(low, inner)]) + np.repeat(text.starts - pieces.first, inner)] = 1
        np.cumsum(begins, out=begins)
    return text


def _spoil(
    text: Text, names: tuple[str, ...], steps: list[Bits], ids: Specials, rate: float, mean: float
) -> tuple[Text, Text]:
    """The source, and what is to be written; `steps` are the keys of each noise, [pieces]."""
    if names[0] in PARTERS:
        return PARTERS[names[0]](text, steps[0], ids, rate, mean)
    spoilt = text
    for name, keys in zip(names, steps, strict=True):
        spoilt = SPOILERS[name](spoilt, keys, ids, rate, mean)
    return spoilt, text


def _framed(source: Text, written: Text, ids: Specials) -> _Made:
    first = () if len(ids.sentinels) else (ids.cls,)
    read, read_lengths = _wrapped(source, first, ids.sep)
    targets, lengths = _wrapped(written, first, ids.sep)
    seen = np.roll(targets, 1)
    seen[np.cumsum(lengths) - lengths] = start_id(ids)
    answers = ids.written.copy()
    answers[[*first, ids.sep, *ids.sentinels]] = True
    return _Made(read, read_lengths, seen, np.where(answers[targets], targets, IGNORED), lengths)


def _filler(counts: Ints, ids: Specials) -> _Made:
    pads = np.full(int(counts.sum()), ids.pad)
    return _Made(pads, counts, pads, np.full_like(pads, IGNORED), counts)


def _wrapped(text: Text, first: tuple[int, ...], last: int) -> tuple[Ints, Ints]:
    """Each piece with its first mark, if any, and its last: the tokens, and the lengths."""
    lengths = text.lengths + len(first) + 1
    ends = np.cumsum(lengths)
    out = np.empty(int(lengths.sum()), np.int64)
    out[np.arange(len(text.tokens)) + text.piece * (len(first) + 1) + len(first)] = text.tokens
    for mark in first:
        out[ends - lengths] = mark
    out[ends - 1] = last
    return out, lengths


def _merged(parts: list[tuple[Ints, Ints]], order: Ints) -> tuple[Ints, Ints]:
    """Sequences (tokens, lengths) of several parts, put in order."""
    if len(parts) == 1:  # in order already
        return parts[0]
    tokens = np.concatenate([part for part, _ in parts])
    lengths = np.concatenate([sizes for _, sizes in parts])
    starts = np.cumsum(lengths) - lengths
    return tokens[ranges(starts[order], lengths[order])], lengths[order]


def _layout(lengths: Ints, row: Ints) -> tuple[Layout, Ints]:
    """The layout of sequences of these lengths in these rows, and where the rows start, [rows + 1]."""
    starts = np.cumsum(lengths) - lengths
    row_starts = np.append(starts[np.flatnonzero(np.diff(row, prepend=-1))], lengths.sum())
    sizes = np.diff(row_starts)
    even = len(sizes) > 0 and bool(np.all(sizes == sizes[0]))
    return Layout.from_lengths(lengths, row_length=int(sizes[0]) if even else 0), row_starts
