"""Buckets to candidates: the pairs of docs that share a bucket and whose sketches are near.

A reduce task of the blocked shuffle runs this on its merged postings. A bucket's pairs depend on nothing but its term,
its docs and their sketches, so the candidates are the same however the terms are spread over partitions.

With `first_new_doc` only pairs with a new doc are made. Docs are given in ascending order, so the new docs of a bucket
are its last, and a pair has a new doc where its right one is new; pairs of known docs were made when those were new.

A crowded bucket is cut around heads, which cover what is within two thirds of the sketch distance (`lsh.crowds`). What
is then still oversized is halved by a bit of the sketch. What was not compared is counted in `num_cut_pairs`.

A bucket is cut with all of its docs, known ones included, so the pairs with a new doc are those that a full run over
the same docs would make. Heads may change from night to night: a new doc meets the heads of today, and the cluster step
compares it with the canonical that their crowd has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import acos, pi, sqrt

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.bits import count_ones, mix64
from lsh.blocks import MAX_WORDS_PER_SKETCH
from lsh.buckets import Buckets
from lsh.crowds import (
    UNCUT_PER_CROWD,
    are_within,
    bases_of,
    brute_force_heads,
    crowd_heads,
    gather_words,
    is_crowd,
    pair_with_heads,
)
from lsh.errors import ParameterError
from lsh.pair_tally import PairTally, Spill
from lsh.sketches import BITS_PER_SKETCH, WORDS_PER_SKETCH

MAX_DOCS_PER_PARTITION = 1 << 32
MIN_KEYS_PER_CHUNK = 1 << 22
_STRETCH = np.uint64(32)
_ZERO = np.uint64(0)
_ROW_BITS = np.uint64(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateParams:
    """How buckets become pairs.

    `max_sketch_distance` is meant for sketches of `WORDS_PER_SKETCH`; `for_similarity` chooses it. A head covers at
    least `crowd_size` docs of a sample of `8 * crowd_size`; buckets of up to `4 * crowd_size` are never cut.
    """

    max_bucket_size: int = 8192
    crowd_size: int = 32
    max_sketch_distance: int = 75

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_bucket_size", 2, 16384),
            ("crowd_size", 1, 16384),
            ("max_sketch_distance", 0, BITS_PER_SKETCH * MAX_WORDS_PER_SKETCH),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ParameterError(f"{name}={value} is out of range {low}..{high}")

    @classmethod
    def for_similarity(cls, min_similarity: float) -> CandidateParams:
        """The parameters whose sketches lose one in 46 pairs of this very cosine; below 0.72 more of them.

        Sketches of pairs at angle `theta` differ in `theta / pi` of their bits, with a binomial's deviation (Charikar,
        STOC 2002, section 3): at 0.8 in 52 of them, in more than 65, two deviations, once in 46 pairs, and at 0.85 once
        in 2,300. Each bit more would keep a fifth more pairs, nearly all of them too far apart to match.

        >>> [CandidateParams.for_similarity(cosine).max_sketch_distance for cosine in (0.5, 0.8, 0.9, 1.0)]
        [75, 65, 48, 0]
        """
        share = acos(max(-1.0, min(1.0, min_similarity))) / pi
        num_bits = BITS_PER_SKETCH * WORDS_PER_SKETCH
        distance = num_bits * share + 2 * sqrt(num_bits * share * (1 - share))
        return cls(max_sketch_distance=min(cls().max_sketch_distance, round(distance)))

    @property
    def crowd_distance(self) -> int:
        """The sketch distance within which a head covers a doc: so near that they probably match."""
        return 2 * self.max_sketch_distance // 3


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Distinct `pairs` `(m, 2)` uint64 docs, left below right, ascending; `shared_terms` `(m,)` uint32; and counts.

    What was spilled is not among the pairs, but in the counts of buckets.
    `num_cut_pairs` counts, over the `num_cut_buckets` that were crowded or oversized and have a new doc, the pairs with
    a new doc that were never compared there.
    """

    pairs: NDArray[np.uint64]
    shared_terms: NDArray[np.uint32]
    num_buckets: int
    largest_bucket: int
    num_cut_buckets: int
    num_cut_pairs: int

    @classmethod
    def of(
        cls, tally: PairTally, *, num_buckets: int, largest_bucket: int, num_cut_buckets: int, num_cut_pairs: int
    ) -> Candidates:
        """What is tallied."""
        pairs, shared_terms = tally.take()
        return cls(
            pairs=pairs,
            shared_terms=shared_terms,
            num_buckets=num_buckets,
            largest_bucket=largest_bucket,
            num_cut_buckets=num_cut_buckets,
            num_cut_pairs=num_cut_pairs,
        )


