"""The greedy k-cut: matches to clusters in which every member matches its canonical directly.

Transitive closure would join a cat to a dog over a chain of small changes. So, again and again, the remaining image
with the most remaining matches (on a tie the better one) becomes canonical and takes the images that match it. In the
end every member moves to the canonical that it matches best: an early canonical does not keep what a later one fits.

Not all pairs of a large crowd are compared, so a crowd may fall into pieces for want of an edge. The cut says which
pairs would join such pieces; compare them, add those that match, and cut again.

Source: Gusev and Xu, arXiv 2209.08433, section 3.3 (transitive closure, then a greedy k-cut).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.components import checked_edges
from lsh.errors import ParameterError

MIN_COMMON = 32
"""Neighbours that two canonicals of one crowd share at least; edits of one photo are fewer."""


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """For each node its `canonical` `(n,)` int64 and its `score` `(n,)` float32 with it; 1 for a canonical itself.

    `unmet` `(m, 2)` int64, left below right, are pairs without an edge whose comparison may join two pieces of a crowd:
    the canonical of one with the canonical of the other and with all that this one took.
    """

    canonical: NDArray[np.int64]
    score: NDArray[np.float32]
    unmet: NDArray[np.int64]


def greedy_cut(
    num_nodes: int,
    lefts: NDArray[np.int64],
    rights: NDArray[np.int64],
    scores: NDArray[np.float32],
    quality_rank: NDArray[np.int64],
) -> Clusters:
    """Clusters of the graph with edges `(lefts[i], rights[i])` of score `scores[i]`, in `O(E log V)`.

    Repeats: the node with the most remaining neighbours, on a tie the one of lowest `quality_rank` `(num_nodes,)`, then
    of lowest number, becomes canonical and takes its remaining neighbours. A node without any is its own canonical.
    Then each other node joins the neighbouring canonical of highest score, on a tie that of lowest rank.
    Raises ParameterError for loops, repeated edges, NaN scores and nodes out of range.
    """
    lefts, rights = checked_edges(num_nodes, lefts, rights)
    if scores.shape != lefts.shape or quality_rank.shape != (num_nodes,):
        raise ParameterError(
            f"scores {scores.shape} and quality_rank {quality_rank.shape} must be {lefts.shape} and ({num_nodes},)"
        )
    if np.isnan(scores).any():
        raise ParameterError(f"score of edge {int(np.argmax(np.isnan(scores)))} is NaN; drop that match")
    if np.any(lefts == rights):
        raise ParameterError(f"node {lefts[lefts == rights][0]} is matched with itself; drop that match")
    offsets, neighbours, neighbour_scores = _adjacency(num_nodes, lefts, rights, scores.astype(np.float32, copy=False))
    repeated = int(_node_with_repeated_edge(offsets, neighbours))
    if repeated >= 0:
        raise ParameterError(f"node {repeated} has two edges to one neighbour; give each pair once")
    order = np.argsort(quality_rank, kind="stable")
    taken_by = _greedy_cut(offsets, neighbours, order)
    canonical, score = _join_best(offsets, neighbours, neighbour_scores, order, taken_by == np.arange(num_nodes))
    return Clusters(canonical, score, _unmet(offsets, neighbours, taken_by))


def _unmet(offsets: NDArray[np.int64], neighbours: NDArray[np.int64], taken_by: NDArray[np.int64]) -> NDArray[np.int64]:
    rival_of = _rivals(offsets, neighbours, taken_by)
    rival_of_node = rival_of[taken_by]
    nodes = np.flatnonzero(rival_of_node >= 0)
    rivals = rival_of_node[nodes]
    order = np.argsort(rivals, kind="stable")
    nodes, rivals = nodes[order], rivals[order]
    is_unmet = ~_are_neighbours(offsets, neighbours, rivals, nodes)
    return np.sort(np.column_stack([rivals[is_unmet], nodes[is_unmet]]), axis=1)


@njit(cache=True, nogil=True)
def _adjacency(
    num_nodes: int, lefts: NDArray[np.int64], rights: NDArray[np.int64], scores: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The graph as CSR arrays `offsets`, `neighbours`, `neighbour_scores`, each edge from both of its ends."""
    offsets = np.zeros(num_nodes + 1, np.int64)
    for i in range(lefts.size):
        offsets[lefts[i] + 1] += 1
        offsets[rights[i] + 1] += 1
    for node in range(num_nodes):
        offsets[node + 1] += offsets[node]
    filled = offsets[:-1].copy()
    neighbours = np.empty(2 * lefts.size, np.int64)
    neighbour_scores = np.empty(2 * lefts.size, np.float32)
    for i in range(lefts.size):
        for node, neighbour in ((lefts[i], rights[i]), (rights[i], lefts[i])):
            neighbours[filled[node]] = neighbour
            neighbour_scores[filled[node]] = scores[i]
            filled[node] += 1
    return offsets, neighbours, neighbour_scores


