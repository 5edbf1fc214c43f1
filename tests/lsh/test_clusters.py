"""Rules of the greedy cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsh.clusters import MIN_COMMON, Clusters, greedy_cut, member_order, updated_cut
from lsh.components import connected_components
from lsh.errors import ParameterError

Edges = dict[tuple[int, int], float]


def cut(num_nodes: int, edges: Edges, quality_rank: list[int]) -> Clusters:
    lefts, rights = np.array(list(edges), dtype=np.int64).reshape(-1, 2).T
    return greedy_cut(num_nodes, lefts, rights, np.array(list(edges.values()), np.float32), np.array(quality_rank))


def slow_cut(num_nodes: int, edges: Edges, quality_rank: list[int]) -> tuple[list[int], list[float]]:
    """The slow twin: the definition, with sets."""
    neighbours: list[set[int]] = [set() for _ in range(num_nodes)]
    scores = {}
    for (left, right), score in edges.items():
        neighbours[left].add(right)
        neighbours[right].add(left)
        scores[left, right] = scores[right, left] = score
    canonicals, remaining = set(), set(range(num_nodes))
    while remaining:
        best = min(remaining, key=lambda node: (-len(neighbours[node] & remaining), quality_rank[node], node))
        canonicals.add(best)
        remaining -= neighbours[best] | {best}
    canonical, score_of = list(range(num_nodes)), [1.0] * num_nodes
    for node in set(range(num_nodes)) - canonicals:
        best = min(neighbours[node] & canonicals, key=lambda other: (-scores[node, other], quality_rank[other], other))
        canonical[node], score_of[node] = best, scores[node, best]
    return canonical, score_of


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, Edges, list[int]]:
    num_nodes = draw(st.integers(1, 25))
    node = st.integers(0, num_nodes - 1)
    ends = draw(st.lists(st.tuples(node, node), max_size=80))
    score = st.sampled_from([0.5, 0.75, 1.0])
    edges = {(left, right): draw(score) for left, right in {(min(e), max(e)) for e in ends} if left != right}
    ranks = draw(st.lists(st.integers(-2, 2), min_size=num_nodes, max_size=num_nodes))
    return num_nodes, edges, ranks


@given(graphs())
def test_clusters_equal_those_of_the_slow_twin(graph: tuple[int, Edges, list[int]]) -> None:
    """Canonicals and scores equal the definition's, ties of degree and of quality included."""
    clusters = cut(*graph)
    canonical, score = slow_cut(*graph)

    assert clusters.canonical.tolist() == canonical
    assert clusters.score.tolist() == score


@pytest.mark.parametrize("seed", range(3))
def test_a_large_random_graph_equals_the_slow_twin(seed: int) -> None:
    """A graph of 400 nodes with hubs is cut as the definition says."""
    rng = np.random.default_rng(seed)
    ends = np.sort((400 * rng.random((1500, 2)) ** 2).astype(int), axis=1)
    edges = {(left, right): 0.5 for left, right in ends.tolist() if left != right}
    ranks = rng.integers(0, 4, 400).tolist()

    assert cut(400, edges, ranks).canonical.tolist() == slow_cut(400, edges, ranks)[0]


@given(graphs())
def test_every_member_matches_its_canonical_directly(graph: tuple[int, Edges, list[int]]) -> None:
    """A member's canonical is its own canonical and one edge away, with that edge's score."""
    _, edges, _ = graph
    clusters = cut(*graph)
    for node, (canonical, score) in enumerate(zip(clusters.canonical.tolist(), clusters.score.tolist(), strict=True)):
        assert clusters.canonical[canonical] == canonical
        if node != canonical:
            assert edges[min(node, canonical), max(node, canonical)] == score


def test_a_chain_is_cut_between_cat_and_dog() -> None:
    """In a chain of small changes nobody is clustered with an image that it does not match."""
    chain = {(node, node + 1): 0.9 for node in range(6)}

    assert cut(7, chain, [0] * 7).canonical.tolist() == [1, 1, 1, 4, 4, 4, 6]