def candidate_pairs(
    buckets: Buckets,
    params: CandidateParams,
    *,
    first_new_doc: int = 0,
    among_new: bool = True,
    spill: Spill | None = None,
) -> Candidates:
    """Every pair that shares a term, has a sketch distance of at most `max_sketch_distance` and a doc that is new.

    Without `among_new` the pairs of two new docs are not even compared, but where a bucket is cut. Memory stays near
    that of the distinct pairs, of which `spill` gets what is too much to be held at once.
    """
    if buckets.docs.size >= MAX_DOCS_PER_PARTITION:
        raise ParameterError(
            f"{buckets.docs.size} docs in one partition are more than {MAX_DOCS_PER_PARTITION - 1}; "
            f"raise num_partitions"
        )
    tally = PairTally(buckets.docs, spill)
    cut, num_cut_pairs = tally_buckets(tally, buckets, params, first_new_doc=first_new_doc, among_new=among_new)
    return Candidates.of(
        tally,
        num_buckets=int((buckets.sizes > 0).sum()),
        largest_bucket=int(buckets.sizes.max(initial=0)),
        num_cut_buckets=cut.size,
        num_cut_pairs=num_cut_pairs,
    )


def tally_buckets(
    tally: PairTally, buckets: Buckets, params: CandidateParams, *, first_new_doc: int = 0, among_new: bool = True
) -> tuple[NDArray[np.int64], int]:
    """Tally the candidates of all buckets; returns the numbers of those cut, and how many pairs they left out."""
    first_new_row = int(np.searchsorted(buckets.docs, np.uint64(first_new_doc)))
    sizes = buckets.sizes
    walked = np.flatnonzero(sizes > 1)
    # The new docs of a bucket are its last.
    walked = walked[buckets.doc_rows[buckets.ends[walked] - 1] >= first_new_row]
    is_oversized = sizes[walked] > params.max_bucket_size
    regular = walked[~is_oversized]
    is_crowded, bases = np.zeros(regular.size, np.bool_), bases_of(buckets.docs)
    for keys in _regular_keys(
        buckets,
        buckets.ends[regular] - sizes[regular],
        sizes[regular],
        bases=bases,
        params=params,
        first_new_row=first_new_row,
        among_new=among_new,
        is_crowded=is_crowded,
    ):
        tally.add(keys)
    cut = np.union1d(walked[is_oversized], regular[is_crowded])
    return cut, _tally_cut(tally, buckets, cut, bases=bases, params=params, first_new_row=first_new_row)


def brute_force_candidates(buckets: Buckets, params: CandidateParams, *, first_new_doc: int = 0) -> Candidates:
    """The slow twin of `candidate_pairs`: plain Python over sets, for tests and for reading."""
    sketch_of = integer_sketches(buckets.docs, buckets.sketches)
    all_rows = np.split(buckets.doc_rows, buckets.ends[:-1])
    docs_of = {
        term: buckets.docs[rows].tolist()
        for term, rows in zip(buckets.terms.tolist(), all_rows, strict=False)
        if rows.size
    }
    shared_terms: dict[tuple[int, int], int] = {}
    num_cut_buckets = num_cut_pairs = 0
    for term, docs in docs_of.items():
        compared = wanted = {pair for pair in combinations(docs, 2) if pair[1] >= first_new_doc}
        is_crowded = len(docs) > params.max_bucket_size or bool(
            brute_force_heads(docs, sketch_of, radius=params.crowd_distance, crowd_size=params.crowd_size)
        )
        if is_crowded and docs[-1] >= first_new_doc:
            bits = np.roll(np.arange(_num_bits(buckets)), -_first_bit(term, buckets)).tolist()
            compared = wanted & _brute_force_cut(docs, sketch_of, params, bits)
            num_cut_buckets += 1
        num_cut_pairs += len(wanted) - len(compared)
        for left, right in compared:
            if (sketch_of[left] ^ sketch_of[right]).bit_count() <= params.max_sketch_distance:
                shared_terms[left, right] = shared_terms.get((left, right), 0) + 1
    pairs = sorted(shared_terms)
    return Candidates(
        pairs=np.array(pairs, dtype=np.uint64).reshape(-1, 2),
        shared_terms=np.array([shared_terms[pair] for pair in pairs], dtype=np.uint32),
        num_buckets=len(docs_of),
        largest_bucket=max(map(len, docs_of.values()), default=0),
        num_cut_buckets=num_cut_buckets,
        num_cut_pairs=num_cut_pairs,
    )


