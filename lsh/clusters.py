"""The greedy k-cut: matches to clusters in which every member matches its canonical directly.

Transitive closure would join a cat to a dog over a chain of small changes. So, again and again, the remaining image
with the most remaining matches (on a tie the better one) becomes canonical and takes the images that match it. In the
end every member moves to the canonical that it matches best: an early canonical does not keep what a later one fits.

An update keeps what users rely on. Canonicals are found in three waves: among those that were canonical, among the
members whose canonical is gone, among the new nodes. The nodes of a wave that match no canonical yet are cut among
themselves; then every node without a canonical joins the best.

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

_MAX_INSERTED = 64


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """For each node its `canonical` `(n,)` int64 and its `score` `(n,)` float32 with it; 1 for a canonical itself.

    `unmet` `(m, 2)` int64, left below right, are pairs without an edge whose comparison may join two pieces of a crowd:
    the canonical of one with the canonical of the other and with all that this one took. In an update the other one is
    new or an heir, and a neighbour of it belongs to the first; one of the two has `MIN_COMMON` neighbours.
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
    graph = _graph(num_nodes, *_checked(num_nodes, lefts, rights, scores, quality_rank))
    order = np.argsort(quality_rank, kind="stable")
    taken_by = _greedy_cut(graph.offsets, graph.neighbours, order)
    is_canonical = taken_by == np.arange(num_nodes)
    canonical, score = np.arange(num_nodes), np.ones(num_nodes, np.float32)
    _join_best(*graph.arrays, order, is_canonical, np.flatnonzero(~is_canonical), canonical, score)
    rival_of = _rivals(graph.offsets, graph.neighbours, taken_by)
    return Clusters(canonical, score, _unmet(graph.offsets, graph.neighbours, taken_by, rival_of))


def updated_cut(
    num_nodes: int,
    lefts: NDArray[np.int64],
    rights: NDArray[np.int64],
    scores: NDArray[np.float32],
    quality_rank: NDArray[np.int64],
    *,
    before: NDArray[np.int64],
    is_new: NDArray[np.bool_],
    degrees: NDArray[np.int64],
) -> Clusters:
    """The clusters of a graph that has grown and shrunk since it was cut, in `O(E log V)`.

    `before` `(num_nodes,)` is each known node's canonical then, itself for one that stood alone, -1 where it is gone;
    `is_new` `(num_nodes,)` marks nodes that were not there. Of a node that stays where it is only the edge to its
    canonical is needed; `degrees` `(num_nodes,)` says how many each has in all.

    A canonical stays one, and keeps the members that still match it. Members without their canonical, then new nodes,
    join the canonical of highest score, on a tie that of lowest number; those that match none are cut among themselves
    by the rule of `greedy_cut`. Two old canonicals that match now (nobody but a decision by hand makes them) are cut by
    that rule as well.
    Raises ParameterError as `greedy_cut` does; of repeated edges, for those of a node that has to find its place.
    """
    lefts, rights, scores = _checked(num_nodes, lefts, rights, scores, quality_rank)
    if not before.shape == is_new.shape == degrees.shape == (num_nodes,):
        raise ParameterError(
            f"before {before.shape}, is_new {is_new.shape} and degrees {degrees.shape} must be ({num_nodes},)"
        )
    if before.size and not -1 <= int(before.min()) <= int(before.max()) < num_nodes:
        raise ParameterError(f"before holds {int(before.min())}..{int(before.max())}, out of range -1..{num_nodes - 1}")
    was_canonical = (before == np.arange(num_nodes)) & ~is_new
    is_canonical = was_canonical.copy()
    clash = np.flatnonzero(was_canonical[lefts] & was_canonical[rights])
    if clash.size:
        is_canonical[:] = False
        among = _graph(num_nodes, lefts[clash], rights[clash], scores[clash])
        _cut_undecided(among, was_canonical, quality_rank, is_canonical)
    wanted = np.where(is_new | was_canonical, -1, before)
    wanted[(wanted >= 0) & ~is_canonical[wanted]] = -1
    canonical, score = np.arange(num_nodes), np.ones(num_nodes, np.float32)
    _settle(lefts, rights, scores, wanted, canonical, score)
    is_open = ~is_canonical & (canonical == np.arange(num_nodes))
    # Whoever stays needs no edge but that to its canonical, which leaves few of a night's edges.
    is_kept = is_open[lefts] | is_open[rights]
    graph = _graph(num_nodes, lefts[is_kept], rights[is_kept], scores[is_kept])
    is_left = is_open & ~is_new & ~was_canonical
    _cut_undecided(graph, is_left, quality_rank, is_canonical)
    _cut_undecided(graph, is_new, quality_rank, is_canonical)
    choosing = np.flatnonzero(is_open & ~is_canonical)
    _join_best(*graph.arrays, np.arange(num_nodes), is_canonical, choosing, canonical, score)
    is_heir = is_canonical & (is_left | is_new)
    rival_of = _rivals_of_heirs(graph.offsets, graph.neighbours, degrees, canonical, is_heir, was_canonical)
    return Clusters(canonical, score, _unmet(graph.offsets, graph.neighbours, canonical, rival_of))