def test_a_member_moves_to_the_canonical_that_it_matches_best() -> None:
    """The hub is canonical first, but leaves the image that another canonical matches better."""
    edges = {(0, 1): 0.8, (0, 2): 0.8, (0, 3): 0.8, (3, 4): 0.99}

    assert cut(5, edges, [0] * 5).canonical.tolist() == [0, 0, 0, 4, 4]


def test_quality_breaks_ties_of_degree() -> None:
    """Of two images that match only each other, the one of lower quality rank becomes canonical."""
    assert cut(2, {(0, 1): 0.8}, [5, 2]).canonical.tolist() == [1, 1]
    assert cut(2, {(0, 1): 0.8}, [2, 5]).canonical.tolist() == [0, 0]


def test_degree_counts_before_quality() -> None:
    """The image that matches most others becomes canonical, however low its quality."""
    star = {(0, 3): 0.7, (1, 3): 0.8, (2, 3): 0.9}
    clusters = cut(4, star, [0, 0, 0, 9])

    assert clusters.canonical.tolist() == [3, 3, 3, 3]
    assert clusters.score.tolist() == pytest.approx([0.7, 0.8, 0.9, 1.0])


def test_an_image_without_a_match_is_its_own_canonical() -> None:
    """Nodes without edges keep themselves, with score 1; no nodes give empty arrays."""
    clusters = cut(3, {}, [2, 1, 0])

    assert clusters.canonical.tolist() == [0, 1, 2]
    assert clusters.score.tolist() == [1, 1, 1]
    assert cut(0, {}, []).canonical.tolist() == []


@given(graphs())
def test_components_can_be_cut_one_by_one(graph: tuple[int, Edges, list[int]]) -> None:
    """Cutting each connected component alone gives what cutting the whole graph gives."""
    num_nodes, edges, ranks = graph
    lefts, rights = np.array(list(edges), dtype=np.int64).reshape(-1, 2).T
    labels = connected_components(num_nodes, lefts, rights)
    apart = [-1] * num_nodes
    for label in set(labels.tolist()):
        inside = {edge: score for edge, score in edges.items() if labels[edge[0]] == label}
        canonical = cut(num_nodes, inside, ranks).canonical.tolist()
        for node in np.flatnonzero(labels == label).tolist():
            apart[node] = canonical[node]

    assert apart == cut(*graph).canonical.tolist()


def test_pieces_of_a_crowd_ask_to_be_compared() -> None:
    """Two hubs with many neighbours in common but no edge: the later one, and what only it took, meet the first."""
    shared = range(2, 2 + MIN_COMMON)
    edges = {(hub, node): 0.9 for hub in (0, 1) for node in shared} | {(0, 90): 0.9, (1, 91): 0.9}

    assert cut(92, edges, [0] * 92).unmet.tolist() == [[0, 1], [0, 91]]
    assert cut(92, edges | {(0, 1): 0.9}, [0] * 92).unmet.tolist() == []


def test_a_family_asks_for_nothing() -> None:
    """Canonicals that share fewer neighbours than a crowd has are left apart."""
    edges = {(hub, node): 0.9 for hub in (0, 1) for node in range(2, 1 + MIN_COMMON)}

    assert cut(40, edges, [0] * 40).unmet.tolist() == []


def test_graphs_that_cannot_be_cut_raise() -> None:
    """Loops, repeated edges, NaN scores and arrays of the wrong length raise ParameterError."""
    half, ranks = np.array([0.5], dtype=np.float32), np.arange(3)
    with pytest.raises(ParameterError, match="node 1 is matched with itself"):
        greedy_cut(3, np.array([1]), np.array([1]), half, ranks)
    with pytest.raises(ParameterError, match="node 0 has two edges to one neighbour"):
        greedy_cut(3, np.array([0, 1]), np.array([1, 0]), np.repeat(half, 2), ranks)
    with pytest.raises(ParameterError, match="score of edge 0 is NaN"):
        greedy_cut(3, np.array([0]), np.array([1]), half * np.nan, ranks)
    with pytest.raises(ParameterError, match="must be"):
        greedy_cut(3, np.array([0]), np.array([1]), half, ranks[:2])


