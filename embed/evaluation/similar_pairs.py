"""The most similar pairs of a set of images: near-duplicates by nature, and the hardest look-alikes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROWS_AT_ONCE = 2048


def most_similar_pairs(rows: NDArray[np.float32], num: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `num` most similar pairs of unit rows `(n, dim)`: `(m, 2)` rows, the smaller first, and `(m,)` cosines.

    Most similar first, equal ones by their rows; all pairs when there are no more than `num`.
    """
    pairs, cosines = np.empty((0, 2), np.int64), np.empty(0, np.float32)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = rows[start : start + ROWS_AT_ONCE] @ rows[start:].T
        left, right = np.triu_indices(len(block), k=1, m=block.shape[1])
        found = block[left, right]
        if len(found) > num:
            least = np.partition(found, -num)[-num]
            kept = found >= least
            left, right, found = left[kept], right[kept], found[kept]
        pairs = np.concatenate([pairs, start + np.stack([left, right], axis=1)])
        cosines = np.concatenate([cosines, found])
        order = np.lexsort((pairs[:, 1], pairs[:, 0], -cosines))[:num]
        pairs, cosines = pairs[order], cosines[order]
    return pairs, cosines
