"""Sorting by two keys at once, the step on which joining, merging and building posting lists all rest.

Two keys that fit in one 64-bit word together are packed and sorted as that word, several times faster than a
lexicographic sort; keys that do not fit take the slow way and give the same answer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BITS_PER_WORD = 64


def sort_by_two_keys(
    major: NDArray[np.uint64], minor: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Two `(m,)` uint64 arrays, sorted together by `major`, then `minor`."""
    num_minor_bits = _packed_minor_bits(major, minor)
    if num_minor_bits is None:
        order = np.lexsort((minor, major))
        return major[order], minor[order]
    words = np.sort(_pack(major, minor, num_minor_bits))
    return words >> num_minor_bits, words & ((np.uint64(1) << num_minor_bits) - np.uint64(1))


def order_by_two_keys(major: NDArray[np.uint64], minor: NDArray[np.uint64]) -> NDArray[np.intp]:
    """The `(m,)` order that sorts by `major`, then `minor`; equal pairs come in any order."""
    num_minor_bits = _packed_minor_bits(major, minor)
    if num_minor_bits is None:
        return np.lexsort((minor, major))
    return np.argsort(_pack(major, minor, num_minor_bits))


def starts_of_runs(major: NDArray[np.uint64], minor: NDArray[np.uint64] | None = None) -> NDArray[np.bool_]:
    """`(m,)` bool: True where a sorted array differs from the element before it; the first is always True.

    >>> starts_of_runs(np.array([5, 5, 7], dtype=np.uint64)).tolist()
    [True, False, True]
    """
    starts = np.ones(major.size, dtype=np.bool_)
    np.not_equal(major[1:], major[:-1], out=starts[1:])
    if minor is not None:
        starts[1:] |= minor[1:] != minor[:-1]
    return starts


def _packed_minor_bits(major: NDArray[np.uint64], minor: NDArray[np.uint64]) -> np.uint64 | None:
    """Bits that `minor` needs below `major` in one word, None if the two do not fit."""
    if major.size == 0:
        return np.uint64(1)
    num_minor_bits = max(1, int(minor.max()).bit_length())
    if int(major.max()).bit_length() + num_minor_bits > _BITS_PER_WORD or num_minor_bits == _BITS_PER_WORD:
        return None
    return np.uint64(num_minor_bits)


def _pack(major: NDArray[np.uint64], minor: NDArray[np.uint64], num_minor_bits: np.uint64) -> NDArray[np.uint64]:
    return (major << num_minor_bits) | minor
