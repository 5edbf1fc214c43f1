"""Sorting by several keys at once, the step on which joining, merging and building posting lists all rest.

Keys that fit in one 64-bit word together are packed and sorted as that word, several times faster than a
lexicographic sort; those that do not fit take the slow way and give the same answer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BITS_PER_WORD = 64


def sort_by_keys(*keys: NDArray[np.uint64]) -> list[NDArray[np.uint64]]:
    """The `(m,)` uint64 arrays `keys`, sorted together by the first, then the second, and so on."""
    num_bits = [max(1, int(key.max(initial=0)).bit_length()) for key in keys]
    if sum(num_bits) > _BITS_PER_WORD:
        order = np.lexsort(keys[::-1])
        return [key[order] for key in keys]
    words = keys[0]
    for key, bits in zip(keys[1:], num_bits[1:], strict=True):
        words = (words << np.uint64(bits)) | key
    words = np.sort(words)
    sorted_keys = []
    for bits in reversed(num_bits[1:]):
        sorted_keys.append(words & np.uint64((1 << bits) - 1))
        words >>= np.uint64(bits)
    return [words, *reversed(sorted_keys)]


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
