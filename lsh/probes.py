"""Embeddings to probes: the buckets that a query visits, its own first, then the next-best ones over all tables.

A near image falls beside the query's vertex most often where another vertex is almost as near. What a bucket loses is
the sum, over its polytopes, of the squared difference between the projections on the nearest vertex and on the one
taken instead. Probes are the buckets that lose least, over all tables together, so a table where the query lies in the
middle of its cell takes few and one where it lies at a border takes many.

Source: multi-probe cross-polytopes, Andoni et al., arXiv 1509.02897, section 5 and appendix; the enumeration in order
with a heap, Lv et al., "Multi-Probe LSH", VLDB 2007, section 4.4.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.bits import bits_of
from lsh.errors import ParameterError
from lsh.rotations import LANES, checked_embeddings, rotate_row, rotations_in_lanes
from lsh.terms import MAX_TABLES, TermHasher, TermParams, polytope_places

MAX_PROBES = 1 << 16
RANKS_PER_POLYTOPE = 4
_RANK_BITS = np.uint64(2)
_TABLE_BITS = np.uint64(10)
_LOW_TABLE = np.uint64(MAX_TABLES - 1)
_STATE_BITS = np.uint64(32)
_LOW_STATE = np.uint64((1 << 32) - 1)
_LOW_RANK = np.uint64(RANKS_PER_POLYTOPE - 1)


class ProbePlan(NamedTuple):
    """What the kernel reads: rotations in lanes, where each polytope begins in them, its dimension, and the tables.

    `side_by_side` `(num_groups, num_slices, 16)` has the polytopes of full size: which one each lane of a slice holds,
    -1 for none. `alone` `(num_others,)` has the smaller ones.
    """

    signs: NDArray[np.float32]
    places: NDArray[np.int64]
    side_by_side: NDArray[np.int64]
    alone: NDArray[np.int64]
    polytope_dims: NDArray[np.int64]
    num_tables: int
    bits_per_term: int
    num_probes: int


class ProbeScratch(NamedTuple):
    """Arrays that the kernel writes for one query; one set per thread."""

    rotated: NDArray[np.float32]
    vertices: NDArray[np.int32]
    losses: NDArray[np.float32]
    lane_magnitudes: NDArray[np.float32]
    lane_vertices: NDArray[np.int32]
    heap: NDArray[np.uint64]


def probe_plan(params: TermParams, num_probes: int) -> ProbePlan:
    """The plan of `num_probes` probes a query.

    Raises ParameterError for another family than `cross_polytope`, and for more probes than there are buckets to visit.
    """
    if params.family != "cross_polytope":
        raise ParameterError(f"family={params.family!r} has no probes; use cross_polytope")
    num_states = params.num_tables * prod(_num_ranks(dim) for dim in params.polytope_dims)
    most = min(num_states, MAX_PROBES)
    if not params.num_tables <= num_probes <= most:
        raise ParameterError(
            f"num_probes={num_probes} is out of range {params.num_tables}..{most}; every table takes at least one"
        )
    signs, places = rotations_in_lanes(TermHasher(params).signs), polytope_places(params)
    side_by_side, alone = _arranged(params, places, num_groups=signs.shape[0], rotation_dim=signs.shape[2] // LANES)
    return ProbePlan(
        signs=signs,
        places=places,
        side_by_side=side_by_side,
        alone=alone,
        polytope_dims=np.array(params.polytope_dims, dtype=np.int64),
        num_tables=params.num_tables,
        bits_per_term=params.bits_per_term,
        num_probes=num_probes,
    )


def _arranged(
    params: TermParams, places: NDArray[np.int64], *, num_groups: int, rotation_dim: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`side_by_side` and `alone` of a plan."""
    is_full = np.tile(np.array(params.polytope_dims) == params.polytope_dim, params.num_tables)
    is_full &= params.polytope_dim >= RANKS_PER_POLYTOPE
    side_by_side = np.full((num_groups, rotation_dim // params.polytope_dim, LANES), -1, dtype=np.int64)
    rotations, first = np.divmod(places[is_full], rotation_dim)
    side_by_side[rotations // LANES, first // params.polytope_dim, rotations % LANES] = np.flatnonzero(is_full)
    return side_by_side, np.flatnonzero(~is_full)


def probe_scratch(plan: ProbePlan) -> ProbeScratch:
    """Scratch for one thread that runs `write_probes` with `plan`."""
    num_polytopes = plan.num_tables * plan.polytope_dims.size
    heap_size = plan.num_tables + plan.num_probes * plan.polytope_dims.size
    return ProbeScratch(
        rotated=np.empty((plan.signs.shape[0], plan.signs.shape[2]), dtype=np.float32),
        vertices=np.empty((num_polytopes, RANKS_PER_POLYTOPE), dtype=np.int32),
        losses=np.empty((num_polytopes, RANKS_PER_POLYTOPE), dtype=np.float32),
        lane_magnitudes=np.empty(RANKS_PER_POLYTOPE * LANES, dtype=np.float32),
        lane_vertices=np.empty(RANKS_PER_POLYTOPE * LANES, dtype=np.int32),
        heap=np.empty(heap_size, dtype=np.uint64),
    )


def probes(embeddings: NDArray[np.float32], params: TermParams, num_probes: int) -> NDArray[np.uint64]:
    """`(n, dim)` float32 -> `(n, num_probes)` uint64 terms, those that lose least first.

    The first `num_tables` are the terms of the row itself. At each polytope the 4 nearest vertices are considered.
    Raises ParameterError as `probe_plan` does, and for another shape, NaN or infinity.
    """
    rows = checked_embeddings(embeddings, dim=params.dim)
    plan = probe_plan(params, num_probes)
    terms = np.empty((rows.shape[0], num_probes), dtype=np.uint64)
    probe_rows(rows, plan, probe_scratch(plan), terms)
    return terms


def brute_force_probes(embeddings: NDArray[np.float32], params: TermParams, num_probes: int) -> NDArray[np.uint64]:
    """The slow twin of `probes`: all combinations of vertices of all tables, sorted."""
    rows = checked_embeddings(embeddings, dim=params.dim)
    plan = probe_plan(params, num_probes)
    rotated = np.empty((plan.signs.shape[0], plan.signs.shape[2]), dtype=np.float32)
    terms = np.empty((rows.shape[0], num_probes), dtype=np.uint64)
    for row in range(rows.shape[0]):
        rotate_row(rows[row], plan.signs, rotated)
        projections = rotated.reshape(rotated.shape[0], -1, LANES).transpose(0, 2, 1).ravel().tolist()
        found = []
        for table in range(params.num_tables):
            first = table * params.num_polytopes
            choices = [
                _ranked_vertices(projections[place : place + dim])
                for place, dim in zip(plan.places[first:].tolist(), params.polytope_dims, strict=False)
            ]
            for ranks in product(*(range(len(choice)) for choice in choices)):
                bucket, lost = 0, np.float32(0.0)
                for choice, rank, dim in zip(choices, ranks, params.polytope_dims, strict=True):
                    bucket = bucket * 2 * dim + choice[rank][0]
                    lost += choice[rank][1]
                found.append((lost, ranks, table, table << params.bits_per_term | bucket))
        terms[row] = [term for *_, term in sorted(found)[:num_probes]]
    return terms


def _num_ranks(dim: int) -> int:
    return min(2 * dim, RANKS_PER_POLYTOPE)


def _ranked_vertices(projections: list[float]) -> list[tuple[int, np.float32]]:
    """The nearest vertices of one polytope and what each loses, nearest first."""
    axes = sorted(range(len(projections)), key=lambda axis: -abs(projections[axis]))
    near = [(2 * axis + (projections[axis] < 0), np.float32(abs(projections[axis]))) for axis in axes]
    far = [(vertex ^ 1, -value) for vertex, value in reversed(near)]
    ranked = (near + far)[: _num_ranks(len(projections))]
    return [(vertex, (near[0][1] - value) * (near[0][1] - value)) for vertex, value in ranked]


@njit(cache=True, nogil=True)
def probe_rows(rows: NDArray[np.float32], plan: ProbePlan, scratch: ProbeScratch, terms: NDArray[np.uint64]) -> None:
    """Fills `terms` `(n, num_probes)` as `probes` does."""
    for row in range(rows.shape[0]):
        write_probes(rows[row], plan, scratch, terms[row])


@njit(cache=True, nogil=True)
def write_probes(row: NDArray[np.float32], plan: ProbePlan, scratch: ProbeScratch, terms: NDArray[np.uint64]) -> None:
    """Fills `terms` `(num_probes,)` with the probes of one row."""
    rotate_row(row, plan.signs, scratch.rotated)
    num_positions = plan.polytope_dims.size
    dim = plan.signs.shape[2] // LANES
    for group in range(plan.side_by_side.shape[0]):
        _rank_side_by_side(scratch.rotated[group], plan.side_by_side[group], scratch)
    for polytope in plan.alone:
        rotation, first = plan.places[polytope] // dim, plan.places[polytope] % dim
        _rank_vertices(
            scratch.rotated[rotation // LANES],
            first * LANES + rotation % LANES,
            plan.polytope_dims[polytope % num_positions],
            scratch.vertices[polytope],
            scratch.losses[polytope],
        )
    _visit_in_order(plan, scratch, terms)


@njit(cache=True, nogil=True)
def _rank_side_by_side(rotated: NDArray[np.float32], polytopes: NDArray[np.int64], scratch: ProbeScratch) -> None:
    """As `_rank_vertices`, for all polytopes of full size of one group of rotations, 16 at a time."""
    slice_size = rotated.size // polytopes.shape[0]
    for number in range(polytopes.shape[0]):
        _largest_in_lanes(
            rotated[number * slice_size : (number + 1) * slice_size], scratch.lane_magnitudes, scratch.lane_vertices
        )
        for lane in range(LANES):
            polytope = polytopes[number, lane]
            if polytope < 0:
                continue
            for rank in range(RANKS_PER_POLYTOPE):
                lost = scratch.lane_magnitudes[lane] - scratch.lane_magnitudes[rank * LANES + lane]
                scratch.losses[polytope, rank] = lost * lost
                scratch.vertices[polytope, rank] = scratch.lane_vertices[rank * LANES + lane]


@njit(cache=True, nogil=True)
def _largest_in_lanes(
    rotated: NDArray[np.float32], magnitudes: NDArray[np.float32], vertices: NDArray[np.int32]
) -> None:
    """Per lane the 4 coordinates of largest magnitude, `magnitudes[rank * 16 + lane]`, the first one on a tie.

    No branch depends on the data, so LLVM makes vectors of the lanes.
    """
    magnitudes[:] = -1.0
    for axis in range(rotated.size // LANES):
        values = rotated[axis * LANES : (axis + 1) * LANES]
        for lane in range(LANES):
            second, third, fourth = lane + LANES, lane + 2 * LANES, lane + 3 * LANES
            magnitude, vertex = abs(values[lane]), np.int32(2 * axis) + np.int32(values[lane] < 0)
            a, b, c, d = magnitudes[lane], magnitudes[second], magnitudes[third], magnitudes[fourth]
            i, j, k, m = vertices[lane], vertices[second], vertices[third], vertices[fourth]
            over_a, over_b, over_c, over_d = magnitude > a, magnitude > b, magnitude > c, magnitude > d
            magnitudes[lane] = magnitude if over_a else a
            magnitudes[second] = (a if over_a else magnitude) if over_b else b
            magnitudes[third] = (b if over_b else magnitude) if over_c else c
            magnitudes[fourth] = (c if over_c else magnitude) if over_d else d
            vertices[lane] = vertex if over_a else i
            vertices[second] = (i if over_a else vertex) if over_b else j
            vertices[third] = (j if over_b else vertex) if over_c else k
            vertices[fourth] = (k if over_c else vertex) if over_d else m


@njit(cache=True, nogil=True)
def _rank_vertices(
    rotated: NDArray[np.float32], first: int, dim: int, vertices: NDArray[np.int32], losses: NDArray[np.float32]
) -> None:
    """Fills `vertices` and `losses`, nearest first: the largest magnitudes, then their opposites, smallest first."""
    num_near = min(dim, RANKS_PER_POLYTOPE)
    values = losses  # Projections first, replaced by what they lose at the end.
    for rank in range(num_near):
        values[rank] = -1.0
    for axis in range(dim):
        value = rotated[first + axis * LANES]
        magnitude = abs(value)
        if magnitude <= values[num_near - 1]:
            continue
        rank = num_near - 1
        while rank > 0 and magnitude > values[rank - 1]:
            values[rank] = values[rank - 1]
            vertices[rank] = vertices[rank - 1]
            rank -= 1
        values[rank] = magnitude
        vertices[rank] = 2 * axis + (value < 0)
    for rank in range(dim, min(2 * dim, RANKS_PER_POLYTOPE)):
        values[rank] = -values[2 * dim - 1 - rank]
        vertices[rank] = vertices[2 * dim - 1 - rank] ^ 1
    largest = values[0]
    for rank in range(min(2 * dim, RANKS_PER_POLYTOPE)):
        lost = largest - values[rank]
        losses[rank] = lost * lost


@njit(cache=True, nogil=True)
def _visit_in_order(plan: ProbePlan, scratch: ProbeScratch, terms: NDArray[np.uint64]) -> None:
    """Best-first over states: a rank at each polytope of a table, 2 bits each, above the number of the table.

    The heap holds words: what a state loses, as the bits of a float that is not negative, above the state. A state's
    successors raise the rank at its last raised polytope or at one after it, so each state has one predecessor, which
    loses no more: the heap yields all states in the order of loss, then of the state.
    """
    heap, num_positions = scratch.heap, plan.polytope_dims.size
    size = plan.num_tables
    for number in range(size):
        heap[number] = np.uint64(number)  # Ascending, so a heap already.
    for i in range(terms.size):
        state = heap[0] & _LOW_STATE
        table = np.int64(state & _LOW_TABLE)
        bucket, last_raised = np.uint64(0), 0
        for position in range(num_positions):
            rank = _rank_at(state, position, num_positions)
            bucket = bucket * np.uint64(2 * plan.polytope_dims[position]) + np.uint64(
                scratch.vertices[table * num_positions + position, rank]
            )
            if rank > 0:
                last_raised = position
        terms[i] = np.uint64(table) << np.uint64(plan.bits_per_term) | bucket
        is_replaced = False
        for position in range(last_raised, num_positions):
            num_ranks = min(2 * plan.polytope_dims[position], RANKS_PER_POLYTOPE)
            if _rank_at(state, position, num_positions) + 1 == num_ranks:
                continue
            successor = _word(state + (np.uint64(1) << _rank_shift(position, num_positions)), num_positions, scratch)
            if is_replaced:
                _sift_up(heap, size, successor)
                size += 1
            else:
                _sift_down(heap, size, successor)
                is_replaced = True
        if not is_replaced:
            size -= 1
            _sift_down(heap, size, heap[size])


@njit(cache=True, nogil=True)
def _rank_at(state: np.uint64, position: int, num_positions: int) -> np.int64:
    return np.int64(state >> _rank_shift(position, num_positions) & _LOW_RANK)


@njit(cache=True, nogil=True)
def _rank_shift(position: int, num_positions: int) -> np.uint64:
    return _TABLE_BITS + _RANK_BITS * np.uint64(num_positions - 1 - position)


@njit(cache=True, nogil=True)
def _word(state: np.uint64, num_positions: int, scratch: ProbeScratch) -> np.uint64:
    """What `state` loses, above `state`."""
    first = np.int64(state & _LOW_TABLE) * num_positions
    lost = np.float32(0.0)
    for position in range(num_positions):
        lost += scratch.losses[first + position, _rank_at(state, position, num_positions)]
    return np.uint64(bits_of(lost)) << _STATE_BITS | state


@njit(cache=True, nogil=True)
def _sift_up(heap: NDArray[np.uint64], place: int, word: np.uint64) -> None:
    """Puts `word` at the end of a heap, at `place`, and moves it up."""
    while place > 0:
        parent = (place - 1) >> 1
        if heap[parent] <= word:
            break
        heap[place] = heap[parent]
        place = parent
    heap[place] = word


@njit(cache=True, nogil=True)
def _sift_down(heap: NDArray[np.uint64], size: int, word: np.uint64) -> None:
    """Replaces the first of `size` words by `word` and moves it down."""
    place, child = 0, 1
    while child < size:
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if word <= heap[child]:
            break
        heap[place] = heap[child]
        place, child = child, 2 * child + 1
    heap[place] = word
