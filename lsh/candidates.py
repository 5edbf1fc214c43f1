"""Postings to candidates: the pairs of docs that share a bucket and whose sketches are near.

A reduce task of the blocked shuffle runs this on its merged postings. A bucket's pairs depend on nothing but its term,
its docs and their sketches, so the candidates are the same however the terms are spread over partitions.

With `first_new_doc` only pairs with a new doc are made. Docs are given in ascending order, so the new docs of a bucket
are its last, and a pair has a new doc where its right one is new; pairs of known docs were made when those were new.

An oversized bucket (memes, blank images) would ask for a quadratic number of pairs. There, docs of equal sketch are
paired only with the first of them, and the firsts with one another if they are few enough, otherwise with `num_sampled`
members that a mix of term and doc selects. What was not compared is counted in `num_cut_pairs`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.bits import count_ones, mix64
from lsh.blocks import MAX_WORDS_PER_SKETCH, TermPostings
from lsh.errors import ParameterError
from lsh.sketches import BITS_PER_SKETCH
from lsh.sorting import starts_of_runs

MAX_DOCS_PER_PARTITION = 1 << 32
WORDS_PER_SKETCH = 4
_MIN_KEYS_PER_CHUNK = 1 << 22
_ROW_BITS = np.uint64(32)
_LOW_ROW = np.uint64((1 << 32) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateParams:
    """How buckets become pairs.

    `max_sketch_distance` is meant for sketches of `WORDS_PER_SKETCH`: those of a pair of
    cosine 0.8 differ in 52 bits on average and in more than 75 once in 2,000 pairs.
    """

    max_bucket_size: int = 2000
    num_sampled: int = 32
    max_sketch_distance: int = 75

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_bucket_size", 2, 16384),
            ("num_sampled", 1, 1024),
            ("max_sketch_distance", 0, BITS_PER_SKETCH * MAX_WORDS_PER_SKETCH),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ParameterError(f"{name}={value} is out of range {low}..{high}")
        if self.num_sampled > self.max_bucket_size:
            raise ParameterError(
                f"num_sampled={self.num_sampled} is above max_bucket_size={self.max_bucket_size}; lower num_sampled"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Distinct `pairs` `(m, 2)` uint64 docs, left below right, ascending; `shared_terms` `(m,)` uint32; and counts.

    `num_cut_pairs` counts, over the oversized buckets, the pairs with a new doc that were never compared there.
    """

    pairs: NDArray[np.uint64]
    shared_terms: NDArray[np.uint32]
    num_buckets: int
    largest_bucket: int
    num_oversized_buckets: int
    num_cut_pairs: int


def candidate_pairs(postings: TermPostings, params: CandidateParams, *, first_new_doc: int = 0) -> Candidates:
    """Every pair that shares a term, has a sketch distance of at most `max_sketch_distance` and a doc that is new.

    Memory stays near that of the distinct pairs: keys of pairs are tallied whenever a chunk of buckets is full.
    """
    if postings.docs.size >= MAX_DOCS_PER_PARTITION:
        raise ParameterError(
            f"{postings.docs.size} docs in one partition are more than {MAX_DOCS_PER_PARTITION - 1}; "
            f"raise num_partitions"
        )
    bounds = np.append(np.flatnonzero(starts_of_runs(postings.terms)), postings.terms.size)
    sizes = np.diff(bounds)
    oversized = np.flatnonzero(sizes > params.max_bucket_size)
    first_new_row = int(np.searchsorted(postings.docs, np.uint64(first_new_doc)))
    tally = _PairTally()
    for keys in _regular_keys(postings, bounds, params, first_new_row):
        tally.add(keys)
    num_cut_pairs = 0
    for bucket in oversized.tolist():
        split = _split_oversized(postings, int(bounds[bucket]), int(bounds[bucket + 1]), params, first_new_row)
        num_cut_pairs += split.num_cut_pairs
        for keys in _oversized_keys(split, postings.sketches, params, first_new_row):
            tally.add(keys[(keys & _LOW_ROW) >= np.uint64(first_new_row)])
    keys, shared_terms = tally.total()
    left_rows, right_rows = (keys >> _ROW_BITS).astype(np.int64), (keys & _LOW_ROW).astype(np.int64)
    return Candidates(
        pairs=np.stack([postings.docs[left_rows], postings.docs[right_rows]], axis=1),
        shared_terms=shared_terms,
        num_buckets=sizes.size,
        largest_bucket=int(sizes.max(initial=0)),
        num_oversized_buckets=oversized.size,
        num_cut_pairs=num_cut_pairs,
    )


