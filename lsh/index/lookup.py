"""Lookups in the hash tables of a generation: an embedding in, its most similar docs out.

For each query, in one kernel call for the whole batch: probes -> posting lists -> distinct docs -> those whose sketch
is near enough -> exact cosine of the codes -> the best k. Work for one query is bounded by `max_postings`, so a bucket
that a million copies of one meme share costs no more than any other.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.codes import pair_cosines, quantize, quantize_rows
from lsh.index import layout
from lsh.index.generation import Generation
from lsh.index.kernels import Lists, Scratch, collect, keep_near, rank
from lsh.index.prefetch import prefetch
from lsh.index.queries import (
    MAX_POSTINGS,
    Found,
    QueryPlan,
    checked_queries,
    max_sketch_distance,
    nothing_found,
)
from lsh.probes import ProbePlan, ProbeScratch, probes, write_probes
from lsh.sketches import long_sketches, sketch_rows
from lsh.variable_byte import decode_sorted


class HashTables:
    """The hash tables of an open generation. Lookups release the GIL and may run in several threads at once."""

    def __init__(self, generation: Generation, *, max_postings: int = MAX_POSTINGS) -> None:
        manifest = generation.manifest
        self.generation = generation
        self._plan = QueryPlan(manifest, max_postings=max_postings)
        self._lists = Lists(
            part_starts=generation.array(layout.PART_STARTS),
            offsets=generation.array(layout.POSTING_OFFSETS),
            postings=generation.array(layout.POSTINGS),
            bits_per_part=generation.parts.bits_per_part,
            num_rows=generation.views.num_rows,
        )

    def lookup(
        self,
        embeddings: NDArray[np.float32],
        *,
        k: int,
        min_similarity: float,
        excluded: NDArray[np.bool_] | None = None,
        whole_only: bool = False,
    ) -> Found:
        """The `k` most similar docs of each row of `embeddings` `(n, dim)` float32, of cosine `min_similarity` or more.

        `excluded` `(num_docs,)` bool hides docs. The cosine is that of the int8 codes; where the generation has views,
        that of the image or what its best view counts (`lsh.index.view_similarity`), unless `whole_only`. Raises
        ParameterError for k outside 1..1,024, a similarity outside -1..1, another shape, NaN or infinity.
        """
        rows = checked_queries(self.generation.manifest, embeddings, k, min_similarity, excluded)
        views = self.generation.views
        found = nothing_found(rows.shape[0], k if whole_only else views.rows_for(k))
        lowest = min_similarity if whole_only else views.lowest_cosine(min_similarity)
        with self._plan.scratch() as (probe_scratch, query_scratch):
            _lookup_rows(
                rows,
                self._plan.probes,
                probe_scratch,
                query_scratch,
                self._plan.sketch_signs,
                max_sketch_distance(lowest),
                self._lists,
                self.generation.sketches,
                self.generation.all_codes,
                np.empty(0, dtype=np.bool_) if excluded is None else excluded,
                views.num_docs if whole_only else views.num_rows,
                np.float32(lowest),
                self._plan.max_postings,
                found.docs,
                found.similarities,
                found.shared_terms,
                found.num_candidates,
            )
        if whole_only:
            return found
        return views.best_images(found, rows, k=k, min_similarity=min_similarity, excluded=excluded)

    def brute_force_lookup(
        self,
        embeddings: NDArray[np.float32],
        *,
        k: int,
        min_similarity: float,
        excluded: NDArray[np.bool_] | None = None,
        whole_only: bool = False,
    ) -> Found:
        """The slow twin of `lookup`: the same steps over Python lists, one query at a time."""
        rows = checked_queries(self.generation.manifest, embeddings, k, min_similarity, excluded)
        manifest, views = self.generation.manifest, self.generation.views
        num_rows = k if whole_only else views.rows_for(k)
        lowest = min_similarity if whole_only else views.lowest_cosine(min_similarity)
        found = nothing_found(rows.shape[0], num_rows)
        query_sketches = long_sketches(rows, num_words=layout.WORDS_PER_SKETCH, seed=manifest.term_params.seed)
        query_codes = quantize(rows)
        for row, terms in enumerate(probes(rows, manifest.term_params, manifest.num_probes).tolist()):
            shared: dict[int, int] = {}
            num_left = self._plan.max_postings
            for term in terms:
                docs = self.posting_list(term)[:num_left]
                num_left -= docs.size
                for doc in docs.tolist():
                    shared[doc] = shared.get(doc, 0) + 1
            found.num_candidates[row] = len(shared)
            candidates = [
                doc
                for doc in sorted(shared)
                if sum(
                    (a ^ b).bit_count() for a, b in zip(self._sketch(doc), query_sketches[row].tolist(), strict=True)
                )
                <= max_sketch_distance(lowest)
                and not (excluded is not None and doc < manifest.num_docs and excluded[doc])
                and not (whole_only and doc >= manifest.num_docs)
            ]
            docs = np.array(candidates, dtype=np.int64)
            cosines = pair_cosines(query_codes, self.generation.all_codes, np.full(docs.size, row), docs)
            best = [i for i in np.lexsort((docs, -cosines)) if cosines[i] >= np.float32(lowest)][:num_rows]
            found.docs[row, : len(best)] = docs[best]
            found.similarities[row, : len(best)] = cosines[best]
            found.shared_terms[row, : len(best)] = [shared[doc] for doc in docs[best].tolist()]
        if whole_only:
            return found
        return views.brute_force_best_images(found, rows, k=k, min_similarity=min_similarity, excluded=excluded)

    def posting_list(self, term: int) -> NDArray[np.int64]:
        """The docs of one bucket, ascending, checked; raises FormatError for damaged bytes."""
        part, bucket = divmod(term, self.generation.parts.buckets_per_part)
        first = part * (self.generation.parts.buckets_per_part + 1) + bucket
        start = int(self._lists.part_starts[part])
        codes = self._lists.postings[
            start + int(self._lists.offsets[first]) : start + int(self._lists.offsets[first + 1])
        ]
        return decode_sorted(codes, int((codes < 0x80).sum())).astype(np.int64)

    def _sketch(self, doc: int) -> list[int]:
        words: list[int] = self.generation.sketches[doc].tolist()
        return words


@njit(cache=True, nogil=True)
def _lookup_rows(  # noqa: PLR0917 - numba kernels take their arrays one by one
    rows: NDArray[np.float32],
    plan: ProbePlan,
    probe_arrays: ProbeScratch,
    scratch: Scratch,
    signs: NDArray[np.float32],
    max_distance: int,
    lists: Lists,
    sketches: NDArray[np.uint64],
    codes: NDArray[np.int8],
    excluded: NDArray[np.bool_],
    end_row: int,
    min_similarity: np.float32,
    max_postings: int,
    docs: NDArray[np.int64],
    similarities: NDArray[np.float32],
    shared_terms: NDArray[np.int32],
    num_candidates: NDArray[np.int64],
) -> None:
    for row in range(rows.shape[0]):
        write_probes(rows[row], plan, probe_arrays, scratch.terms)
        quantize_rows(rows[row : row + 1], scratch.codes)
        sketch_rows(rows[row : row + 1], signs, scratch.sketch)
        _find_lists(lists, scratch)
        num_found = collect(lists, scratch, max_postings, sketches)
        num_candidates[row] = num_found
        num_near = keep_near(scratch, num_found, sketches, excluded, end_row, max_distance)
        rank(scratch, num_near, codes, min_similarity, docs[row], similarities[row], shared_terms[row])


@njit(cache=True, nogil=True)
def _find_lists(lists: Lists, scratch: Scratch) -> None:
    """Where the list of each probe starts and how many bytes it has.

    Bytes that are not there, in a damaged file, count as none.
    """
    for i in range(scratch.terms.size):
        prefetch(lists.offsets, _place_of(scratch.terms[i], lists.bits_per_part))
    for i in range(scratch.terms.size):
        place = _place_of(scratch.terms[i], lists.bits_per_part)
        offset, end = np.int64(lists.offsets[place]), np.int64(lists.offsets[place + 1])
        start = np.int64(lists.part_starts[scratch.terms[i] >> np.uint64(lists.bits_per_part)]) + offset
        size = end - offset
        is_sound = size >= 0 and 0 <= start <= lists.postings.size - size
        scratch.starts[i], scratch.sizes[i] = start, size if is_sound else 0
        prefetch(lists.postings, start)


@njit(cache=True, nogil=True)
def _place_of(term: np.uint64, bits_per_part: int) -> np.int64:
    """Where the offset of a term's list stands: every part has one offset more than buckets."""
    return np.int64(term + (term >> np.uint64(bits_per_part)))
