"""Leaders of huge crowds: docs that are all that a hundredth of the corpus, near-identical images, are compared with.

The heads of a crowded bucket (`lsh.crowds`) come from its own docs, so a doc of a crowd of a million meets a dozen
heads in as many buckets, and in buckets that are too small to be cut the crowd meets itself. Leaders are chosen once
for all buckets, from a sample of the corpus, the one of the largest crowd first. A doc is led by the first leader that
is within half of the sketch distance of candidates: it is compared with that one, with those before it, and with
nothing else. So almost every doc of a crowd has one pair, with the canonical that its crowd will have.

A doc that is not led is compared with all leaders in its buckets, and so is a leader. Only tight crowds are led, and
only where so many terms are shared that no doc misses its leader: in a loose one, a template's variants, leaders would
miss docs of one another's. Docs of other crowds meet the heads of each bucket.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.bits import count_ones, mix64
from lsh.buckets import Buckets
from lsh.candidates import (
    CandidateParams,
    Candidates,
    brute_force_candidates,
    candidate_pairs,
    integer_sketches,
    tally_buckets,
)
from lsh.crowds import are_within, doc_ranks, sketch_distance
from lsh.pair_tally import PairTally, Spill
from lsh.sketches import WORDS_PER_SKETCH

NUM_SAMPLED: Final = 16_384
"""Docs of a corpus among which leaders are chosen."""
MIN_CLOSE: Final = 128
"""Docs of the sample that are close to a leader, itself included."""
CLOSE_DISTANCE: Final = 20
"""Sketch distance within which docs are close: a cosine of about 0.97."""
CROWD_DISTANCE: Final = 50
"""Sketch distance within which docs are of one crowd; half of those within it, or more, are close to a leader."""
MAX_MISSED: Final = 1e-5
"""Share of the farther docs of a crowd that have no term in common with its leader."""
_MAX_RANK: Final = (1 << 64) - 1
_ROW_BITS = np.uint64(32)


@dataclass(frozen=True, slots=True, eq=False)
class Leaders:
    """The leaders of a corpus, in order: `docs` `(k,)` uint64, `sketches` `(k, words_per_sketch)` uint64."""

    docs: NDArray[np.uint64]
    sketches: NDArray[np.uint64]


NO_LEADERS: Final = Leaders(np.empty(0, np.uint64), np.empty((0, WORDS_PER_SKETCH), np.uint64))


def are_sampled(docs: NDArray[np.uint64], *, num_docs: int) -> NDArray[np.bool_]:
    """Which docs of a corpus of `num_docs` leaders may be chosen from: somewhat more than `NUM_SAMPLED` of all."""
    share = 1.25 * NUM_SAMPLED / max(1, num_docs)
    are: NDArray[np.bool_] = doc_ranks(docs) <= np.uint64(min(_MAX_RANK, int(share * 2.0**64)))
    return are


def choose_leaders(docs: NDArray[np.uint64], sketches: NDArray[np.uint64], terms: NDArray[np.uint64]) -> Leaders:
    """The leaders of a corpus from its docs `(n,)` that `are_sampled`, in any order, their sketches and signatures.

    Of the `NUM_SAMPLED` docs of lowest rank, that which most others are close to comes first, the lowest of equal ones;
    then that of those which are left, while it has `MIN_CLOSE`. Those of loose crowds are passed over, and those that
    docs of their crowd would miss too often.
    """
    order = np.argsort(doc_ranks(docs))[:NUM_SAMPLED]
    docs, sketches, terms = docs[order], sketches[order], terms[order]
    words = np.ascontiguousarray(sketches.T)
    is_left = np.ones(docs.size, np.bool_)
    num_close = np.zeros(docs.size, np.int64)
    _add_close(words, np.arange(docs.size), is_left, 1, num_close)
    leaders = []
    while docs.size and num_close.max() >= MIN_CLOSE:
        candidate = int(np.argmax(num_close))
        distances = _distances(words, candidate)
        if not _is_tight(distances) or _share_missed(distances, terms, terms[candidate]) > MAX_MISSED:
            num_close[candidate] = 0
            continue
        leaders.append(candidate)
        close = np.flatnonzero(is_left & (distances <= CLOSE_DISTANCE))
        is_left[close] = False
        num_close[close] = 0
        _add_close(words, close, is_left, -1, num_close)
    return Leaders(docs[leaders], sketches[leaders])


def _is_tight(distances: NDArray[np.int64]) -> bool:
    """Whether of the docs at these distances that are of one crowd half or more are close."""
    return bool(2 * np.sum(distances <= CLOSE_DISTANCE) >= np.sum(distances <= CROWD_DISTANCE))


def _share_missed(distances: NDArray[np.int64], terms: NDArray[np.uint64], own: NDArray[np.uint64]) -> float:
    """How many of its crowd's docs a doc of signature `own` shares no term with, judged by the quarter farthest away.

    Tables are independent of one another: of pairs that share a part `p` of `T` terms `(1 - p)^T` share none.

    >>> terms = np.array([[1, 2], [1, 3], [4, 5]], np.uint64)
    >>> _share_missed(np.array([0, 8, 60]), terms, terms[0])
    0.25
    """
    crowd = np.flatnonzero(distances <= CROWD_DISTANCE)
    far = crowd[distances[crowd] >= np.quantile(distances[crowd], 0.75)]
    return float((1.0 - np.mean(terms[far] == own)) ** own.size)


def brute_force_leaders(sketch_of: dict[int, int]) -> list[int]:
    """The slow twin of `choose_leaders`, for all docs of a corpus with sketches as integers and equal signatures."""
    sample = sorted(sketch_of, key=lambda doc: int(mix64(np.uint64(doc))))[:NUM_SAMPLED]
    num_within = {
        distance: {doc: sum(are_within(distance, doc, other, sketch_of) for other in sample) for doc in sample}
        for distance in (CLOSE_DISTANCE, CROWD_DISTANCE)
    }
    candidates = [doc for doc in sample if 2 * num_within[CLOSE_DISTANCE][doc] >= num_within[CROWD_DISTANCE][doc]]
    remaining = set(sample)
    leaders: list[int] = []
    while True:
        crowds = {
            doc: {other for other in remaining if are_within(CLOSE_DISTANCE, doc, other, sketch_of)}
            for doc in candidates
            if doc in remaining
        }
        leader = max(crowds, key=lambda doc: len(crowds[doc]), default=None)
        if leader is None or len(crowds[leader]) < MIN_CLOSE:
            return leaders
        leaders.append(leader)
        remaining -= crowds[leader]


def candidates_with_leaders(
    buckets: Buckets, params: CandidateParams, leaders: Leaders, *, spill: Spill | None = None
) -> Candidates:
    """As `candidate_pairs` of docs that are all new, but led docs are compared with their leader and those before it.

    A bucket in which pairs were left out for that counts as cut. Sketches of leaders have as many words as the docs'.
    """
    if not leaders.docs.size:
        return candidate_pairs(buckets, params, spill=spill)
    places = _places_of(buckets.docs, leaders)
    led_by = _led_by(buckets.sketches, leaders.sketches, _led_within(params))
    last_met = np.where(places < leaders.docs.size, leaders.docs.size, led_by)
    of_leaders = buckets.only((places < leaders.docs.size)[buckets.doc_rows])
    of_others = buckets.only((led_by == leaders.docs.size)[buckets.doc_rows])
    sizes, num_others = buckets.sizes, of_others.sizes
    tally = PairTally(buckets.docs, spill)
    num_compared = np.zeros(sizes.size, np.int64)
    for number in np.flatnonzero(of_leaders.sizes).tolist():
        rows, leader_rows = buckets.rows(number), of_leaders.rows(number)
        keys = np.empty(leader_rows.size * rows.size, np.uint64)
        num_keys, num_compared[number] = _pair_with_leaders(
            rows, leader_rows, places, last_met, buckets.sketches, params.max_sketch_distance, keys
        )
        tally.add(keys[:num_keys])
    cut, num_cut_pairs = tally_buckets(tally, of_others, params)
    num_left_out = sizes * (sizes - 1) // 2 - num_others * (num_others - 1) // 2 - num_compared
    return Candidates.of(
        tally,
        num_buckets=sizes.size,
        largest_bucket=int(sizes.max(initial=0)),
        num_cut_buckets=np.union1d(cut, np.flatnonzero(num_left_out > 0)).size,
        num_cut_pairs=num_cut_pairs + int(num_left_out.sum()),
    )


def brute_force_candidates_with_leaders(
    buckets: Buckets, params: CandidateParams, leaders: Leaders
) -> dict[tuple[int, int], int]:
    """The slow twin of `candidates_with_leaders`: each pair with the terms that it shares."""
    sketch_of = integer_sketches(buckets.docs, buckets.sketches)
    leader_sketches = list(integer_sketches(leaders.docs, leaders.sketches).values())
    place_of = {doc: place for place, doc in enumerate(leaders.docs.tolist())}
    nobody = len(place_of)
    led_by = {
        doc: next((place for place, led in enumerate(leader_sketches) if _is_led(sketch, led, params)), nobody)
        for doc, sketch in sketch_of.items()
    }
    is_other = np.array([led_by[doc] == nobody for doc in buckets.docs[buckets.doc_rows].tolist()], np.bool_)
    found = brute_force_candidates(buckets.only(is_other), params)
    shared_terms = {tuple(pair): count for pair, count in zip(found.pairs.tolist(), found.shared_terms, strict=True)}
    for number in range(buckets.terms.size):
        docs = buckets.docs[buckets.rows(number)].tolist()
        for left, right in combinations(docs, 2):
            is_near = (sketch_of[left] ^ sketch_of[right]).bit_count() <= params.max_sketch_distance
            first, last = sorted((left, right), key=lambda doc: place_of.get(doc, nobody))
            is_met = first in place_of and (last in place_of or place_of[first] <= led_by[last])
            if is_near and is_met:
                shared_terms[left, right] = shared_terms.get((left, right), 0) + 1
    return shared_terms


def _is_led(sketch: int, leader: int, params: CandidateParams) -> bool:
    return (sketch ^ leader).bit_count() <= _led_within(params)


def _led_within(params: CandidateParams) -> int:
    """The distance within which docs are led: so near that they match, whatever similarity candidates are asked for."""
    return params.max_sketch_distance // 2


def _places_of(docs: NDArray[np.uint64], leaders: Leaders) -> NDArray[np.int64]:
    """The place of each of `docs`, ascending, among the leaders, `k` for one that is none."""
    places = np.full(docs.size, leaders.docs.size)
    rows = np.searchsorted(docs, leaders.docs)
    is_present = rows < np.searchsorted(docs, leaders.docs, side="right")
    places[rows[is_present]] = np.flatnonzero(is_present)
    return places


@njit(cache=True, nogil=True)
def _pair_with_leaders(  # noqa: PLR0917 - numba kernels take their arrays one by one
    rows: NDArray[np.uint32],
    leader_rows: NDArray[np.uint32],
    places: NDArray[np.int64],
    last_met: NDArray[np.int64],
    sketches: NDArray[np.uint64],
    max_distance: int,
    keys: NDArray[np.uint64],
) -> tuple[int, int]:
    """Fills `keys` with the pairs of a bucket's rows and its leaders; returns how many there are, and were compared.

    By row, `places` are those among leaders and `last_met` the last place whose leader a doc is compared with.
    """
    num_keys = num_compared = 0
    for row in rows:
        for leader in leader_rows:
            # A pair of two leaders is met once, from the later one.
            if places[row] <= places[leader] or last_met[row] < places[leader]:
                continue
            num_compared += 1
            keys[num_keys] = (np.uint64(min(row, leader)) << _ROW_BITS) | np.uint64(max(row, leader))
            num_keys += sketch_distance(sketches, row, leader) <= np.uint64(max_distance)
    return num_keys, num_compared


@njit(cache=True, nogil=True)
def _led_by(sketches: NDArray[np.uint64], leaders: NDArray[np.uint64], radius: int) -> NDArray[np.int64]:
    """For each of `(n, words_per_sketch)` sketches the first of the leaders' within `radius`, `k` where none is."""
    led_by = np.full(len(sketches), len(leaders))
    for row in range(len(sketches)):
        for leader in range(len(leaders)):
            distance = np.uint64(0)
            for word in range(sketches.shape[1]):
                distance += count_ones(sketches[row, word] ^ leaders[leader, word])
            if distance <= np.uint64(radius):
                led_by[row] = leader
                break
    return led_by


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
            num_close[i] += step * np.int64(counted[i] and distances[i] <= CLOSE_DISTANCE)