def brute_force_candidates(postings: TermPostings, params: CandidateParams, *, first_new_doc: int = 0) -> Candidates:
    """The slow twin of `candidate_pairs`: plain Python over sets, for tests and for reading."""
    sketch_of = {
        doc: sum(word << BITS_PER_SKETCH * position for position, word in enumerate(words))
        for doc, words in zip(postings.docs.tolist(), postings.sketches.tolist(), strict=True)
    }
    buckets: dict[int, list[int]] = {}
    for term, doc in zip(postings.terms.tolist(), postings.docs[postings.doc_rows].tolist(), strict=True):
        buckets.setdefault(term, []).append(doc)
    shared_terms: dict[tuple[int, int], int] = {}
    num_cut_pairs = 0
    for term, docs in buckets.items():
        wanted = {pair for pair in combinations(docs, 2) if pair[1] >= first_new_doc}
        compared = wanted
        if len(docs) > params.max_bucket_size:
            compared = wanted & _brute_force_oversized(term, docs, sketch_of, params)
            num_cut_pairs += len(wanted) - len(compared)
        for left, right in compared:
            if (sketch_of[left] ^ sketch_of[right]).bit_count() <= params.max_sketch_distance:
                shared_terms[left, right] = shared_terms.get((left, right), 0) + 1
    pairs = sorted(shared_terms)
    return Candidates(
        pairs=np.array(pairs, dtype=np.uint64).reshape(-1, 2),
        shared_terms=np.array([shared_terms[pair] for pair in pairs], dtype=np.uint32),
        num_buckets=len(buckets),
        largest_bucket=max(map(len, buckets.values()), default=0),
        num_oversized_buckets=sum(len(docs) > params.max_bucket_size for docs in buckets.values()),
        num_cut_pairs=num_cut_pairs,
    )


def _brute_force_oversized(
    term: int, docs: list[int], sketch_of: dict[int, int], params: CandidateParams
) -> set[tuple[int, int]]:
    first_of: dict[int, int] = {}
    for doc in docs:
        first_of.setdefault(sketch_of[doc], doc)
    firsts = sorted(first_of.values())
    chained = {(first_of[sketch_of[doc]], doc) for doc in docs if doc not in firsts}
    if len(firsts) <= params.max_bucket_size:
        return chained | set(combinations(firsts, 2))
    ranks = {doc: int(mix64(np.uint64(doc) ^ np.uint64(mix64(np.uint64(term))))) for doc in firsts}
    sampled = sorted(firsts, key=ranks.__getitem__)[: params.num_sampled]
    return chained | {(min(a, b), max(a, b)) for a in sampled for b in firsts if a != b}