def member_order(
    canonical: NDArray[np.int64], score: NDArray[np.float32], nodes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """How to arrange the members of clusters: the largest cluster first, then by canonical, which is first itself.

    `nodes` `(m,)`, ascending, have their `canonical` and `score` `(m,)`; members of one follow by score, then by node.
    """
    sizes = np.bincount(canonical)
    canonicals = np.flatnonzero(sizes)
    canonicals = canonicals[np.argsort(-sizes[canonicals], kind="stable")]
    ends = np.cumsum(sizes[canonicals])
    place_of = np.empty(sizes.size, np.int64)
    place_of[canonicals] = ends - sizes[canonicals]
    order = np.empty(nodes.size, np.int64)
    _arrange(canonical, score, nodes, place_of, ends, order)
    return order


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    """The CSR arrays of `_adjacency`."""

    offsets: NDArray[np.int64]
    neighbours: NDArray[np.int64]
    scores: NDArray[np.float32]

    @property
    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        return self.offsets, self.neighbours, self.scores


def _checked(
    num_nodes: int,
    lefts: NDArray[np.int64],
    rights: NDArray[np.int64],
    scores: NDArray[np.float32],
    quality_rank: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    lefts, rights = checked_edges(num_nodes, lefts, rights)
    if scores.shape != lefts.shape or quality_rank.shape != (num_nodes,):
        raise ParameterError(
            f"scores {scores.shape} and quality_rank {quality_rank.shape} must be {lefts.shape} and ({num_nodes},)"
        )
    if np.isnan(scores).any():
        raise ParameterError(f"score of edge {int(np.argmax(np.isnan(scores)))} is NaN; drop that match")
    if np.any(lefts == rights):
        raise ParameterError(f"node {lefts[lefts == rights][0]} is matched with itself; drop that match")
    return lefts, rights, scores.astype(np.float32, copy=False)


def _graph(num_nodes: int, lefts: NDArray[np.int64], rights: NDArray[np.int64], scores: NDArray[np.float32]) -> _Graph:
    graph = _Graph(*_adjacency(num_nodes, lefts, rights, scores))
    repeated = int(_node_with_repeated_edge(graph.offsets, graph.neighbours))
    if repeated >= 0:
        raise ParameterError(f"node {repeated} has two edges to one neighbour; give each pair once")
    return graph


def _cut_undecided(
    graph: _Graph, wave: NDArray[np.bool_], quality_rank: NDArray[np.int64], is_canonical: NDArray[np.bool_]
) -> None:
    """Adds to `is_canonical` those of the greedy cut among the nodes of `wave` that match no canonical yet."""
    nodes = np.flatnonzero(wave & ~_matches_any(graph.offsets, graph.neighbours, is_canonical))
    lefts, rights = _edges_among(graph.offsets, graph.neighbours, nodes)
    is_canonical[nodes] = True
    # Few have an edge to another one; who has none is not sorted with them.
    linked, ends = np.unique(np.append(lefts, rights), return_inverse=True)
    nodes, (lefts, rights) = nodes[linked], np.split(ends, 2)
    offsets, neighbours, _ = _adjacency(nodes.size, lefts, rights, np.ones(lefts.size, np.float32))
    taken_by = _greedy_cut(offsets, neighbours, np.argsort(quality_rank[nodes], kind="stable"))
    is_canonical[nodes] = taken_by == np.arange(nodes.size)


def _greedy_cut(
    offsets: NDArray[np.int64], neighbours: NDArray[np.int64], order: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each node the canonical that takes it; a canonical takes itself. `order` lists nodes by rank."""
    degrees = np.diff(offsets)
    taken_by = np.full(order.size, -1)
    ranks = np.flatnonzero(degrees[order])
    if ranks.size:
        heap = np.sort((degrees.max() - degrees[order[ranks]]) * order.size + ranks)  # An ascending array is a heap.
        _take_neighbours(offsets, neighbours, order, degrees, heap, taken_by)
    return np.where(taken_by < 0, np.arange(order.size), taken_by)


def _unmet(
    offsets: NDArray[np.int64],
    neighbours: NDArray[np.int64],
    taken_by: NDArray[np.int64],
    rival_of: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Each canonical and what it took, with the rival that it has, if any, where they are no neighbours."""
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
def _take_neighbours(  # noqa: PLR0917 - numba kernels take their arrays one by one
    offsets: NDArray[np.int64],
    neighbours: NDArray[np.int64],
    order: NDArray[np.int64],
    degrees: NDArray[np.int64],
    heap: NDArray[np.int64],
    taken_by: NDArray[np.int64],
) -> None:
    """Fills in `taken_by`, -1 for all, for each node that takes another one or is taken; uses up degrees and heap.

    `heap`, ascending, holds one key a node, `(degrees.max() - degree) * num_nodes + rank`; `order` lists nodes by rank.

    Degrees only fall, so the key on top may be too low but never too high: it is corrected there and sinks. Once no
    degree is left on top there is none below.
    """
    num_nodes, most = order.size, degrees.max()
    heap_size = heap.size
    while heap_size and heap[0] < most * num_nodes:
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
def _rivals_of_heirs(  # noqa: PLR0917 - numba kernels take their arrays one by one
    offsets: NDArray[np.int64],
    neighbours: NDArray[np.int64],
    degrees: NDArray[np.int64],
    canonical: NDArray[np.int64],
    is_heir: NDArray[np.bool_],
    was_canonical: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """For each heir the canonical of its neighbours in crowds, one of old before others, then the commonest, or -1."""
    rival_of = np.full(canonical.size, -1)
    num_taken = np.zeros(canonical.size, np.int64)
    for node in np.flatnonzero(is_heir):
        most = 0
        for neighbour in neighbours[offsets[node] : offsets[node + 1]]:
            other = canonical[neighbour]
            if other == node or max(degrees[node], degrees[neighbour]) < MIN_COMMON:
                continue
            num_taken[other] += 1
            weight = num_taken[other] + canonical.size * int(was_canonical[other])
            if weight > most or (weight == most and other < rival_of[node]):
                most, rival_of[node] = weight, other
        for neighbour in neighbours[offsets[node] : offsets[node + 1]]:
            num_taken[canonical[neighbour]] = 0
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
def _join_best(  # noqa: PLR0917 - numba kernels take their arrays one by one
    offsets: NDArray[np.int64],
    neighbours: NDArray[np.int64],
    neighbour_scores: NDArray[np.float32],
    order: NDArray[np.int64],
    is_canonical: NDArray[np.bool_],
    nodes: NDArray[np.int64],
    canonical: NDArray[np.int64],
    score: NDArray[np.float32],
) -> None:
    """Fills in, for each of `nodes`, its best neighbouring canonical, of which it has one, and its score with it.

    Ties go by `order`.
    """
    rank_of = np.empty(order.size, np.int64)
    rank_of[order] = np.arange(order.size)
    for node in nodes:
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


@njit(cache=True, nogil=True)
def _arrange(  # noqa: PLR0917 - numba kernels take their arrays one by one
    canonical: NDArray[np.int64],
    score: NDArray[np.float32],
    nodes: NDArray[np.int64],
    place_of: NDArray[np.int64],
    ends: NDArray[np.int64],
    order: NDArray[np.int64],
) -> None:
    """Fills `order` cluster by cluster, from the `place_of` their canonicals; most clusters are too small to sort."""
    for i in range(nodes.size):
        if nodes[i] == canonical[i]:
            order[place_of[canonical[i]]] = i
    next_place = place_of + 1
    for i in range(nodes.size):
        if nodes[i] != canonical[i]:
            order[next_place[canonical[i]]] = i
            next_place[canonical[i]] += 1
    first = 0
    for end in ends:
        members = order[first + 1 : end]
        if members.size > _MAX_INSERTED:
            members[:] = members[np.argsort(-score[members], kind="mergesort")]
        else:
            for i in range(1, members.size):
                moved, j = members[i], i
                while j and score[members[j - 1]] < score[moved]:
                    members[j] = members[j - 1]
                    j -= 1
                members[j] = moved
        first = end


@njit(cache=True, nogil=True)
def _settle(  # noqa: PLR0917 - numba kernels take their arrays one by one
    lefts: NDArray[np.int64],
    rights: NDArray[np.int64],
    scores: NDArray[np.float32],
    wanted: NDArray[np.int64],
    canonical: NDArray[np.int64],
    score: NDArray[np.float32],
) -> None:
    """Gives each node the canonical that it has `wanted`, and its score, where they still match; -1 wants none."""
    for i in range(lefts.size):
        left, right = lefts[i], rights[i]
        if wanted[left] == right:
            canonical[left], score[left] = right, scores[i]
        if wanted[right] == left:
            canonical[right], score[right] = left, scores[i]


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


@njit(cache=True, nogil=True)
def _matches_any(
    offsets: NDArray[np.int64], neighbours: NDArray[np.int64], is_canonical: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which nodes have a neighbour that is canonical."""
    matches = np.zeros(is_canonical.size, np.bool_)
    for node in range(is_canonical.size):
        for neighbour in neighbours[offsets[node] : offsets[node + 1]]:
            if is_canonical[neighbour]:
                matches[node] = True
                break
    return matches


@njit(cache=True, nogil=True)
def _edges_among(
    offsets: NDArray[np.int64], neighbours: NDArray[np.int64], nodes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each edge between two of `nodes`, ascending, once, as positions in `nodes`."""
    position_of = np.full(offsets.size - 1, -1)
    num_ends = 0
    for i in range(nodes.size):
        position_of[nodes[i]] = i
        num_ends += offsets[nodes[i] + 1] - offsets[nodes[i]]
    lefts, rights = np.empty(num_ends, np.int64), np.empty(num_ends, np.int64)
    num_edges = 0
    for i in range(nodes.size):
        for neighbour in neighbours[offsets[nodes[i]] : offsets[nodes[i] + 1]]:
            if position_of[neighbour] > i:
                lefts[num_edges], rights[num_edges] = i, position_of[neighbour]
                num_edges += 1
    return lefts[:num_edges], rights[:num_edges]
