"""Lookups in the hash tables of a generation in Redis: the kernels of `lsh.index.kernels`, fed from pages.

In steps, each one round trip to every server whatever the number of queries: pages of posting lists; sketches of the
docs in them, unless all sketches are kept here, at 32 bytes an image; codes of the docs whose sketch is near; names of
the best, which the caller asks for. Rows that were fetched make a small corpus of their own: the kernels see a doc's
position among them, which keeps the order of docs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.codes import quantize_rows
from lsh.index import layout
from lsh.index.kernels import Lists, Scratch, collect, keep_near, rank
from lsh.index.layout import Parts
from lsh.index.queries import MAX_POSTINGS, Found, QueryPlan, checked_queries, max_sketch_distance, nothing_found
from lsh.probes import probe_rows
from lsh.redis_store.generation import RedisGeneration
from lsh.redis_store.keys import BUCKETS, CHUNK_BYTES, CHUNKS, buckets_per_page
from lsh.redis_store.pages import find_lists
from lsh.sketches import sketch_rows

_MAX_BYTES_PER_POSTING = 5
_ROWS_AT_ONCE = 1 << 15


class _Candidates(NamedTuple):
    """Docs of each query, `docs[starts[i] : starts[i + 1]]`, and how many probes hold each."""

    starts: NDArray[np.int64]
    docs: NDArray[np.int64]
    counts: NDArray[np.int32]


class RedisHashTables:
    """The hash tables of a generation in Redis. Safe to use from several threads; `lookup` may raise StoreError."""

    def __init__(self, generation: RedisGeneration, *, max_postings: int = MAX_POSTINGS) -> None:
        manifest = generation.manifest
        self.generation = generation
        self._pages = generation.pages
        self._per_page = buckets_per_page(manifest.term_params)
        self._bits_per_part = Parts.of(manifest.term_params).bits_per_part
        self._plan = QueryPlan(manifest, max_postings=max_postings)
        self._kept_sketches = self._read_sketches() if self._keeps_sketches() else None

    def lookup(
        self,
        embeddings: NDArray[np.float32],
        *,
        k: int,
        min_similarity: float,
        excluded: NDArray[np.bool_] | None = None,
        whole_only: bool = False,
    ) -> Found:
        """As `lsh.index.lookup.HashTables.lookup`, with equal answers."""
        rows = checked_queries(self.generation.manifest, embeddings, k, min_similarity, excluded)
        views = self.generation.views
        found = nothing_found(rows.shape[0], k if whole_only else views.rows_for(k))
        end_row = views.num_docs if whole_only else views.num_rows
        lowest = min_similarity if whole_only else views.lowest_cosine(min_similarity)
        with self._plan.scratch() as (probe_scratch, scratch):
            terms = np.empty((rows.shape[0], self._plan.probes.num_probes), dtype=np.uint64)
            probe_rows(rows, self._plan.probes, probe_scratch, terms)
            candidates = self._candidates(terms, scratch)
            found.num_candidates[:] = np.diff(candidates.starts)
            near = self._near(rows, candidates, scratch, excluded, end_row, min_similarity=lowest)
            docs, place = np.unique(near.docs, return_inverse=True)
            codes = self._pages.rows(layout.CODES, docs).view(np.int8)
            _rank_rows(
                rows,
                near._replace(docs=place.astype(np.int64)),
                docs,
                codes,
                np.float32(lowest),
                scratch,
                found.docs,
                found.similarities,
                found.shared_terms,
            )
        if whole_only:
            return found
        return views.best_images(found, rows, k=k, min_similarity=min_similarity, excluded=excluded)

    def _candidates(self, terms: NDArray[np.uint64], scratch: Scratch) -> _Candidates:
        """The distinct docs in the lists of each query's probes `(n, num_probes)`."""
        wanted = terms.astype(np.int64).ravel()
        pages, place = np.unique(wanted // self._per_page, return_inverse=True)
        contents = self._pages.read(BUCKETS, pages.tolist())
        starts = np.zeros(len(contents) + 1, dtype=np.int64)
        np.cumsum([len(content) for content in contents], out=starts[1:])
        data = np.frombuffer(b"".join(contents), dtype=np.uint8)
        found = find_lists(data, starts, place.astype(np.int64), wanted % self._per_page, per_page=self._per_page)
        if (found.first_chunks >= 0).any():
            data = self._with_chunks(data, found.starts, found.sizes, found.first_chunks)
        lists = Lists(
            part_starts=np.empty(0, dtype=np.uint64),
            offsets=np.empty(0, dtype=np.uint32),
            postings=data,
            bits_per_part=self._bits_per_part,
            num_rows=self.generation.views.num_rows,
        )
        shape = terms.shape
        return _Candidates(
            *_collect_rows(
                lists, found.starts.reshape(shape), found.sizes.reshape(shape), self._plan.max_postings, scratch
            )
        )

    def _with_chunks(
        self,
        data: NDArray[np.uint8],
        starts: NDArray[np.int64],
        sizes: NDArray[np.int64],
        first_chunks: NDArray[np.int64],
    ) -> NDArray[np.uint8]:
        """`data` with the long lists behind it, as far as a lookup reads them; `starts` and `sizes` change to match."""
        sizes[first_chunks >= 0] = np.minimum(
            sizes[first_chunks >= 0], _MAX_BYTES_PER_POSTING * self._plan.max_postings
        )
        wanted = {
            chunk: -(-size // CHUNK_BYTES)
            for chunk, size in zip(first_chunks.tolist(), sizes.tolist(), strict=True)
            if chunk >= 0
        }
        chunks = [first + i for first, num in wanted.items() for i in range(num)]
        contents = dict(zip(chunks, self._pages.read(CHUNKS, chunks), strict=True))
        start_of, parts, end = {}, [data.tobytes()], data.size
        for first, num in wanted.items():
            start_of[first] = end
            parts += [contents[first + i] for i in range(num)]
            end += sum(len(contents[first + i]) for i in range(num))
        for position in np.flatnonzero(first_chunks >= 0).tolist():
            starts[position] = start_of[int(first_chunks[position])]
        return np.frombuffer(b"".join(parts), dtype=np.uint8)

    def _near(
        self,
        rows: NDArray[np.float32],
        candidates: _Candidates,
        scratch: Scratch,
        excluded: NDArray[np.bool_] | None,
        end_row: int,
        *,
        min_similarity: float,
    ) -> _Candidates:
        """The candidates before `end_row` whose sketch is near enough to the query's."""
        max_distance = max_sketch_distance(min_similarity)
        is_excluded = np.empty(0, dtype=np.bool_) if excluded is None else excluded
        if self._kept_sketches is not None:
            sketches, signs = self._kept_sketches, self._plan.sketch_signs
            return _Candidates(
                *_keep_near_rows(rows, candidates, sketches, is_excluded, end_row, max_distance, signs, scratch)
            )
        docs, place = np.unique(candidates.docs, return_inverse=True)
        starts, positions, counts = _keep_near_rows(
            rows,
            candidates._replace(docs=place.astype(np.int64)),
            self._pages.rows(layout.SKETCHES, docs).view("<u8").reshape(-1, layout.WORDS_PER_SKETCH),
            is_excluded[docs[: np.searchsorted(docs, is_excluded.size)]],
            int(np.searchsorted(docs, end_row)),
            max_distance,
            self._plan.sketch_signs,
            scratch,
        )
        return _Candidates(starts, docs[positions], counts)

    def _keeps_sketches(self) -> bool:
        size_bytes = self.generation.manifest.files[layout.SKETCHES].size_bytes
        return size_bytes <= self._pages.servers.url.kept_mib << 20

    def _read_sketches(self) -> NDArray[np.uint64]:
        sketches = np.empty((self.generation.views.num_rows, layout.WORDS_PER_SKETCH), dtype=np.uint64)
        for start in range(0, len(sketches), _ROWS_AT_ONCE):
            rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(sketches)))
            sketches[start : start + _ROWS_AT_ONCE] = self._pages.rows(layout.SKETCHES, rows).view("<u8")
        return sketches