def integer_sketches(docs: NDArray[np.uint64], sketches: NDArray[np.uint64]) -> dict[int, int]:
    """Each doc's sketch as one integer."""
    return {
        doc: sum(word << BITS_PER_SKETCH * position for position, word in enumerate(words))
        for doc, words in zip(docs.tolist(), sketches.tolist(), strict=True)
    }


def _brute_force_cut(
    docs: list[int], sketch_of: dict[int, int], params: CandidateParams, bits: list[int]
) -> set[tuple[int, int]]:
    heads = brute_force_heads(docs, sketch_of, radius=params.crowd_distance, crowd_size=params.crowd_size)
    if heads:
        compared = {(min(head, doc), max(head, doc)) for head in heads for doc in docs if doc != head}
        covered = {doc for head in heads for doc in docs if are_within(params.crowd_distance, head, doc, sketch_of)}
        return compared | _brute_force_cut([doc for doc in docs if doc not in covered], sketch_of, params, bits)
    if len(docs) <= params.max_bucket_size or not bits:
        return set(combinations(docs, 2))
    halves = ([doc for doc in docs if sketch_of[doc] >> bits[0] & 1 == side] for side in (0, 1))
    return set().union(*(_brute_force_cut(half, sketch_of, params, bits[1:]) for half in halves))


def _tally_cut(
    tally: PairTally,
    buckets: Buckets,
    cut: NDArray[np.int64],
    *,
    bases: NDArray[np.uint64],
    params: CandidateParams,
    first_new_row: int,
) -> int:
    """Tally the pairs of the crowded or oversized buckets of these numbers.

    Returns how many pairs with a new doc were not compared there.
    """
    num_cut_pairs = 0
    for number in cut.tolist():
        num_cut_pairs += _num_new_pairs(buckets.rows(number), first_new_row)
        for keys, num_compared in _cut_keys(buckets, number, bases, params, first_new_row):
            tally.add(keys)
            num_cut_pairs -= num_compared
    return num_cut_pairs


