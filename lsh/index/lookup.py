"""Lookups in the hash tables of a generation: an embedding in, its most similar docs out.

For each query, in one kernel call for the whole batch: probes -> posting lists -> distinct docs -> those whose sketch
is near enough -> exact cosine of the codes -> the best k. Work for one query is bounded by `max_postings`, so a bucket
that a million copies of one meme share costs no more than any other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.bits import count_ones
from lsh.codes import _quantize_rows, pair_cosines, quantize
from lsh.errors import ParameterError
from lsh.index import layout
from lsh.index.generation import Generation
from lsh.index.manifest import Manifest
from lsh.index.prefetch import prefetch, prefetch_row
from lsh.probes import ProbePlan, ProbeScratch, probe_plan, probe_scratch, probes, write_probes
from lsh.rotations import checked_embeddings
from lsh.sketches import BITS_PER_SKETCH, _sketch_rows, long_sketches, sketch_signs
from lsh.variable_byte import decode_sorted

MAX_K = 1024
MAX_POSTINGS = 1 << 15
MAX_POSTINGS_LIMIT = 1 << 26
_SKETCH_SIGMAS = 2.5
_ROWS_AHEAD = 16
_SLOT_FACTOR = np.uint64(0x9E3779B1)
_LOW_WORD = np.uint64((1 << 32) - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The best docs of each of `n` queries.

    `docs` `(n, k)` int64, -1 where there are fewer; `similarities` `(n, k)` float32 descending, on a tie the lower doc
    first; `shared_terms` `(n, k)` int32, how many of the probes hold the doc; `num_candidates` `(n,)` int64, distinct
    docs that the probes hold.
    """

    docs: NDArray[np.int64]
    similarities: NDArray[np.float32]
    shared_terms: NDArray[np.int32]
    num_candidates: NDArray[np.int64]


class _Lists(NamedTuple):
    """The posting lists as the kernel reads them."""

    part_starts: NDArray[np.uint64]
    offsets: NDArray[np.uint32]
    postings: NDArray[np.uint8]
    bits_per_part: int
    num_docs: int