@njit(cache=True, nogil=True)
def _collect_rows(
    lists: Lists,
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    max_postings: int,
    scratch: Scratch,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """The fields of `_Candidates`, from where the lists of each query `(n, num_probes)` lie in `lists.postings`."""
    ends = np.zeros(starts.shape[0] + 1, np.int64)
    capacity = 0
    for row in range(starts.shape[0]):
        capacity += min(sizes[row].sum(), max_postings)
    docs, counts = np.empty(capacity, np.int64), np.empty(capacity, np.int32)
    no_sketches = np.empty((0, 4), np.uint64)
    for row in range(starts.shape[0]):
        scratch.starts[:] = starts[row]
        scratch.sizes[:] = sizes[row]
        num_found = collect(lists, scratch, max_postings, no_sketches)
        ends[row + 1] = ends[row] + num_found
        docs[ends[row] : ends[row + 1]] = scratch.docs[:num_found]
        counts[ends[row] : ends[row + 1]] = scratch.counts[:num_found]
    return ends, docs[: ends[-1]], counts[: ends[-1]]


@njit(cache=True, nogil=True)
def _keep_near_rows(  # noqa: PLR0917 - numba kernels take their arrays one by one
    rows: NDArray[np.float32],
    candidates: _Candidates,
    sketches: NDArray[np.uint64],
    excluded: NDArray[np.bool_],
    end_row: int,
    max_distance: int,
    signs: NDArray[np.float32],
    scratch: Scratch,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """The fields of `_Candidates` that are near; docs are rows of `sketches`."""
    ends = np.zeros(rows.shape[0] + 1, np.int64)
    docs, counts = np.empty(candidates.docs.size, np.int64), np.empty(candidates.docs.size, np.int32)
    for row in range(rows.shape[0]):
        num_found = _load(candidates, row, scratch)
        sketch_rows(rows[row : row + 1], signs, scratch.sketch)
        num_near = keep_near(scratch, num_found, sketches, excluded, end_row, max_distance)
        ends[row + 1] = ends[row] + num_near
        docs[ends[row] : ends[row + 1]] = scratch.docs[:num_near]
        counts[ends[row] : ends[row + 1]] = scratch.counts[:num_near]
    return ends, docs[: ends[-1]], counts[: ends[-1]]


@njit(cache=True, nogil=True)
def _rank_rows(  # noqa: PLR0917 - numba kernels take their arrays one by one
    rows: NDArray[np.float32],
    candidates: _Candidates,
    docs_of_rows: NDArray[np.int64],
    codes: NDArray[np.int8],
    min_similarity: np.float32,
    scratch: Scratch,
    docs: NDArray[np.int64],
    similarities: NDArray[np.float32],
    shared_terms: NDArray[np.int32],
) -> None:
    """Fills the answer of each query; the candidates' docs are rows of `codes`, which belong to `docs_of_rows`."""
    for row in range(rows.shape[0]):
        num_near = _load(candidates, row, scratch)
        quantize_rows(rows[row : row + 1], scratch.codes)
        rank(scratch, num_near, codes, min_similarity, docs[row], similarities[row], shared_terms[row])
        for i in range(docs.shape[1]):
            if docs[row, i] >= 0:
                docs[row, i] = docs_of_rows[docs[row, i]]


@njit(cache=True, nogil=True)
def _load(candidates: _Candidates, row: int, scratch: Scratch) -> int:
    """Puts the candidates of a query into the scratch; returns how many they are."""
    start, end = candidates.starts[row], candidates.starts[row + 1]
    scratch.docs[: end - start] = candidates.docs[start:end]
    scratch.counts[: end - start] = candidates.counts[start:end]
    return int(end - start)
