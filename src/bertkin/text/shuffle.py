"""Randomness without state: every draw is a hash of what it is for.

A batch must be the same whoever builds it, in whatever order, on however many processes. So nothing here remembers a
position: `mix` turns numbers into a key, `noise` turns a key and a counter into uniform bits, and `permute` gives one
element of a shuffle of any size without ever writing the shuffle down.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

Bits = NDArray[np.uint64]

_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, the increment of SplitMix64
_ROUNDS = 6


def _scramble(x: Bits) -> Bits:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014), in place on a fresh array."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def mix(*parts: ArrayLike) -> Bits:
    """One 64-bit key for each combination of the parts (integers or integer arrays that broadcast together)."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = _scramble((np.atleast_1d(part).astype(np.int64).astype(np.uint64) + _STEP) ^ (key * _STEP))
    return key


def noise(keys: Bits, counters: ArrayLike) -> Bits:
    """Uniform 64-bit numbers, one for each (key, counter); the arguments broadcast together."""
    return _scramble(keys + (np.atleast_1d(counters).astype(np.uint64) + np.uint64(1)) * _STEP)


def below(bits: Bits, n: ArrayLike) -> NDArray[np.int64]:
    """Uniform integers in [0, n) out of uniform bits; n at least 1 and less than 2**62.

    The top 53 bits are used as a fraction, so the bias is below n / 2**53.
    """
    n = np.asarray(n, np.int64)
    return cast(NDArray[np.int64], np.minimum((unit(bits) * n).astype(np.int64), n - 1))


def unit(bits: Bits) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) out of uniform bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(index: NDArray[np.int64], size: int, keys: Bits) -> NDArray[np.int64]:
    """Where each index of [0, size) goes in the pseudo-random permutation named by its key.

    The indices are written as a rectangle just large enough, and rows and columns are shifted by hashes of each other
    in turn (a Feistel network on numbers: Black and Rogaway 2002). The few that leave [0, size) go through again until
    they are back, which keeps it a permutation. Memory does not depend on size.
    """
    columns = math.isqrt(size - 1) + 1
    rows = -(-size // columns)
    moved = index.astype(np.int64)
    todo = np.arange(len(moved))
    while len(todo):
        row, column = np.divmod(moved[todo], columns)
        key = np.broadcast_to(keys, moved.shape)[todo]
        for round in range(0, _ROUNDS, 2):
            row = (row + below(noise(key ^ column.astype(np.uint64), round), rows)) % rows
            column = (column + below(noise(key ^ row.astype(np.uint64), round + 1), columns)) % columns
        moved[todo] = row * columns + column
        todo = todo[moved[todo] >= size]
    return moved
