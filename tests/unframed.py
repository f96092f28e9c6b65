"""What tests of denoising share: the sequences of a batch without their marks, which are looked at on the way."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bertkin.config import Objective
from bertkin.objectives.denoise import start_id
from bertkin.text.batches import Batch, Ints, Source, Specials

UNK = 1


def with_sentinels(ids: Specials, n: int = 50) -> Specials:
    """The marks of a tokenizer whose vocabulary ends with n sentinels, in T5's order."""
    size = ids.vocab_size + n
    sentinels = np.arange(size - 1, size - 1 - n, -1)
    return replace(
        ids,
        sentinels=sentinels,
        special_ids=np.union1d(ids.special_ids, sentinels),
        vocab_size=size,
        word_starts=np.append(ids.word_starts, np.ones(n, np.bool_)),
    )


def asking(noise: str, **fields: Any) -> Objective:
    return replace(Objective(kind="denoise", noise=noise, rate=0.3), **fields)


def sequences(ids: Ints, starts: Any) -> list[list[int]]:
    return [ids[a:b].tolist() for a, b in itertools.pairwise(starts)]


def source_of(batch: Batch) -> Source:
    assert batch.source is not None
    return batch.source


def unframed(batch: Batch, ids: Specials, ends: Sequence[bool] | None = None) -> list[tuple[list[int], list[int]]]:
    """Source and target of every sequence, without their marks, which are looked at here; fillers are left out.

    Args:
        ends: which sequences, fillers among them, are asked for their end; by default all.
    """
    first = [] if len(ids.sentinels) else [ids.cls]
    out = []
    source = source_of(batch)
    read = sequences(source.ids, source.layout.starts)
    seen = sequences(batch.ids, batch.layout.starts)
    for sequence, (start, stop) in enumerate(itertools.pairwise(batch.layout.starts)):
        asked = (batch.asked >= start) & (batch.asked < stop)
        if read[sequence][0] == ids.pad:
            assert read[sequence] == seen[sequence] == [ids.pad] * len(seen[sequence]) and not asked.any()
            continue
        assert read[sequence][: len(first)] == first and read[sequence][-1] == ids.sep
        assert seen[sequence][: 1 + len(first)] == [start_id(ids), *first]
        written = seen[sequence][1 + len(first) :]
        # What is asked at a place stands at the next; only marks of the text are not asked.
        targets = dict(zip((batch.asked[asked] - start).tolist(), batch.targets[asked].tolist(), strict=True))
        end = [ids.sep] if ends is None or ends[sequence] else []
        assert targets == {i: t for i, t in enumerate([*first, *written, *end]) if t != UNK}
        out.append((read[sequence][len(first) : -1], written))
    return out
