"""Views in an index: embeddings of what a copy of an image may show or hold, in the same hash tables.

The rows of the tables are the images, `0 .. num_docs - 1`, and behind them the views of those that have some, all of
one image together: those of the image `owners[i]` begin at `num_docs + margins.size * i`. A lookup finds rows. A view
stands for its image, as similar as `lsh.index.view_similarity` makes it, and the best row of an image is its match.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.codes import code_cosine, pair_cosines, quantize
from lsh.index.manifest import Manifest
from lsh.index.queries import MAX_K, Found, nothing_found

Owners = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""The docs of the images that have views, by their place among them."""
Codes = Callable[[NDArray[np.int64]], tuple[NDArray[np.int8], NDArray[np.int64]]]
"""Int8 codes `(r, dim)`, and which of their rows are those of docs `(m,)`."""


class Views:
    """Whose the rows behind `num_docs` are. `margins` `(num_views,)` float32, none in an index of whole images."""

    def __init__(self, manifest: Manifest, *, owners: Owners, codes: Codes) -> None:
        self.num_docs = manifest.num_docs
        self.num_rows = manifest.num_docs + manifest.num_views
        self.similarity = manifest.view_similarity
        self.margins = np.array(self.similarity.margins if self.similarity else (), np.float32)
        self.owners = owners
        self.codes = codes

    def lowest_cosine(self, min_similarity: float) -> float:
        """No row of a lower cosine makes an image that similar."""
        return min(min_similarity, self.similarity.lowest_cosine(min_similarity)) if self.similarity else min_similarity

    def rows_for(self, k: int) -> int:
        """How many of the best rows are looked at for the best `k` images: all views of an image may be among them."""
        return min(MAX_K, k * (1 + self.margins.size))

    def docs_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The image that each row `(m,)` stands for."""
        docs = rows.copy()
        is_view = rows >= self.num_docs
        if is_view.any():
            docs[is_view] = self.owners((rows[is_view] - self.num_docs) // self.margins.size)
        return docs

    def best_images(
        self,
        found: Found,
        queries: NDArray[np.float32],
        *,
        k: int,
        min_similarity: float,
        excluded: NDArray[np.bool_] | None,
    ) -> Found:
        """The best `k` images of each query `(n, dim)`, of the rows that were found; the rows themselves without views.

        On a tie the lower doc comes first, an image before its views, and of these the nearer one.
        """
        if self.similarity is None:
            return found
        docs = self.docs_of(found.docs.ravel()).reshape(found.docs.shape)
        are_views = found.docs >= self.num_docs
        code_rows = np.zeros(docs.shape, np.int64)
        codes, code_rows[are_views] = self.codes(docs[are_views])
        best = nothing_found(len(found.docs), k)
        best.num_candidates[:] = found.num_candidates
        _best_images(
            found.docs,
            docs,
            found.similarities,
            found.shared_terms,
            quantize(queries),
            codes,
            code_rows,
            np.int64(self.num_docs),
            self.margins,
            np.float32(self.similarity.lift),
            np.float32(self.similarity.max_lift),
            np.empty(0, np.bool_) if excluded is None else excluded,
            np.float32(min_similarity),
            best.docs,
            best.similarities,
            best.shared_terms,
            best.are_by_view,
        )
        return best

    def brute_force_best_images(
        self,
        found: Found,
        queries: NDArray[np.float32],
        *,
        k: int,
        min_similarity: float,
        excluded: NDArray[np.bool_] | None,
    ) -> Found:
        """The slow twin of `best_images`."""
        if self.similarity is None:
            return found
        lift, max_lift = np.float32(self.similarity.lift), np.float32(self.similarity.max_lift)
        best = nothing_found(len(found.docs), k)
        best.num_candidates[:] = found.num_candidates
        for query, rows in enumerate(found.docs.tolist()):
            ranked = []
            for place, row in enumerate(rows):
                if row < 0:
                    continue
                doc, view = int(self.docs_of(np.array([row]))[0]), (row - self.num_docs) % self.margins.size
                similarity = found.similarities[query, place]
                if row >= self.num_docs:
                    similarity -= self.margins[view]
                    codes, (code_row,) = self.codes(np.array([doc]))
                    (whole,) = pair_cosines(
                        quantize(queries[[query]]), codes[[code_row]], np.zeros(1, int), np.zeros(1, int)
                    )
                    similarity += min(max(lift * (similarity - whole), np.float32(0)), max_lift)
                if similarity >= np.float32(min_similarity) and not (excluded is not None and excluded[doc]):
                    ranked.append((-similarity, doc, row >= self.num_docs, place))
            seen: dict[int, tuple[np.float32, int, bool, int]] = {}
            for one in sorted(ranked):
                seen.setdefault(one[1], one)
            for i, (negative, doc, is_view, place) in enumerate(list(seen.values())[:k]):
                best.docs[query, i], best.similarities[query, i] = doc, -negative
                best.shared_terms[query, i] = found.shared_terms[query, place]
                best.are_by_view[query, i] = is_view
        return best


@njit(cache=True, nogil=True)
def _best_images(  # noqa: PLR0917 - numba kernels take their arrays one by one
    rows: NDArray[np.int64],
    owners: NDArray[np.int64],
    row_similarities: NDArray[np.float32],
    row_shared_terms: NDArray[np.int32],
    query_codes: NDArray[np.int8],
    codes: NDArray[np.int8],
    code_rows: NDArray[np.int64],
    num_docs: np.int64,
    margins: NDArray[np.float32],
    lift: np.float32,
    max_lift: np.float32,
    excluded: NDArray[np.bool_],
    min_similarity: np.float32,
    docs: NDArray[np.int64],
    similarities: NDArray[np.float32],
    shared_terms: NDArray[np.int32],
    are_by_view: NDArray[np.bool_],
) -> None:
    """Fills each query's row of the answer by insertion; a better row of an image takes the place of a worse one.

    `codes[code_rows]` are those of the images of views.
    """
    for query in range(rows.shape[0]):
        num_kept, k = 0, docs.shape[1]
        for i in range(rows.shape[1]):
            row, doc = rows[query, i], owners[query, i]
            if row < 0 or (doc < excluded.size and excluded[doc]):
                continue
            is_view = row >= num_docs
            similarity = row_similarities[query, i]
            if is_view:
                similarity -= margins[(row - num_docs) % margins.size]
                whole = code_cosine(query_codes[query], codes[code_rows[query, i]])
                similarity += min(max(lift * (similarity - whole), np.float32(0.0)), max_lift)
            if similarity < min_similarity:
                continue
            last = 0
            while last < num_kept and docs[query, last] != doc:
                last += 1
            if last < num_kept:
                before = similarities[query, last]
                if before > similarity or (before == similarity and (is_view or not are_by_view[query, last])):
                    continue
            elif num_kept < k:
                num_kept += 1
            else:
                last = k - 1
                before = similarities[query, last]
                if before > similarity or (before == similarity and docs[query, last] < doc):
                    continue
            while last > 0 and (
                similarities[query, last - 1] < similarity
                or (similarities[query, last - 1] == similarity and docs[query, last - 1] > doc)
            ):
                docs[query, last], similarities[query, last] = docs[query, last - 1], similarities[query, last - 1]
                shared_terms[query, last] = shared_terms[query, last - 1]
                are_by_view[query, last] = are_by_view[query, last - 1]
                last -= 1
            docs[query, last], similarities[query, last] = doc, similarity
            shared_terms[query, last], are_by_view[query, last] = row_shared_terms[query, i], is_view
