"""The pairs of a sample that are just near enough: what a plan finds of them is its recall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lsh.codes import pair_cosines, quantize

MIN_NEAR_PAIRS = 300
MAX_NEAR_PAIRS = 20_000
SIMILARITY_BAND = 0.06
_ROWS_PER_PRODUCT = 1024


@dataclass(frozen=True, slots=True, eq=False)
class NearPairs:
    """Pairs of rows `left[i], right[i]` `(m, dim)` float32 whose cosine lies just above the wanted one.

    `is_kept` `(m,)` tells which still reach `min_similarity` by their codes, which verification compares. `planted`
    tells that the sample held too few, and that they were made from its rows and differences of its rows.
    """

    min_similarity: float
    left: NDArray[np.float32]
    right: NDArray[np.float32]
    is_kept: NDArray[np.bool_]
    planted: bool


def near_pairs(sample: NDArray[np.float32], min_similarity: float, *, seed: int = 0) -> NearPairs:
    """The sample's own pairs of cosine `min_similarity` to `+ 0.06`, or planted ones if there are fewer than 300."""
    rng = np.random.default_rng(seed)
    top = min(1.0, min_similarity + SIMILARITY_BAND)
    pairs = _pairs_in_band(sample, min_similarity, top)
    if len(pairs) >= MIN_NEAR_PAIRS:
        if len(pairs) > MAX_NEAR_PAIRS:
            pairs = pairs[rng.choice(len(pairs), MAX_NEAR_PAIRS, replace=False)]
        return _near(min_similarity, sample[pairs[:, 0]], sample[pairs[:, 1]], planted=False)
    left = sample[rng.integers(0, len(sample), 10 * MIN_NEAR_PAIRS)]
    ends = rng.integers(0, len(sample), (2, len(left)))
    change = sample[ends[0]] - sample[ends[1]]
    change -= np.einsum("nd,nd->n", change, left)[:, None] * left
    norms = np.linalg.norm(change, axis=1, keepdims=True)
    is_change = norms[:, 0] > 1e-6
    left, change = left[is_change], (change / np.maximum(norms, 1e-6))[is_change]
    cosine = rng.uniform(min_similarity, top, len(left)).astype(np.float32)[:, None]
    right = (cosine * left + np.sqrt(1 - cosine**2) * change).astype(np.float32)
    return _near(min_similarity, left, right, planted=True)


def _near(min_similarity: float, left: NDArray[np.float32], right: NDArray[np.float32], *, planted: bool) -> NearPairs:
    each = np.arange(len(left))
    is_kept = pair_cosines(quantize(left), quantize(right), each, each) >= np.float32(min_similarity)
    return NearPairs(min_similarity, left, right, is_kept, planted)


def _pairs_in_band(rows: NDArray[np.float32], low: float, high: float) -> NDArray[np.int64]:
    """All pairs of rows, left below right, whose cosine lies in `low .. high`, `(m, 2)`."""
    found = []
    for first in range(0, len(rows), _ROWS_PER_PRODUCT):
        cosines = rows[first : first + _ROWS_PER_PRODUCT] @ rows[first:].T
        left, right = np.nonzero((cosines >= low) & (cosines < high))
        is_upper = right > left
        found.append(np.column_stack([left[is_upper], right[is_upper]]) + first)
    return np.concatenate(found)