GONE = -1


def update(num_nodes: int, edges: Edges, quality_rank: list[int], *, before: list[int], is_new: list[bool]) -> Clusters:
    lefts, rights = np.array(list(edges), dtype=np.int64).reshape(-1, 2).T
    return updated_cut(
        num_nodes,
        lefts,
        rights,
        np.array(list(edges.values()), np.float32),
        np.array(quality_rank),
        before=np.array(before, np.int64),
        is_new=np.array(is_new, np.bool_),
        degrees=np.bincount(np.append(lefts, rights), minlength=num_nodes),
    )


def slow_update(
    num_nodes: int, edges: Edges, quality_rank: list[int], *, before: list[int], is_new: list[bool]
) -> tuple[list[int], list[float]]:
    """The slow twin: the definition, with sets."""
    scores = {**edges, **{(right, left): score for (left, right), score in edges.items()}}
    neighbours = [{other for other in range(num_nodes) if (node, other) in scores} for node in range(num_nodes)]
    canonicals: set[int] = set()

    def cut_undecided(wave: set[int]) -> None:
        remaining = {node for node in wave if not neighbours[node] & canonicals}
        while remaining:
            best = min(remaining, key=lambda node: (-len(neighbours[node] & remaining), quality_rank[node], node))
            canonicals.add(best)
            remaining -= neighbours[best] | {best}

    known = {node for node in range(num_nodes) if not is_new[node]}
    old_canonicals = {node for node in known if before[node] == node}
    cut_undecided(old_canonicals)
    settled = {node for node in known - old_canonicals if before[node] in canonicals & neighbours[node]}
    cut_undecided(known - old_canonicals - settled)
    cut_undecided(set(range(num_nodes)) - known)
    canonical, score_of = list(range(num_nodes)), [1.0] * num_nodes
    for node in set(range(num_nodes)) - canonicals:
        best = (
            before[node]
            if node in settled
            else min(neighbours[node] & canonicals, key=lambda other: (-scores[node, other], other))
        )
        canonical[node], score_of[node] = best, scores[node, best]
    return canonical, score_of


@st.composite
def grown_graphs(draw: st.DrawFn) -> tuple[tuple[int, Edges, list[int]], list[int], list[bool]]:
    graph = draw(graphs())
    num_nodes = graph[0]
    before = draw(st.lists(st.integers(GONE, num_nodes - 1), min_size=num_nodes, max_size=num_nodes))
    is_new = draw(st.lists(st.booleans(), min_size=num_nodes, max_size=num_nodes))
    return graph, before, is_new


@given(grown_graphs())
def test_updated_clusters_equal_those_of_the_slow_twin(
    grown: tuple[tuple[int, Edges, list[int]], list[int], list[bool]],
) -> None:
    """An update equals its definition, for any clusters before it, those that decisions by hand have made included."""
    graph, before, is_new = grown
    clusters = update(*graph, before=before, is_new=is_new)
    canonical, score = slow_update(*graph, before=before, is_new=is_new)

    assert clusters.canonical.tolist() == canonical
    assert clusters.score.tolist() == score


@given(graphs())
def test_an_update_of_nothing_known_is_a_cut(graph: tuple[int, Edges, list[int]]) -> None:
    """Where all nodes are new the canonicals are those of the greedy cut."""
    num_nodes = graph[0]
    clusters = update(*graph, before=[GONE] * num_nodes, is_new=[True] * num_nodes)

    assert set(clusters.canonical.tolist()) == set(cut(*graph).canonical.tolist())


@given(graphs())
def test_an_update_without_changes_changes_nothing(graph: tuple[int, Edges, list[int]]) -> None:
    """The clusters of a cut stay as they are while nothing is added or removed."""
    before = cut(*graph)
    clusters = update(*graph, before=before.canonical.tolist(), is_new=[False] * graph[0])

    assert clusters.canonical.tolist() == before.canonical.tolist()
    assert clusters.score.tolist() == before.score.tolist()