class _Scratch(NamedTuple):
    """What the kernel writes for one query; one set per thread."""

    terms: NDArray[np.uint64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    slots: NDArray[np.int32]
    docs: NDArray[np.int64]
    counts: NDArray[np.int32]
    codes: NDArray[np.int8]
    sketch: NDArray[np.uint64]


class HashTables:
    """The hash tables of an open generation. Lookups release the GIL and may run in several threads at once."""

    def __init__(self, generation: Generation, *, max_postings: int = MAX_POSTINGS) -> None:
        manifest = generation.manifest
        if not manifest.num_probes <= max_postings <= MAX_POSTINGS_LIMIT:
            raise ParameterError(
                f"max_postings={max_postings} is out of range {manifest.num_probes}..{MAX_POSTINGS_LIMIT}; "
                f"every probe reads at least one posting"
            )
        self.generation = generation
        self.max_postings = max_postings
        self._plan = probe_plan(manifest.term_params, manifest.num_probes)
        self._sketch_signs = sketch_signs(
            dim=manifest.dim, num_words=layout.WORDS_PER_SKETCH, seed=manifest.term_params.seed
        )
        self._lists = _Lists(
            part_starts=generation.array(layout.PART_STARTS),
            offsets=generation.array(layout.POSTING_OFFSETS),
            postings=generation.array(layout.POSTINGS),
            bits_per_part=generation.parts.bits_per_part,
            num_docs=manifest.num_docs,
        )
        self._idle: list[tuple[ProbeScratch, _Scratch]] = []

    def lookup(
        self,
        embeddings: NDArray[np.float32],
        *,
        k: int,
        min_similarity: float,
        excluded: NDArray[np.bool_] | None = None,
    ) -> Found:
        """The `k` most similar docs of each row of `embeddings` `(n, dim)` float32, of cosine `min_similarity` or more.

        `excluded` `(num_docs,)` bool hides docs. The cosine is that of the int8 codes. Raises ParameterError for k
        outside 1..1,024, a similarity outside -1..1, another shape, NaN or infinity.
        """
        rows = checked_queries(self.generation.manifest, embeddings, k, min_similarity, excluded)
        found = nothing_found(rows.shape[0], k)
        scratch = self._take_scratch()
        try:
            _lookup_rows(
                rows,
                self._plan,
                scratch[0],
                scratch[1],
                self._sketch_signs,
                max_sketch_distance(min_similarity),
                self._lists,
                self.generation.sketches,
                self.generation.all_codes,
                np.empty(0, dtype=np.bool_) if excluded is None else excluded,
                np.float32(min_similarity),
                self.max_postings,
                found.docs,
                found.similarities,
                found.shared_terms,
                found.num_candidates,
            )
        finally:
            self._idle.append(scratch)
        return found

    def brute_force_lookup(
        self,
        embeddings: NDArray[np.float32],
        *,
        k: int,
        min_similarity: float,
        excluded: NDArray[np.bool_] | None = None,
    ) -> Found:
        """The slow twin of `lookup`: the same steps over Python lists, one query at a time."""
        rows = checked_queries(self.generation.manifest, embeddings, k, min_similarity, excluded)
        found = nothing_found(rows.shape[0], k)
        manifest = self.generation.manifest
        query_sketches = long_sketches(rows, num_words=layout.WORDS_PER_SKETCH, seed=manifest.term_params.seed)
        query_codes = quantize(rows)
        for row, terms in enumerate(probes(rows, manifest.term_params, manifest.num_probes).tolist()):
            shared: dict[int, int] = {}
            num_left = self.max_postings
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
                <= max_sketch_distance(min_similarity)
                and not (excluded is not None and excluded[doc])
            ]
            docs = np.array(candidates, dtype=np.int64)
            cosines = pair_cosines(query_codes, self.generation.all_codes, np.full(docs.size, row), docs)
            best = [i for i in np.lexsort((docs, -cosines)) if cosines[i] >= np.float32(min_similarity)][:k]
            found.docs[row, : len(best)] = docs[best]
            found.similarities[row, : len(best)] = cosines[best]
            found.shared_terms[row, : len(best)] = [shared[doc] for doc in docs[best].tolist()]
        return found

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

    def _take_scratch(self) -> tuple[ProbeScratch, _Scratch]:
        """A set that no other thread uses: one that is idle (`list.pop` is atomic), or a new one."""
        try:
            return self._idle.pop()
        except IndexError:
            return probe_scratch(self._plan), query_scratch(
                num_probes=self._plan.num_probes, max_postings=self.max_postings, dim=self.generation.manifest.dim
            )


def query_scratch(*, num_probes: int, max_postings: int, dim: int) -> _Scratch:
    """Scratch for one thread that looks queries up."""
    return _Scratch(
        terms=np.empty(num_probes, dtype=np.uint64),
        starts=np.empty(num_probes, dtype=np.int64),
        sizes=np.empty(num_probes, dtype=np.int64),
        slots=np.empty(max(16, 1 << (2 * max_postings - 1).bit_length()), dtype=np.int32),
        docs=np.empty(max_postings, dtype=np.int64),
        counts=np.empty(max_postings, dtype=np.int32),
        codes=np.empty((1, dim), dtype=np.int8),
        sketch=np.empty((1, layout.WORDS_PER_SKETCH), dtype=np.uint64),
    )


def checked_queries(
    manifest: Manifest,
    embeddings: NDArray[np.float32],
    k: int,
    min_similarity: float,
    excluded: NDArray[np.bool_] | None,
) -> NDArray[np.float32]:
    """The rows of a lookup; raises ParameterError for what no lookup can answer."""
    if not 1 <= k <= MAX_K:
        raise ParameterError(f"k={k} is out of range 1..{MAX_K}")
    if not -1.0 <= min_similarity <= 1.0:
        raise ParameterError(f"min_similarity={min_similarity} is out of range -1..1")
    if excluded is not None and (excluded.shape != (manifest.num_docs,) or excluded.dtype != np.bool_):
        raise ParameterError(
            f"excluded of shape {excluded.shape} and dtype {excluded.dtype} given; pass ({manifest.num_docs},) bool"
        )
    return checked_embeddings(embeddings, dim=manifest.dim)


