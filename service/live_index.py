"""The live index: images registered since the generation was cut, searchable at once.

A FAISS inverted file over the generation's coarse centroids narrows the search, the int8 codes decide the similarity,
so a live match and one from the hash tables are compared by the same number. While few images are live every one is
looked at; above `EXHAUSTIVE` the number of lists a query visits falls until it reaches `MIN_PROBES`.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Final

import faiss
import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.codes import _dot, quantize, unit_rows

EXHAUSTIVE: Final = 4096
MIN_PROBES: Final = 8
_MANY: Final = 1024
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
            _use_threads(len(codes))
            self._index.add_with_ids(unit_rows(codes), rows)
            return rows

    def remove(self, rows: NDArray[np.int64]) -> None:
        """Take `(n,)` int64 rows out of every later search."""
        with self._lock:
            self._index.remove_ids(np.ascontiguousarray(rows, dtype=np.int64))

    def code(self, row: int) -> NDArray[np.int8]:
        """The `(dim,)` int8 code of a row."""
        code: NDArray[np.int8] = self._codes[row]
        return code

    def search(self, embeddings: NDArray[np.float32], *, k: int, min_similarity: float) -> LiveFound:
        """The `k` most similar rows of at least `min_similarity` for each of `(n, dim)` float32 unit rows."""
        found = LiveFound(
            np.full((len(embeddings), k), -1, dtype=np.int64), np.full((len(embeddings), k), -1, dtype=np.float32)
        )
        with self._lock:
            shortlists = self._shortlists(embeddings, min(_SHORTLIST * k, len(self)))
        _best_rows(
            quantize(embeddings), self._codes, shortlists, np.float32(min_similarity), found.rows, found.similarities
        )
        return found

    def _shortlists(self, embeddings: NDArray[np.float32], num_rows: int) -> NDArray[np.int64]:
        if num_rows == 0:
            return np.empty((len(embeddings), 0), dtype=np.int64)
        probes = max(MIN_PROBES, -(-EXHAUSTIVE * self._num_lists // len(self)))
        settings = faiss.SearchParametersIVF(nprobe=min(probes, self._num_lists))
        _use_threads(len(embeddings))
        _, rows = self._index.search(np.ascontiguousarray(embeddings), num_rows, params=settings)
        return np.asarray(rows, dtype=np.int64)

    def _reserve(self, num_used: int) -> None:
        """Room for `_num_rows` codes; the first `num_used` are kept. Searches go on with the array they took."""
        if self._num_rows <= len(self._codes):
            return
        grown = np.empty((max(self._num_rows, 2 * len(self._codes)), self.dim), dtype=np.int8)
        grown[:num_used] = self._codes[:num_used]
        self._codes = grown


def _use_threads(num_rows: int) -> None:
    """Threads of FAISS for its next call from this thread: waking them for a few rows takes longer than the work."""
    faiss.omp_set_num_threads((os.cpu_count() or 1) if num_rows >= _MANY else 1)


@njit(cache=True, nogil=True)
def _best_rows(  # noqa: PLR0917 - numba kernels take their arrays one by one
    queries: NDArray[np.int8],
    codes: NDArray[np.int8],
    shortlists: NDArray[np.int64],
    min_similarity: np.float32,
    rows: NDArray[np.int64],
    similarities: NDArray[np.float32],
) -> None:
    """Fills the best of each query's shortlist by the cosine of the codes, ties by lower row."""
    for query in range(queries.shape[0]):
        square = np.float64(_dot(queries[query], queries[query]))
        num_best = 0
        for row in shortlists[query]:
            if row < 0:
                continue
            squares = square * np.float64(_dot(codes[row], codes[row]))
            cosine = np.float32(0.0)
            if squares > 0:
                cosine = np.float32(_dot(queries[query], codes[row]) / np.sqrt(squares))
            if cosine < min_similarity:
                continue
            place = min(num_best, rows.shape[1])
            while place > 0 and (
                cosine > similarities[query, place - 1]
                or (cosine == similarities[query, place - 1] and row < rows[query, place - 1])
            ):
                if place < rows.shape[1]:
                    rows[query, place] = rows[query, place - 1]
                    similarities[query, place] = similarities[query, place - 1]
                place -= 1
            if place < rows.shape[1]:
                rows[query, place], similarities[query, place] = row, cosine
                num_best = min(num_best + 1, rows.shape[1])