@njit(cache=True, nogil=True)
def _node_with_repeated_edge(offsets: NDArray[np.int64], neighbours: NDArray[np.int64]) -> int:
    last_seen_from = np.full(offsets.size - 1, -1)
    for node in range(offsets.size - 1):
        for neighbour in neighbours[offsets[node] : offsets[node + 1]]:
            if last_seen_from[neighbour] == node:
                return node
            last_seen_from[neighbour] = node
    return -1


@njit(cache=True, nogil=True)
def _greedy_cut(
    offsets: NDArray[np.int64],
    neighbours: NDArray[np.int64],
    order: NDArray[np.int64],
) -> NDArray[np.int64]:
    """For each node the canonical that takes it; a canonical takes itself.

    A heap holds one key a node, `(most - degree) * num_nodes + rank`, ascending; `order` lists nodes by rank.

    Degrees only fall, so the key on top may be too low but never too high: it is corrected there and sinks.
    """
    num_nodes = order.size
    degrees = offsets[1:] - offsets[:-1]
    most = degrees.max() if num_nodes else 0
    heap = np.empty(num_nodes, np.int64)
    for rank in range(num_nodes):
        heap[rank] = (most - degrees[order[rank]]) * num_nodes + rank
    heap.sort()  # An ascending array is a heap.

    taken_by = np.full(num_nodes, -1)
    heap_size = num_nodes
    while heap_size:
        rank = heap[0] % num_nodes
        node = order[rank]
        key = (most - degrees[node]) * num_nodes + rank
        if taken_by[node] < 0 and heap[0] != key:
            _replace_top(heap, heap_size, key)
            continue
        heap_size -= 1
        _replace_top(heap, heap_size, heap[heap_size])
        if taken_by[node] >= 0:
            continue
        taken_by[node] = node
        for member in neighbours[offsets[node] : offsets[node + 1]]:
            if taken_by[member] >= 0:
                continue
            taken_by[member] = node
            for other in neighbours[offsets[member] : offsets[member + 1]]:
                degrees[other] -= 1
    return taken_by


@njit(cache=True, nogil=True)
def _rivals(
    offsets: NDArray[np.int64], neighbours: NDArray[np.int64], taken_by: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each canonical the one that took most of its neighbours, if these are `MIN_COMMON` or more, otherwise -1."""
    rival_of = np.full(taken_by.size, -1)
    num_taken = np.zeros(taken_by.size, np.int64)
    for node in range(taken_by.size):
        if taken_by[node] != node or offsets[node + 1] - offsets[node] < MIN_COMMON:
            continue
        most = MIN_COMMON - 1
        for neighbour in neighbours[offsets[node] : offsets[node + 1]]:
            canonical = taken_by[neighbour]
            if canonical == node:
                continue
            num_taken[canonical] += 1
            if num_taken[canonical] > most or (num_taken[canonical] == most and canonical < rival_of[node]):
                most, rival_of[node] = num_taken[canonical], canonical
        for neighbour in neighbours[offsets[node] : offsets[node + 1]]:
            num_taken[taken_by[neighbour]] = 0
    return rival_of


@njit(cache=True, nogil=True)
def _are_neighbours(
    offsets: NDArray[np.int64], neighbours: NDArray[np.int64], lefts: NDArray[np.int64], rights: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether each pair has an edge; pairs of one left node lie together."""
    met = np.empty(lefts.size, np.bool_)
    last_met = np.full(offsets.size - 1, -1)
    for i in range(lefts.size):
        if i == 0 or lefts[i] != lefts[i - 1]:
            for neighbour in neighbours[offsets[lefts[i]] : offsets[lefts[i] + 1]]:
                last_met[neighbour] = lefts[i]
        met[i] = last_met[rights[i]] == lefts[i]
    return met


@njit(cache=True, nogil=True)
def _join_best(
    offsets: NDArray[np.int64],
    neighbours: NDArray[np.int64],
    neighbour_scores: NDArray[np.float32],
    order: NDArray[np.int64],
    is_canonical: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Each node's best neighbouring canonical and its score with it; every node that is none has at least one."""
    rank_of = np.empty(order.size, np.int64)
    rank_of[order] = np.arange(order.size)
    canonical = np.arange(order.size)
    score = np.ones(order.size, np.float32)
    for node in range(order.size):
        if is_canonical[node]:
            continue
        best = -1
        for i in range(offsets[node], offsets[node + 1]):
            if not is_canonical[neighbours[i]]:
                continue
            is_better = best < 0 or neighbour_scores[i] > neighbour_scores[best]
            is_tie = best >= 0 and neighbour_scores[i] == neighbour_scores[best]
            if is_better or (is_tie and rank_of[neighbours[i]] < rank_of[neighbours[best]]):
                best = i
        canonical[node] = neighbours[best]
        score[node] = neighbour_scores[best]
    return canonical, score


@njit(cache=True, nogil=True)
def _replace_top(heap: NDArray[np.int64], size: int, key: int) -> None:
    """Puts `key` in place of the smallest of `heap[:size]` and restores the order of the heap."""
    position = 0
    while True:
        child = 2 * position + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[position] = heap[child]
        position = child
    if size:
        heap[position] = key