@lru_cache(maxsize=1024)
def max_sketch_distance(min_similarity: float) -> int:
    """The largest Hamming distance of two 256-bit sketches at which a cosine of `min_similarity` is still likely.

    Bits differ with probability `p = acos(similarity) / pi`; 2.5 standard deviations above the mean of a binomial keep
    99.4 % of the pairs at the very threshold.

    >>> max_sketch_distance(0.79), max_sketch_distance(-1.0)
    (70, 256)
    """
    num_bits = layout.WORDS_PER_SKETCH * BITS_PER_SKETCH
    share = math.acos(min_similarity) / math.pi
    return min(num_bits, int(num_bits * share + _SKETCH_SIGMAS * math.sqrt(num_bits * share * (1 - share))))


def nothing_found(num_queries: int, k: int) -> Found:
    return Found(
        docs=np.full((num_queries, k), -1, dtype=np.int64),
        similarities=np.zeros((num_queries, k), dtype=np.float32),
        shared_terms=np.zeros((num_queries, k), dtype=np.int32),
        num_candidates=np.zeros(num_queries, dtype=np.int64),
    )


@njit(cache=True, nogil=True)
def _lookup_rows(  # noqa: PLR0917 - numba kernels take their arrays one by one
    rows: NDArray[np.float32],
    plan: ProbePlan,
    probe_arrays: ProbeScratch,
    scratch: _Scratch,
    signs: NDArray[np.float32],
    max_distance: int,
    lists: _Lists,
    sketches: NDArray[np.uint64],
    codes: NDArray[np.int8],
    excluded: NDArray[np.bool_],
    min_similarity: np.float32,
    max_postings: int,
    docs: NDArray[np.int64],
    similarities: NDArray[np.float32],
    shared_terms: NDArray[np.int32],
    num_candidates: NDArray[np.int64],
) -> None:
    for row in range(rows.shape[0]):
        write_probes(rows[row], plan, probe_arrays, scratch.terms)
        _quantize_rows(rows[row : row + 1], scratch.codes)
        _sketch_rows(rows[row : row + 1], signs, scratch.sketch)
        total_bytes = _find_lists(lists, scratch)
        num_found = _collect(lists, scratch, total_bytes, max_postings, sketches)
        num_candidates[row] = num_found
        num_near = _keep_near(scratch, num_found, sketches, excluded, max_distance)
        _rank(scratch, num_near, codes, min_similarity, docs[row], similarities[row], shared_terms[row])


@njit(cache=True, nogil=True)
def _find_lists(lists: _Lists, scratch: _Scratch) -> int:
    """Where the list of each probe starts and how many bytes it has; returns the bytes of all.

    Bytes that are not there, in a damaged file, count as none.
    """
    for i in range(scratch.terms.size):
        prefetch(lists.offsets, _place_of(scratch.terms[i], lists.bits_per_part))
    total = 0
    for i in range(scratch.terms.size):
        place = _place_of(scratch.terms[i], lists.bits_per_part)
        offset, end = np.int64(lists.offsets[place]), np.int64(lists.offsets[place + 1])
        start = np.int64(lists.part_starts[scratch.terms[i] >> np.uint64(lists.bits_per_part)]) + offset
        size = end - offset
        is_sound = size >= 0 and 0 <= start <= lists.postings.size - size
        scratch.starts[i], scratch.sizes[i] = start, size if is_sound else 0
        total += scratch.sizes[i]
        prefetch(lists.postings, start)
    return total


@njit(cache=True, nogil=True)
def _place_of(term: np.uint64, bits_per_part: int) -> np.int64:
    """Where the offset of a term's list stands: every part has one offset more than buckets."""
    return np.int64(term + (term >> np.uint64(bits_per_part)))


@njit(cache=True, nogil=True)
def _collect(
    lists: _Lists, scratch: _Scratch, total_bytes: int, max_postings: int, sketches: NDArray[np.uint64]
) -> int:
    """Distinct docs of all lists and how many lists hold each, by open addressing; returns their number."""
    num_found, num_left = 0, max_postings
    slot_bits = 4
    while 1 << slot_bits < 2 * min(total_bytes, max_postings):
        slot_bits += 1
    last_slot = (1 << slot_bits) - 1
    scratch.slots[: last_slot + 1] = -1
    for i in range(scratch.terms.size):
        position, end = scratch.starts[i], scratch.starts[i] + scratch.sizes[i]
        doc = np.int64(0)
        while position < end and num_left > 0:
            value, bits = np.int64(0), 0
            while True:
                byte = np.int64(lists.postings[position])
                position += 1
                value |= (byte & 0x7F) << bits
                bits += 7
                if byte < 0x80 or position >= end or bits > 28:
                    break
            doc += value
            if doc >= lists.num_docs:
                break
            num_left -= 1
            slot = _first_slot(doc, slot_bits)
            while scratch.slots[slot] >= 0 and scratch.docs[scratch.slots[slot]] != doc:
                slot = (slot + 1) & last_slot
            place = scratch.slots[slot]
            if place >= 0:
                scratch.counts[place] += 1
                continue
            prefetch(sketches.reshape(-1), doc * sketches.shape[1])
            scratch.slots[slot] = num_found
            scratch.docs[num_found] = doc
            scratch.counts[num_found] = 1
            num_found += 1
    return num_found


