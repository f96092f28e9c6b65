"""A layout says which token belongs to which sequence, and goes to a rectangle and back without loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertkin.text.layout import Layout

lengths_of = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(lengths_of)
def test_positions_begin_anew_in_every_sequence(lengths: list[int]) -> None:
    layout = Layout.from_lengths(lengths)
    assert layout.n_tokens == sum(lengths)
    assert layout.n_sequences == len(lengths)
    assert layout.max_length == max(lengths)
    assert layout.lengths.tolist() == lengths
    assert layout.positions.tolist() == [place for length in lengths for place in range(length)]
    assert layout.sequence_ids().tolist() == [s for s, length in enumerate(lengths) for _ in range(length)]
    assert layout.uniform == (len(set(lengths)) == 1)


@given(lengths_of, st.booleans())
def test_padding_and_back_is_the_identity(lengths: list[int], as_tensor: bool) -> None:
    layout = Layout.from_lengths(lengths)
    flat: Any = np.random.default_rng(0).normal(size=(layout.n_tokens, 3)).astype(np.float32)
    if as_tensor:
        layout, flat = layout.to("cpu"), torch.from_numpy(flat)
    padded = layout.padded(flat, -1)
    assert tuple(padded.shape) == (len(lengths), max(lengths), 3)
    for s, length in enumerate(lengths):
        begin = int(layout.starts[s])
        assert (padded[s, :length] == flat[begin : begin + length]).all()
        assert (padded[s, length:] == -1).all()
    assert (layout.flat(padded) == flat).all()


def test_padding_is_a_view_when_all_sequences_are_equally_long() -> None:
    layout = Layout.from_lengths([4, 4, 4]).to("cpu")
    flat = torch.arange(12.0)
    assert layout.padded(flat, 0).data_ptr() == flat.data_ptr()
    assert layout.flat(layout.padded(flat, 0)).data_ptr() == flat.data_ptr()


@given(lengths_of)
def test_gradients_pass_through_padding(lengths: list[int]) -> None:
    layout = Layout.from_lengths(lengths).to("cpu")
    flat = torch.randn(layout.n_tokens, 2, requires_grad=True)
    weight = torch.randn(layout.n_tokens, 2)
    (layout.flat(layout.padded(flat, 0) * 2) * weight).sum().backward()
    assert flat.grad is not None
    assert torch.allclose(flat.grad, 2 * weight)


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=6), st.booleans())
def test_a_mask_padded_on_either_side_gives_its_tokens(rows: list[tuple[int, bool]], as_tensor: bool) -> None:
    mask = np.zeros((len(rows), 6), np.int64)
    for row, (length, left) in zip(mask, rows, strict=True):
        row[6 - length :] = 1
        if not left:
            row[:] = row[::-1].copy()
    ids = np.arange(mask.size).reshape(mask.shape)
    expected = ids[mask == 1]
    given_mask = torch.from_numpy(mask) if as_tensor else mask
    given_ids = torch.from_numpy(ids) if as_tensor else ids
    layout, index = Layout.from_mask(given_mask, segments=given_ids % 2)
    assert np.array_equal(np.asarray(given_ids.reshape(-1)[index]), expected)
    assert np.array_equal(np.asarray(layout.segments), expected % 2)
    assert np.asarray(layout.lengths).tolist() == [length for length, _ in rows]
    assert np.array_equal(np.asarray(layout.positions), Layout.from_lengths(mask.sum(1)).positions)


def test_a_layout_of_tensors_keeps_its_meaning_and_its_types() -> None:
    layout = Layout.from_lengths([2, 5, 1], segments=np.array([0, 1, 0, 0, 1, 1, 1, 0], np.int32), row_length=0)
    moved = layout.to("cpu")
    for name in ("starts", "positions", "segments"):
        assert getattr(moved, name).dtype == torch.int32
        assert getattr(moved, name).tolist() == getattr(layout, name).tolist()
    assert (moved.max_length, moved.n_tokens, moved.n_sequences) == (5, 8, 3)
    assert moved.sequence_ids().tolist() == layout.sequence_ids().tolist()


@given(lengths_of, st.data())
def test_taking_sequences_makes_the_layout_they_would_have_alone(lengths: list[int], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(lengths)))
    last = data.draw(st.integers(first, len(lengths)))
    taken, alone = Layout.from_lengths(lengths).take(first, last), Layout.from_lengths(lengths[first:last])
    assert taken.starts.tolist() == alone.starts.tolist()
    assert taken.positions.tolist() == alone.positions.tolist()
    assert taken.max_length == alone.max_length
