"""The tally of candidates: distinct pairs with the terms they share, in bounded memory.

Pairs come bucket by bucket, so one comes again for each term that it shares. What is tallied goes to a `Spill` when
there is too much of it; a pair may be in several spills, and `blocks.decode_pair_blocks` adds up what it shares.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.sorting import starts_of_runs

Spill = Callable[[NDArray[np.uint64], NDArray[np.uint32]], None]
"""Takes distinct pairs `(m, 2)` of docs, left below right, ascending, and the `(m,)` terms that they share."""

MAX_TALLIED = 1 << 24
"""Distinct pairs at which a tally is spilled: 400 MB, while its runs are merged."""
_ROW_BITS = np.uint64(32)
_LOW_ROW = np.uint64((1 << 32) - 1)


class PairTally:
    """How often each pair of rows of `docs` `(n,)` occurred, a key being the left row above the right row.

    Sorted runs of about equal length are merged as they come, so a key is moved a logarithmic number of times. Without
    `spill` all is held.
    """

    def __init__(self, docs: NDArray[np.uint64], spill: Spill | None = None) -> None:
        self._docs = docs
        self._spill = spill
        self._runs: list[tuple[NDArray[np.uint64], NDArray[np.uint32]]] = []

    def add(self, keys: NDArray[np.uint64]) -> None:
        """Count each of `keys` `(m,)`, in any order, once."""
        keys = np.sort(keys)
        first = np.flatnonzero(starts_of_runs(keys))
        self._runs.append((keys[first], np.diff(first, append=keys.size).astype(np.uint32)))
        while len(self._runs) > 1 and self._runs[-2][0].size < 2 * self._runs[-1][0].size:
            self._merge_last()
        if self._spill is not None and sum(run.size for run, _ in self._runs) >= MAX_TALLIED:
            self._spill(*self.take())

    def take(self) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """What a `Spill` takes: all that was added since the last spill; the tally is empty then."""
        while len(self._runs) > 1:
            self._merge_last()
        if not self._runs:
            return np.empty((0, 2), np.uint64), np.empty(0, np.uint32)
        keys, counts = self._runs.pop()
        return _pairs_of(keys, self._docs), counts

    def _merge_last(self) -> None:
        right, left = self._runs.pop(), self._runs.pop()
        self._runs.append(_merged(*left, *right))


@njit(cache=True, nogil=True)
def _pairs_of(keys: NDArray[np.uint64], docs: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The docs `(m, 2)` of keys."""
    pairs = np.empty((keys.size, 2), np.uint64)
    for i in range(keys.size):
        pairs[i, 0], pairs[i, 1] = docs[keys[i] >> _ROW_BITS], docs[keys[i] & _LOW_ROW]
    return pairs


@njit(cache=True, nogil=True)
def _merged(
    left: NDArray[np.uint64],
    left_counts: NDArray[np.uint32],
    right: NDArray[np.uint64],
    right_counts: NDArray[np.uint32],
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Two ascending runs of distinct keys as one; the counts of a key in both are added."""
    keys, counts = np.empty(left.size + right.size, np.uint64), np.empty(left.size + right.size, np.uint32)
    i = j = num_keys = 0
    while i < left.size and j < right.size:
        takes_left, takes_right = left[i] <= right[j], right[j] <= left[i]
        keys[num_keys] = left[i] if takes_left else right[j]
        counts[num_keys] = left_counts[i] * np.uint32(takes_left) + right_counts[j] * np.uint32(takes_right)
        i += int(takes_left)
        j += int(takes_right)
        num_keys += 1
    num_rest = left.size - i + right.size - j
    keys[num_keys : num_keys + num_rest] = left[i:] if i < left.size else right[j:]
    counts[num_keys : num_keys + num_rest] = left_counts[i:] if i < left.size else right_counts[j:]
    return keys[: num_keys + num_rest], counts[: num_keys + num_rest]