@njit(cache=True, nogil=True)
def _first_slot(doc: int, slot_bits: int) -> np.int64:
    """The highest bits of a product: numba widens 32-bit products to 64 bits, so the word is cut first."""
    return np.int64((np.uint64(doc) * _SLOT_FACTOR & _LOW_WORD) >> np.uint64(32 - slot_bits))


@njit(cache=True, nogil=True)
def _keep_near(
    scratch: _Scratch,
    num_found: int,
    sketches: NDArray[np.uint64],
    excluded: NDArray[np.bool_],
    max_distance: int,
) -> int:
    """Moves the docs whose sketch is near to the front; returns how many they are."""
    num_near = 0
    for i in range(num_found):
        doc = scratch.docs[i]
        distance = np.uint64(0)
        for word in range(sketches.shape[1]):
            distance += count_ones(sketches[doc, word] ^ scratch.sketch[0, word])
        # Storing first and counting after keeps the loop free of a branch that nobody can predict.
        scratch.docs[num_near] = doc
        scratch.counts[num_near] = scratch.counts[i]
        num_near += int(distance) <= max_distance and not (excluded.size > 0 and excluded[doc])
    return num_near


@njit(cache=True, nogil=True)
def _rank(  # noqa: PLR0917 - numba kernels take their arrays one by one
    scratch: _Scratch,
    num_near: int,
    codes: NDArray[np.int8],
    min_similarity: np.float32,
    docs: NDArray[np.int64],
    similarities: NDArray[np.float32],
    shared_terms: NDArray[np.int32],
) -> None:
    """Fills one query's row of the answer by insertion: descending similarity, then ascending doc."""
    query = scratch.codes[0]
    square, _ = _dots(query, query)
    num_kept, k = 0, docs.size
    for i in range(min(num_near, _ROWS_AHEAD)):
        prefetch_row(codes, scratch.docs[i])
    for i in range(num_near):
        if i + _ROWS_AHEAD < num_near:
            prefetch_row(codes, scratch.docs[i + _ROWS_AHEAD])
        doc = scratch.docs[i]
        product, doc_square = _dots(query, codes[doc])
        squares = np.float64(square) * np.float64(doc_square)
        similarity = np.float32(product / np.sqrt(squares)) if squares > 0 else np.float32(0.0)
        if similarity < min_similarity:
            continue
        if num_kept == k and not _is_better(similarity, doc, similarities[k - 1], docs[k - 1]):
            continue
        num_kept = min(num_kept + 1, k)
        place = num_kept - 1
        while place > 0 and _is_better(similarity, doc, similarities[place - 1], docs[place - 1]):
            docs[place], similarities[place] = docs[place - 1], similarities[place - 1]
            shared_terms[place] = shared_terms[place - 1]
            place -= 1
        docs[place], similarities[place], shared_terms[place] = doc, similarity, scratch.counts[i]


@njit(cache=True, nogil=True)
def _is_better(similarity: np.float32, doc: int, other_similarity: np.float32, other_doc: int) -> bool:
    return bool(similarity > other_similarity or (similarity == other_similarity and doc < other_doc))


@njit(cache=True, nogil=True)
def _dots(query: NDArray[np.int8], code: NDArray[np.int8]) -> tuple[np.int32, np.int32]:
    """The product of two codes, and the square of the second."""
    product, square = np.int32(0), np.int32(0)
    for i in range(query.size):
        value = np.int32(code[i])
        product += np.int32(query[i]) * value
        square += value * value
    return product, square
