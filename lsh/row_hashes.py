"""A hash of each embedding's bytes, and its length, in one pass over rows that may be mapped from a large file.

Source of the hash: multilinear hashing of 32-bit words, Lemire and Kaser, arXiv 1202.4961.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray


def hash_rows(rows: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The hash of each of the `(n, dim)` rows, `(n,)` int64, and its squared length, `(n,)` float32.

    >>> hashes, squares = hash_rows(np.array([[3, 4], [4, 3], [3, 4]], np.float32))
    >>> bool(hashes[0] == hashes[2] != hashes[1]), squares.tolist()
    (True, [25.0, 25.0, 25.0])
    """
    rows = np.ascontiguousarray(rows)
    hashes, squares = np.empty(len(rows), np.uint64), np.empty(len(rows), np.float32)
    _hash_rows(rows, rows.view(np.uint32), _weights(rows.shape[1]), hashes, squares)
    return hashes.view(np.int64), squares


@lru_cache(maxsize=8)
def _weights(dim: int) -> NDArray[np.uint64]:
    return np.random.default_rng(0).integers(0, 2**64, dim, dtype=np.uint64)


# The order of a sum decides its last bits only, and a free one is added up sixteen values at a time.
@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _hash_rows(
    rows: NDArray[np.float32],
    words: NDArray[np.uint32],
    weights: NDArray[np.uint64],
    hashes: NDArray[np.uint64],
    squares: NDArray[np.float32],
) -> None:
    for i in range(len(rows)):
        total, square = np.uint64(0), np.float32(0)
        for j in range(rows.shape[1]):
            total += np.uint64(words[i, j]) * weights[j]
            square += rows[i, j] * rows[i, j]
        hashes[i], squares[i] = total, square