class _PairTally:
    """How often each pair occurred, a key being the left row above the right row.

    Sorted runs of about equal length are merged as they come, so a key is moved a logarithmic number of times.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[NDArray[np.uint64], NDArray[np.uint32]]] = []

    def add(self, keys: NDArray[np.uint64]) -> None:
        keys = np.sort(keys)
        first = np.flatnonzero(starts_of_runs(keys))
        self._runs.append((keys[first], np.diff(first, append=keys.size).astype(np.uint32)))
        while len(self._runs) > 1 and self._runs[-2][0].size < 2 * self._runs[-1][0].size:
            self._merge_last()

    def total(self) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """The distinct keys, ascending, and how often each was added."""
        while len(self._runs) > 1:
            self._merge_last()
        return self._runs[0] if self._runs else (np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint32))

    def _merge_last(self) -> None:
        right, left = self._runs.pop(), self._runs.pop()
        self._runs.append(_merged(*left, *right))


def _regular_keys(
    postings: TermPostings, bounds: NDArray[np.int64], params: CandidateParams, first_new_row: int
) -> Iterator[NDArray[np.uint64]]:
    """Keys of the pairs of all buckets that are not oversized, in chunks; a pair repeats once for each shared term."""
    sizes = np.diff(bounds)
    regular = np.flatnonzero((sizes > 1) & (sizes <= params.max_bucket_size))
    if regular.size == 0:
        return
    most_pairs = int(sizes[regular].max()) ** 2 // 2
    total_pairs = int((sizes[regular] * (sizes[regular] - 1) // 2).sum())
    keys = np.empty(max(min(_MIN_KEYS_PER_CHUNK, total_pairs), most_pairs) + 1, dtype=np.uint64)
    next_bucket = 0
    while next_bucket < regular.size:
        next_bucket, num_keys = _pair_buckets(
            bounds[regular],
            sizes[regular],
            next_bucket,
            postings.doc_rows,
            postings.sketches,
            params.max_sketch_distance,
            first_new_row,
            keys,
        )
        yield keys[:num_keys]


@dataclass(frozen=True, slots=True, eq=False)
class _OversizedSplit:
    """An oversized bucket: docs after the first of their sketch with that first, all firsts, and the sampled ones.

    `sampled` is None where the firsts are few enough to be paired with one another.
    """

    chained_firsts: NDArray[np.int64]
    chained: NDArray[np.int64]
    firsts: NDArray[np.int64]
    sampled: NDArray[np.int64] | None
    num_cut_pairs: int


def _split_oversized(
    postings: TermPostings, start: int, end: int, params: CandidateParams, first_new_row: int
) -> _OversizedSplit:
    rows = postings.doc_rows[start:end]
    # Packed words compare several times faster than rows of words.
    packed = np.ascontiguousarray(postings.sketches[rows]).view(f"V{8 * postings.sketches.shape[1]}").ravel()
    _, first_of_sketch, inverse = np.unique(packed, return_index=True, return_inverse=True)
    first_of_row = first_of_sketch[inverse]
    is_chained = first_of_row != np.arange(rows.size)
    firsts = rows[~is_chained]
    sampled = None
    chained = rows[is_chained]
    num_compared = int((chained >= first_new_row).sum()) + _num_new_pairs(firsts, first_new_row)
    if firsts.size > params.max_bucket_size:
        ranks = _mixed(postings.docs[firsts], postings.terms[start])
        by_rank = firsts[np.argsort(ranks)]
        sampled = np.sort(by_rank[: params.num_sampled])
        num_compared -= _num_new_pairs(by_rank[params.num_sampled :], first_new_row)
    return _OversizedSplit(
        chained_firsts=rows[first_of_row[is_chained]],
        chained=chained,
        firsts=firsts,
        sampled=sampled,
        num_cut_pairs=_num_new_pairs(rows, first_new_row) - num_compared,
    )


def _num_new_pairs(rows: NDArray[np.int64], first_new_row: int) -> int:
    """How many pairs of distinct rows have a new one: those of all rows without those of the known.

    >>> _num_new_pairs(np.array([3, 5, 7]), 7), _num_new_pairs(np.array([3, 5, 7]), 0)
    (2, 3)
    """
    num_known = int((rows < first_new_row).sum())
    return (rows.size * (rows.size - 1) - num_known * (num_known - 1)) // 2


def _oversized_keys(
    split: _OversizedSplit, sketches: NDArray[np.uint64], params: CandidateParams, first_new_row: int
) -> Iterator[NDArray[np.uint64]]:
    yield (split.chained_firsts.astype(np.uint64) << _ROW_BITS) | split.chained.astype(np.uint64)
    if split.sampled is None:
        keys = np.empty(split.firsts.size**2 // 2 + 1, dtype=np.uint64)
        whole = np.array([0, split.firsts.size])
        _, num_keys = _pair_buckets(
            whole[:1], whole[1:], 0, split.firsts, sketches, params.max_sketch_distance, first_new_row, keys
        )
        yield keys[:num_keys]
        return
    keys = np.empty(_MIN_KEYS_PER_CHUNK, dtype=np.uint64)
    num_firsts_per_chunk = (_MIN_KEYS_PER_CHUNK - 1) // split.sampled.size
    for first in range(0, split.firsts.size, num_firsts_per_chunk):
        chunk = split.firsts[first : first + num_firsts_per_chunk]
        num_keys = _pair_with_sampled(chunk, split.sampled, sketches, params.max_sketch_distance, keys)
        yield keys[:num_keys]


@njit(cache=True, nogil=True)
def _merged(
    left: NDArray[np.uint64],
    left_counts: NDArray[np.uint32],
    right: NDArray[np.uint64],
    right_counts: NDArray[np.uint32],
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Two ascending runs of distinct keys as one; the counts of a key in both are added."""
    keys, counts = np.empty(left.size + right.size, np.uint64), np.empty(left.size + right.size, np.uint32)
    i = j = num_keys = 0
    while i < left.size and j < right.size:
        takes_left, takes_right = left[i] <= right[j], right[j] <= left[i]
        keys[num_keys] = left[i] if takes_left else right[j]
        counts[num_keys] = left_counts[i] * np.uint32(takes_left) + right_counts[j] * np.uint32(takes_right)
        i += int(takes_left)
        j += int(takes_right)
        num_keys += 1
    num_rest = left.size - i + right.size - j
    keys[num_keys : num_keys + num_rest] = left[i:] if i < left.size else right[j:]
    counts[num_keys : num_keys + num_rest] = left_counts[i:] if i < left.size else right_counts[j:]
    return keys[: num_keys + num_rest], counts[: num_keys + num_rest]


