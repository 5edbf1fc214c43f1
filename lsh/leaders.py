"""Leaders of huge crowds: docs that are all that a hundredth of the corpus, near-identical images, are compared with.

The heads of a crowded bucket (`lsh.crowds`) come from its own docs, so a doc of a crowd of a million meets a dozen
heads in as many buckets, and in buckets that are too small to be cut the crowd meets itself. Leaders are chosen once
for all buckets, from a sample of the corpus. A doc close to a leader is led: it is compared with the leaders in its
buckets and with nothing else. Whoever matches the crowd meets its leader, the canonical that the crowd will have.

A leader is compared with all docs of its buckets, led or not. Only tight crowds are led: in a loose one, a template's
variants, leaders would miss docs of one another's. Their docs meet the heads of each bucket.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.bits import count_ones, mix64
from lsh.blocks import TermPostings
from lsh.candidates import (
    CandidateParams,
    Candidates,
    WalkedBuckets,
    bounds_of_buckets,
    brute_force_candidates,
    candidate_pairs,
    integer_sketches,
    tally_buckets,
)
from lsh.crowds import are_within, doc_ranks, pair_with_heads
from lsh.pair_tally import PairTally, Spill
from lsh.sketches import WORDS_PER_SKETCH

NUM_SAMPLED: Final = 16_384
"""Docs of a corpus among which leaders are chosen."""
MIN_LED: Final = 128
"""Docs of the sample that a leader leads, itself included; of a small corpus these are all that it leads."""
LEADER_DISTANCE: Final = 20
"""Sketch distance within which a doc is led: a cosine of about 0.97, and such pairs share a term almost surely."""
CROWD_DISTANCE: Final = 50
"""Sketch distance within which docs are of one crowd; a leader leads half of the docs within it, or more."""
_MAX_RANK: Final = (1 << 64) - 1
_ZERO = np.uint64(0)


@dataclass(frozen=True, slots=True, eq=False)
class Leaders:
    """The leaders of a corpus: `docs` `(k,)` uint64, `sketches` `(k, words_per_sketch)` uint64."""

    docs: NDArray[np.uint64]
    sketches: NDArray[np.uint64]


NO_LEADERS: Final = Leaders(np.empty(0, np.uint64), np.empty((0, WORDS_PER_SKETCH), np.uint64))


def are_sampled(docs: NDArray[np.uint64], *, num_docs: int) -> NDArray[np.bool_]:
    """Which docs of a corpus of `num_docs` leaders may be chosen from: somewhat more than `NUM_SAMPLED` of all."""
    share = 1.25 * NUM_SAMPLED / max(1, num_docs)
    are: NDArray[np.bool_] = doc_ranks(docs) <= np.uint64(min(_MAX_RANK, int(share * 2.0**64)))
    return are


def choose_leaders(docs: NDArray[np.uint64], sketches: NDArray[np.uint64]) -> Leaders:
    """The leaders of a corpus from its docs `(n,)` that `are_sampled`, in any order, and their sketches.

    Of the `NUM_SAMPLED` docs of lowest rank, that which most others are close to comes first, the lowest of equal ones;
    then that of those which are left, while it has `MIN_LED`. Those of loose crowds are passed over.
    """
    order = np.argsort(doc_ranks(docs))[:NUM_SAMPLED]
    docs, sketches = docs[order], sketches[order]
    words = np.ascontiguousarray(sketches.T)
    is_left = np.ones(docs.size, np.bool_)
    num_close = np.zeros(docs.size, np.int64)
    _add_close(words, np.arange(docs.size), is_left, 1, num_close)
    leaders = []
    while docs.size and num_close.max() >= MIN_LED:
        candidate = int(np.argmax(num_close))
        distances = _distances(words, candidate)
        if not _is_tight(distances):
            num_close[candidate] = 0
            continue
        leaders.append(candidate)
        led = np.flatnonzero(is_left & (distances <= LEADER_DISTANCE))
        is_left[led] = False
        num_close[led] = 0
        _add_close(words, led, is_left, -1, num_close)
    return Leaders(docs[leaders], sketches[leaders])


def _is_tight(distances: NDArray[np.int64]) -> bool:
    """Whether of the docs at these distances that are of one crowd half or more are close."""
    return bool(2 * np.sum(distances <= LEADER_DISTANCE) >= np.sum(distances <= CROWD_DISTANCE))


def brute_force_leaders(sketch_of: dict[int, int]) -> list[int]:
    """The slow twin of `choose_leaders`, for all docs of a corpus with sketches as integers."""
    sample = sorted(sketch_of, key=lambda doc: int(mix64(np.uint64(doc))))[:NUM_SAMPLED]
    num_within = {
        distance: {doc: sum(are_within(distance, doc, other, sketch_of) for other in sample) for doc in sample}
        for distance in (LEADER_DISTANCE, CROWD_DISTANCE)
    }
    candidates = [doc for doc in sample if 2 * num_within[LEADER_DISTANCE][doc] >= num_within[CROWD_DISTANCE][doc]]
    remaining = set(sample)
    leaders: list[int] = []
    while True:
        crowds = {
            doc: {other for other in remaining if are_within(LEADER_DISTANCE, doc, other, sketch_of)}
            for doc in candidates
            if doc in remaining
        }
        leader = max(crowds, key=lambda doc: len(crowds[doc]), default=None)
        if leader is None or len(crowds[leader]) < MIN_LED:
            return leaders
        leaders.append(leader)
        remaining -= crowds[leader]


def candidates_with_leaders(
    postings: TermPostings, params: CandidateParams, leaders: Leaders, *, spill: Spill | None = None
) -> Candidates:
    """As `candidate_pairs` of docs that are all new, but led docs are compared with leaders alone.

    A bucket in which pairs were left out for that counts as cut. Sketches of leaders have as many words as the docs'.
    """
    if not leaders.docs.size:
        return candidate_pairs(postings, params, spill=spill)
    is_leader = np.isin(postings.docs, leaders.docs)[postings.doc_rows]
    is_other = ~_are_led(postings.sketches, leaders.sketches, _led_within(params))[postings.doc_rows]
    bounds = bounds_of_buckets(postings.terms)
    sizes, num_leaders, num_others = (
        np.add.reduceat(which, bounds[:-1], dtype=np.int64) if which.size else np.empty(0, np.int64)
        for which in (np.ones(is_other.size, np.bool_), is_leader, is_other)
    )
    tally = PairTally(postings.docs, spill)
    for bucket in np.flatnonzero(num_leaders).tolist():
        tally.add(_keys_with_leaders(postings, slice(bounds[bucket], bounds[bucket + 1]), is_leader, params))
    others = TermPostings(postings.terms[is_other], postings.doc_rows[is_other], postings.docs, postings.sketches)
    cut_terms, num_cut_pairs = tally_buckets(tally, others, WalkedBuckets.of(others), params)
    num_compared = num_leaders * (sizes - 1) - num_leaders * (num_leaders - 1) // 2
    num_left_out = sizes * (sizes - 1) // 2 - num_others * (num_others - 1) // 2 - num_compared
    return Candidates.of(
        tally,
        num_buckets=sizes.size,
        largest_bucket=int(sizes.max(initial=0)),
        num_cut_buckets=np.union1d(cut_terms, postings.terms[bounds[:-1]][num_left_out > 0]).size,
        num_cut_pairs=num_cut_pairs + int(num_left_out.sum()),
    )


def brute_force_candidates_with_leaders(
    postings: TermPostings, params: CandidateParams, leaders: Leaders
) -> dict[tuple[int, int], int]:
    """The slow twin of `candidates_with_leaders`: each pair with the terms that it shares."""
    sketch_of = integer_sketches(postings.docs, postings.sketches)
    leader_of = integer_sketches(leaders.docs, leaders.sketches)
    led = {
        doc
        for doc, sketch in sketch_of.items()
        if any((sketch ^ other).bit_count() <= _led_within(params) for other in leader_of.values())
    }
    is_other = np.array([doc not in led for doc in postings.docs[postings.doc_rows].tolist()], np.bool_)
    others = TermPostings(postings.terms[is_other], postings.doc_rows[is_other], postings.docs, postings.sketches)
    found = brute_force_candidates(others, params)
    shared_terms = {tuple(pair): count for pair, count in zip(found.pairs.tolist(), found.shared_terms, strict=True)}
    for term in set(postings.terms.tolist()):
        docs = postings.docs[postings.doc_rows[postings.terms == term]].tolist()
        for left, right in combinations(docs, 2):
            is_near = (sketch_of[left] ^ sketch_of[right]).bit_count() <= params.max_sketch_distance
            if is_near and not leader_of.keys().isdisjoint((left, right)):
                shared_terms[left, right] = shared_terms.get((left, right), 0) + 1
    return shared_terms


def _led_within(params: CandidateParams) -> int:
    """The distance within which docs are led: never so far that they would be no candidates of their leader."""
    return min(LEADER_DISTANCE, params.max_sketch_distance)


def _keys_with_leaders(
    postings: TermPostings, bucket: slice, is_leader: NDArray[np.bool_], params: CandidateParams
) -> NDArray[np.uint64]:
    """Keys of the pairs of all docs of a bucket with its leaders."""
    rows = postings.doc_rows[bucket]
    heads = rows[is_leader[bucket]]
    keys, is_covered = np.empty(heads.size * rows.size, np.uint64), np.empty(rows.size, np.bool_)
    return keys[: pair_with_heads(rows, heads, postings.sketches, params.max_sketch_distance, 0, 0, keys, is_covered)]


@njit(cache=True, nogil=True)
def _are_led(sketches: NDArray[np.uint64], leaders: NDArray[np.uint64], radius: int) -> NDArray[np.bool_]:
    """Which of `(n, words_per_sketch)` sketches are within `radius` of one of the leaders' sketches."""
    are = np.zeros(len(sketches), np.bool_)
    for row in range(len(sketches)):
        for leader in range(len(leaders)):
            distance = _ZERO
            for word in range(sketches.shape[1]):
                distance += count_ones(sketches[row, word] ^ leaders[leader, word])
            if distance <= np.uint64(radius):
                are[row] = True
                break
    return are


@njit(cache=True, nogil=True)
def _distances(words: NDArray[np.uint64], row: int) -> NDArray[np.int64]:
    """The distances of all rows of `words` `(words_per_sketch, n)` to one."""
    distances = np.zeros(words.shape[1], np.int64)
    for word in range(len(words)):
        of_row = words[word, row]
        for i in range(np.uint64(distances.size)):
            distances[i] += np.int64(count_ones(of_row ^ words[word, i]))
    return distances


@njit(cache=True, nogil=True)
def _add_close(
    words: NDArray[np.uint64],
    rows: NDArray[np.int64],
    counted: NDArray[np.bool_],
    step: int,
    num_close: NDArray[np.int64],
) -> None:
    """Adds `step` to `num_close` of every `counted` row for each of `rows` that it is close to."""
    for row in rows:
        distances = _distances(words, row)
        for i in range(np.uint64(distances.size)):
            num_close[i] += step * np.int64(counted[i] and distances[i] <= LEADER_DISTANCE)