def _regular_keys(
    buckets: Buckets,
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    *,
    bases: NDArray[np.uint64],
    params: CandidateParams,
    first_new_row: int,
    among_new: bool,
    is_crowded: NDArray[np.bool_],
) -> Iterator[NDArray[np.uint64]]:
    """Keys of the pairs of these buckets, in chunks; a pair repeats once for each shared term.

    Crowded buckets are left out and marked in `is_crowded`.
    """
    if sizes.size == 0:
        return
    most_pairs = int(sizes.max()) ** 2 // 2
    total_pairs = int((sizes * (sizes - 1) // 2).sum())
    keys = np.empty(max(min(MIN_KEYS_PER_CHUNK, total_pairs), most_pairs) + 1, dtype=np.uint64)
    next_bucket = 0
    while next_bucket < sizes.size:
        next_bucket, num_keys = _pair_buckets(
            starts,
            sizes,
            next_bucket,
            buckets.doc_rows,
            buckets.docs,
            bases,
            buckets.sketches,
            params.max_sketch_distance,
            params.crowd_distance,
            params.crowd_size,
            first_new_row,
            among_new,
            MIN_KEYS_PER_CHUNK,
            keys,
            is_crowded,
        )
        yield keys[:num_keys]


def _cut_keys(
    buckets: Buckets, number: int, bases: NDArray[np.uint64], params: CandidateParams, first_new_row: int
) -> Iterator[tuple[NDArray[np.uint64], int]]:
    """Keys of the pairs of one crowded or oversized bucket, in chunks, each with the number of pairs compared."""
    docs, sketches, distance = buckets.docs, buckets.sketches, params.max_sketch_distance
    num_bits, first_bit = _num_bits(buckets), _first_bit(int(buckets.terms[number]), buckets)
    parts = [(buckets.rows(number), 0)]
    while parts:
        rows, bits_used = parts.pop()
        if not rows.size or rows[-1] < first_new_row:
            continue
        heads = crowd_heads(rows, docs, bases, sketches, params.crowd_distance, params.crowd_size)
        if heads.size:
            is_covered = np.empty(rows.size, np.bool_)
            keys = np.empty(min(MIN_KEYS_PER_CHUNK, heads.size * rows.size), dtype=np.uint64)
            rows_per_chunk = keys.size // heads.size
            for first in range(0, rows.size, rows_per_chunk):
                led, covers = rows[first : first + rows_per_chunk], is_covered[first : first + rows_per_chunk]
                num_keys = pair_with_heads(
                    led, heads, sketches, distance, params.crowd_distance, first_new_row, keys, covers
                )
                yield keys[:num_keys], 0
            others = rows[~np.isin(rows, heads)]
            yield keys[:0], _num_new_pairs(rows, first_new_row) - _num_new_pairs(others, first_new_row)
            parts.append((rows[~is_covered], bits_used))
        elif rows.size <= params.max_bucket_size or bits_used == num_bits:
            keys = np.empty(rows.size * (rows.size - 1) // 2 + 1, dtype=np.uint64)
            num_keys = _pair_rows(rows, sketches, distance, first_new_row, keys)
            yield keys[:num_keys], _num_new_pairs(rows, first_new_row)
        else:
            bit = (first_bit + bits_used) % num_bits
            is_set = (sketches[rows, bit // BITS_PER_SKETCH] >> np.uint64(bit % BITS_PER_SKETCH) & np.uint64(1)) == 1
            parts += [(rows[is_set], bits_used + 1), (rows[~is_set], bits_used + 1)]


def _num_new_pairs(rows: NDArray[np.uint32], first_new_row: int) -> int:
    """How many pairs of distinct rows have a new one: those of all rows without those of the known.

    >>> _num_new_pairs(np.array([3, 5, 7]), 7), _num_new_pairs(np.array([3, 5, 7]), 0)
    (2, 3)
    """
    num_known = int((rows < first_new_row).sum())
    return (rows.size * (rows.size - 1) - num_known * (num_known - 1)) // 2


def _num_bits(buckets: Buckets) -> int:
    return BITS_PER_SKETCH * int(buckets.sketches.shape[1])


def _first_bit(term: int, buckets: Buckets) -> int:
    """The bit of the sketch that halves this term's bucket first: another for each table, so that halves differ."""
    return int(mix64(np.uint64(term))) % _num_bits(buckets)


@njit(cache=True, nogil=True)
def _pair_buckets(  # noqa: PLR0917 - numba kernels take their arrays one by one
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    next_bucket: int,
    doc_rows: NDArray[np.uint32],
    docs: NDArray[np.uint64],
    bases: NDArray[np.uint64],
    sketches: NDArray[np.uint64],
    max_distance: int,
    crowd_distance: int,
    crowd_size: int,
    first_new_row: int,
    among_new: bool,
    num_wanted: int,
    keys: NDArray[np.uint64],
    is_crowded: NDArray[np.bool_],
) -> tuple[int, np.int64]:
    """Fills `keys` from as many buckets as surely fit, or until there are `num_wanted`, and marks those crowded.

    Returns the bucket to go on with and the number of keys.
    """
    num_keys = np.int64(0)
    # A word of all docs lies together, so that distances to many docs are counted at once.
    words = np.empty((sketches.shape[1], sizes.max()), np.uint64)
    distances = np.empty(sizes.max(), np.uint64)
    while next_bucket < sizes.size:
        rows = doc_rows[starts[next_bucket] : starts[next_bucket] + sizes[next_bucket]]
        first_new = np.searchsorted(rows, first_new_row)
        end_left = rows.size if among_new else first_new
        num_pairs = (rows.size * (rows.size - 1) - first_new * (first_new - 1)) // 2
        if num_keys >= num_wanted or num_keys + num_pairs >= keys.size:
            break
        gather_words(rows, sketches, words)
        if rows.size > UNCUT_PER_CROWD * crowd_size:
            is_crowded[next_bucket] = is_crowd(rows, docs, bases, sketches, words, crowd_distance, crowd_size)
        if not is_crowded[next_bucket]:
            num_keys = _pair_words(rows, words, first_new, end_left, max_distance, distances, num_keys, keys)
        next_bucket += 1
    return next_bucket, num_keys


@njit(cache=True, nogil=True)
def _pair_rows(
    rows: NDArray[np.uint32],
    sketches: NDArray[np.uint64],
    max_distance: int,
    first_new_row: int,
    keys: NDArray[np.uint64],
) -> int:
    """Fills `keys` with the near pairs of `rows` that have a new one; returns how many there are."""
    words = np.empty((sketches.shape[1], rows.size), np.uint64)
    gather_words(rows, sketches, words)
    first_new = np.searchsorted(rows, first_new_row)
    return int(_pair_words(rows, words, first_new, rows.size, max_distance, np.empty(rows.size, np.uint64), 0, keys))


@njit(cache=True, nogil=True)
def _pair_words(  # noqa: PLR0917 - numba kernels take their arrays one by one
    rows: NDArray[np.uint32],
    words: NDArray[np.uint64],
    first_new: int,
    end_left: int,
    max_distance: int,
    distances: NDArray[np.uint64],
    num_before: int,
    keys: NDArray[np.uint64],
) -> np.int64:
    """Adds to `keys`, of which there are `num_before`, the near pairs of rows before `end_left` with new ones.

    `words` `(num_words, docs)` are the sketches of `rows`. Returns how many keys there are then. From the right doc,
    which is new, all left ones are one stretch, however few are new.
    """
    num_keys, limit = np.uint64(num_before), np.uint64(max_distance)
    for j in range(np.uint64(first_new), np.uint64(rows.size)):
        end = j if j < np.uint64(end_left) else np.uint64(end_left)
        if not _count_distances(words, j, end, limit, distances):
            continue
        low_row = np.uint64(rows[j])
        for start in range(_ZERO, end, _STRETCH):
            stop = start + _STRETCH if start + _STRETCH < end else end
            num_near = _ZERO
            for i in range(start, stop):
                num_near += np.uint64(distances[i] <= limit)
            if not num_near:
                continue
            for i in range(start, stop):
                # Storing first and counting after keeps the loop free of a branch that nobody can predict.
                keys[num_keys] = np.uint64(rows[i]) << _ROW_BITS | low_row
                num_keys += np.uint64(distances[i] <= limit)
    return np.int64(num_keys)


@njit(cache=True, nogil=True)
def _count_distances(
    words: NDArray[np.uint64], j: np.uint64, end: np.uint64, limit: np.uint64, distances: NDArray[np.uint64]
) -> np.uint64:
    """Fills `distances[:end]` with those of doc `j` and returns how many are near; `words` `(num_words, docs)`.

    Unsigned positions spare numba's test for negative ones, with which no loop becomes one over vectors.
    """
    num_near = _ZERO
    if len(words) == WORDS_PER_SKETCH:
        w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
        a, b, c, d = w0[j], w1[j], w2[j], w3[j]
        for i in range(end):
            distances[i] = count_ones(a ^ w0[i]) + count_ones(b ^ w1[i]) + count_ones(c ^ w2[i]) + count_ones(d ^ w3[i])
            num_near += np.uint64(distances[i] <= limit)
        return num_near
    for i in range(end):
        distances[i] = _ZERO
    for word in range(np.uint64(len(words))):
        of_doc = words[word, j]
        for i in range(end):
            distances[i] += count_ones(of_doc ^ words[word, i])
    for i in range(end):
        num_near += np.uint64(distances[i] <= limit)
    return num_near