@njit(cache=True, nogil=True)
def _mixed(docs: NDArray[np.uint64], term: np.uint64) -> NDArray[np.uint64]:
    """A rank for each doc of a bucket, distinct and reshuffled for every term."""
    ranks = np.empty(docs.size, np.uint64)
    for i in range(docs.size):
        ranks[i] = mix64(docs[i] ^ mix64(term))
    return ranks


@njit(cache=True, nogil=True)
def _pair_buckets(  # noqa: PLR0917 - numba kernels take their arrays one by one
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    next_bucket: int,
    doc_rows: NDArray[np.int64],
    sketches: NDArray[np.uint64],
    max_distance: int,
    first_new_row: int,
    keys: NDArray[np.uint64],
) -> tuple[int, int]:
    """Fills `keys` from as many buckets as surely fit; returns the bucket to go on with and the number of keys."""
    num_keys = 0
    # A word of all docs lies together, so that distances to many docs are counted at once.
    words = np.empty((sketches.shape[1], sizes.max()), np.uint64)
    distances = np.empty(sizes.max(), np.uint64)
    limit = np.uint64(max_distance)
    while next_bucket < sizes.size:
        size = sizes[next_bucket]
        if num_keys + size * (size - 1) // 2 >= keys.size:
            break
        rows = doc_rows[starts[next_bucket] : starts[next_bucket] + size]
        for i in range(size):
            for word in range(len(words)):
                words[word, i] = sketches[rows[i], word]
        num_known = np.searchsorted(rows, first_new_row)
        for i in range(size):
            first = i + 1 if i + 1 > num_known else num_known
            _distances(words, i, first, size, distances)
            high_row = np.uint64(rows[i]) << _ROW_BITS
            for j in range(first, size):
                # Storing first and counting after keeps the loop free of a branch that nobody can predict.
                keys[num_keys] = high_row | np.uint64(rows[j])
                num_keys += distances[j] <= limit
        next_bucket += 1
    return next_bucket, num_keys


@njit(cache=True, nogil=True)
def _distances(words: NDArray[np.uint64], i: int, first: int, size: int, distances: NDArray[np.uint64]) -> None:
    """Fills `distances[first:size]` with those of doc `i`; `words` is `(words_per_sketch, docs)`."""
    for j in range(first, size):
        distances[j] = count_ones(words[0, i] ^ words[0, j])
    for word in range(1, len(words)):
        of_doc, of_all = words[word, i], words[word]
        for j in range(first, size):
            distances[j] += count_ones(of_doc ^ of_all[j])


@njit(cache=True, nogil=True)
def _pair_with_sampled(
    rows: NDArray[np.int64],
    sampled: NDArray[np.int64],
    sketches: NDArray[np.uint64],
    max_distance: int,
    keys: NDArray[np.uint64],
) -> int:
    """Fills `keys` with the pairs of `rows` and `sampled`, a pair of two sampled rows once; returns their number."""
    is_sampled = np.zeros(rows.size, np.bool_)
    positions = np.searchsorted(sampled, rows)
    for i in range(rows.size):
        is_sampled[i] = positions[i] < sampled.size and sampled[positions[i]] == rows[i]
    num_keys = 0
    limit = np.uint64(max_distance)
    for i in range(rows.size):
        for j in range(sampled.size):
            if rows[i] == sampled[j] or (is_sampled[i] and rows[i] > sampled[j]):
                continue
            low, high = min(rows[i], sampled[j]), max(rows[i], sampled[j])
            keys[num_keys] = (np.uint64(low) << _ROW_BITS) | np.uint64(high)
            distance = np.uint64(0)
            for word in range(sketches.shape[1]):
                distance += count_ones(sketches[low, word] ^ sketches[high, word])
            num_keys += int(distance <= limit)
    return num_keys
