"""Coarse centroids of a corpus, with which the live index sorts uploads into cells.

Spherical k-means on a sample of the codes, from a fixed start. Centroids are rounded to int8 between the rounds, so all
dot products are sums of integers that float32 holds exactly: the result is the same on every machine and BLAS.

Source: Lloyd, 1982, by way of Johnson, Douze and Jegou, arXiv 1702.08734, section 2 (inverted file with a coarse
quantiser, trained on a few dozen points a centroid).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsh.codes import quantize

MAX_CENTROIDS = 1024
DOCS_PER_CENTROID = 39
NUM_ROUNDS = 6
_ROWS_AT_ONCE = 8192
# 127 * 127 * 1024 < 2 ** 24: the largest dim whose dot products float32 holds exactly.
_MAX_FLOAT32_DIM = 1024


def train_centroids(codes: NDArray[np.int8], docs: NDArray[np.int64]) -> NDArray[np.float32]:
    """Unit rows `(c, dim)` float32 from the rows `docs` of `codes`; one centroid for every 39 docs, at most 1,024."""
    num_centroids = int(np.clip(docs.size // DOCS_PER_CENTROID, 1, MAX_CENTROIDS))
    num_sampled = min(docs.size, num_centroids * DOCS_PER_CENTROID)
    if num_sampled == 0:
        return np.zeros((1, codes.shape[1]), dtype=np.float32)
    exact: type[np.floating[Any]] = np.float32 if codes.shape[1] <= _MAX_FLOAT32_DIM else np.float64
    sample = codes[docs[np.arange(num_sampled) * docs.size // num_sampled]].astype(exact)
    centroids = sample[np.arange(num_centroids) * num_sampled // num_centroids]
    for _ in range(NUM_ROUNDS):
        centroids = _moved(centroids, sample, _nearest(centroids, sample))
    lengths = np.linalg.norm(centroids.astype(np.float64), axis=1, keepdims=True)
    unit: NDArray[np.float32] = (centroids / np.maximum(lengths, 1.0)).astype(np.float32)
    return unit


def _nearest(centroids: NDArray[Any], sample: NDArray[Any]) -> NDArray[np.int64]:
    """The centroid of largest cosine for each row of the sample, the first on a tie."""
    squares = (centroids.astype(np.float64) ** 2).sum(axis=1)
    lengths = np.sqrt(np.maximum(squares, 1.0))
    nearest = np.empty(len(sample), dtype=np.int64)
    for start in range(0, len(sample), _ROWS_AT_ONCE):
        products = sample[start : start + _ROWS_AT_ONCE] @ centroids.T
        nearest[start : start + _ROWS_AT_ONCE] = np.argmax(products / lengths, axis=1)
    return nearest


def _moved(centroids: NDArray[Any], sample: NDArray[Any], nearest: NDArray[np.int64]) -> NDArray[Any]:
    """The direction of the sum of each centroid's rows, as int8; one without rows stays where it is."""
    order = np.argsort(nearest, kind="stable")
    used, first = np.unique(nearest[order], return_index=True)
    sums = np.add.reduceat(sample[order].astype(np.int64), first, axis=0)
    moved = centroids.copy()
    moved[used] = quantize(sums.astype(np.float32))
    return moved
