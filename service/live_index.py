"""The live index: images registered since the generation was cut, searchable at once.

A FAISS inverted file over the generation's coarse centroids narrows the search, the int8 codes decide the similarity,
so a live match and one from the hash tables are compared by the same number. While few images are live every one is
looked at; above `EXHAUSTIVE` the number of lists a query visits falls until it reaches `MIN_PROBES`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from lsh.codes import pair_cosines, quantize

EXHAUSTIVE: Final = 8192
MIN_PROBES: Final = 16
_SHORTLIST: Final = 4
"""Times k rows are taken from FAISS, whose float16 similarities order near ties otherwise than the codes do."""


@dataclass(frozen=True, slots=True)
class LiveFound:
    """`rows` (n, k) int64, -1 where fewer; `similarities` (n, k) float32, descending, ties by lower row."""

    rows: NDArray[np.int64]
    similarities: NDArray[np.float32]


class LiveIndex:
    """Codes by row number, with search and removal. Safe to use from several threads. Rows are never used again."""

    def __init__(self, centroids: NDArray[np.float32]) -> None:
        """`centroids` (c, dim) float32."""
        num_lists, self.dim = centroids.shape
        quantizer = faiss.IndexFlatIP(self.dim)
        quantizer.add(np.ascontiguousarray(centroids, dtype=np.float32))
        self._index = faiss.IndexIVFScalarQuantizer(
            quantizer, self.dim, num_lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
        )
        self._index.train(centroids)
        self._index.set_direct_map_type(faiss.DirectMap.Hashtable)
        self._num_lists = num_lists
        self._codes = np.empty((1024, self.dim), dtype=np.int8)
        self._num_rows = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, codes: NDArray[np.int8]) -> NDArray[np.int64]:
        """Add `(n, dim)` int8 codes; their rows, `(n,)` int64, ascending."""
        with self._lock:
            first, self._num_rows = self._num_rows, self._num_rows + len(codes)
            self._reserve(first)
            self._codes[first : self._num_rows] = codes
            rows = np.arange(first, self._num_rows, dtype=np.int64)
            self._index.add_with_ids(unit_rows(codes), rows)
            return rows

    def remove(self, rows: NDArray[np.int64]) -> None:
        """Take `(n,)` int64 rows out of every later search."""
        with self._lock:
            self._index.remove_ids(np.ascontiguousarray(rows, dtype=np.int64))

    def codes(self, rows: NDArray[np.int64]) -> NDArray[np.int8]:
        """`(n, dim)` int8 codes of `(n,)` rows."""
        return self._codes[rows]

    def search(self, embeddings: NDArray[np.float32], *, k: int, min_similarity: float) -> LiveFound:
        """The `k` most similar rows of at least `min_similarity` for each of `(n, dim)` float32 unit rows."""
        num_queries = len(embeddings)
        with self._lock:
            shortlist = self._shortlist(embeddings, min(_SHORTLIST * k, len(self)))
        if shortlist.shape[1] == 0:
            return LiveFound(
                np.full((num_queries, k), -1, dtype=np.int64), np.full((num_queries, k), -1, dtype=np.float32)
            )
        return best_rows(quantize(embeddings), self._codes, shortlist, k=k, min_similarity=min_similarity)

    def _shortlist(self, embeddings: NDArray[np.float32], num_rows: int) -> NDArray[np.int64]:
        if num_rows == 0:
            return np.empty((len(embeddings), 0), dtype=np.int64)
        probes = max(MIN_PROBES, -(-EXHAUSTIVE * self._num_lists // len(self)))
        settings = faiss.SearchParametersIVF(nprobe=min(probes, self._num_lists))
        _, rows = self._index.search(np.ascontiguousarray(embeddings), num_rows, params=settings)
        return np.asarray(rows, dtype=np.int64)

    def _reserve(self, num_used: int) -> None:
        """Room for `_num_rows` codes; the first `num_used` are kept. Searches go on with the array they took."""
        if self._num_rows <= len(self._codes):
            return
        grown = np.empty((max(self._num_rows, 2 * len(self._codes)), self.dim), dtype=np.int8)
        grown[:num_used] = self._codes[:num_used]
        self._codes = grown


def unit_rows(codes: NDArray[np.int8]) -> NDArray[np.float32]:
    """`(n, dim)` int8 codes -> `(n, dim)` float32 rows of length 1; a row of zeros stays zeros."""
    rows = codes.astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=rows, where=lengths > 0)


def best_rows(
    queries: NDArray[np.int8],
    codes: NDArray[np.int8],
    candidates: NDArray[np.int64],
    *,
    k: int,
    min_similarity: float,
) -> LiveFound:
    """The best `k` of each query's `candidates` (n, m), -1 where fewer, by the cosine of the codes."""
    is_row = candidates >= 0
    query_of, _ = np.nonzero(is_row)
    rows = candidates[is_row]
    similarities = np.full(candidates.shape, -np.inf, dtype=np.float32)
    similarities[is_row] = pair_cosines(queries, codes[rows], query_of.astype(np.int64), np.arange(len(rows)))
    similarities[similarities < min_similarity] = -np.inf
    order = np.lexsort((candidates, -similarities), axis=1)[:, :k]
    best = LiveFound(np.full((len(queries), k), -1, dtype=np.int64), np.full((len(queries), k), -1, dtype=np.float32))
    found = np.take_along_axis(similarities, order, axis=1)
    best.rows[:, : order.shape[1]] = np.where(np.isfinite(found), np.take_along_axis(candidates, order, axis=1), -1)
    best.similarities[:, : order.shape[1]] = np.where(np.isfinite(found), found, -1)
    return best