def test_a_canonical_stays_whatever_is_new() -> None:
    """New images that match an old canonical join it, though a cut would prefer the one with most matches."""
    edges = {(0, 1): 0.9, (1, 2): 0.9, (1, 3): 0.9}
    clusters = update(4, edges, [0, 0, 0, 0], before=[0, GONE, GONE, GONE], is_new=[False, True, True, True])

    assert clusters.canonical.tolist() == [0, 0, 2, 3]


def test_a_new_image_joins_the_best_canonical_then_the_oldest() -> None:
    """The highest score decides, among equal ones the lowest number, whatever the rank."""
    edges = {(0, 2): 0.8, (1, 2): 0.9, (0, 3): 0.8, (1, 3): 0.8}
    clusters = update(4, edges, [1, 0, 0, 0], before=[0, 1, GONE, GONE], is_new=[False, False, True, True])

    assert clusters.canonical.tolist() == [0, 1, 1, 0]


def test_a_member_keeps_its_canonical_though_a_new_one_is_nearer() -> None:
    """Node 1 belongs to 0; the new node 2 matches it better but does not match 0, and stands alone."""
    clusters = update(3, {(0, 1): 0.8, (1, 2): 1.0}, [0, 0, 0], before=[0, 0, GONE], is_new=[False, False, True])

    assert clusters.canonical.tolist() == [0, 0, 2]


def test_members_of_a_removed_canonical_are_cut_again_before_the_new() -> None:
    """The heir is one of them, though a new image matches all of them and has more pixels; the new one joins it."""
    edges = {(0, 1): 0.9, (0, 2): 0.9, (0, 3): 0.9, (1, 3): 0.9, (2, 3): 0.9}
    clusters = update(4, edges, [1, 2, 3, 0], before=[GONE, GONE, GONE, GONE], is_new=[False, False, False, True])

    assert clusters.canonical.tolist() == [0, 0, 0, 0]


def test_what_was_before_must_be_nodes() -> None:
    """A canonical outside of the graph is refused."""
    with pytest.raises(ParameterError, match=r"before holds -1\.\.2, out of range -1\.\.1"):
        update(2, {}, [0, 0], before=[2, GONE], is_new=[False, True])


@pytest.mark.parametrize("num_new", [MIN_COMMON - 2, MIN_COMMON])
def test_an_update_names_new_nodes_that_missed_the_canonical_of_their_crowd(num_new: int) -> None:
    """New nodes that met a member of many neighbours are to meet its canonical; members of few are no crowd."""
    nodes = range(2, 2 + num_new)
    edges = {(0, 1): 0.9} | {(1, node): 0.9 for node in nodes}
    found = update(
        2 + num_new, edges, [0] * (2 + num_new), before=[0, 0, *nodes], is_new=[False] * 2 + [True] * num_new
    )

    assert found.unmet.tolist() == ([[0, node] for node in nodes] if num_new >= MIN_COMMON else [])
    assert found.canonical.tolist() == [0, 0, *nodes]


@given(st.integers(0, 300), st.integers(1, 4), st.integers(0, 2**32))
def test_members_are_arranged_by_cluster(num_nodes: int, num_clusters: int, seed: int) -> None:
    """By size, canonical, the canonical itself, score and node, in clusters of a few and of many."""
    rng = np.random.default_rng(seed)
    canonicals = np.sort(rng.choice(max(num_nodes, 1), min(num_clusters, num_nodes), replace=False))
    nodes = np.arange(num_nodes)
    canonical = rng.choice(canonicals, num_nodes) if num_nodes else nodes
    canonical[canonicals] = canonicals
    score = rng.choice(np.array([0.5, 0.75, 1.0], np.float32), num_nodes)
    size = np.bincount(canonical)[canonical] if num_nodes else nodes
    expected = np.lexsort((nodes, -score, nodes != canonical, canonical, -size))

    assert member_order(canonical, score, nodes).tolist() == expected.tolist()
