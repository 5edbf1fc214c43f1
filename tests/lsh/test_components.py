"""Rules of connected components."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsh.components import connected_components
from lsh.errors import ParameterError


def slow_components(num_nodes: int, edges: list[tuple[int, int]]) -> list[int]:
    """The slow twin: the smaller label is copied over every edge until nothing changes."""
    labels = list(range(num_nodes))
    for _ in range(num_nodes):
        for left, right in edges:
            labels[left] = labels[right] = min(labels[left], labels[right])
    return labels


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    num_nodes = draw(st.integers(1, 30))
    node = st.integers(0, num_nodes - 1)
    return num_nodes, draw(st.lists(st.tuples(node, node), max_size=40))


@given(graphs())
def test_labels_equal_those_of_the_slow_twin(graph: tuple[int, list[tuple[int, int]]]) -> None:
    """Every node is labelled with the smallest node of its component, loops and repeated edges included."""
    num_nodes, edges = graph
    lefts, rights = np.array(edges, dtype=np.int64).reshape(-1, 2).T

    assert connected_components(num_nodes, lefts, rights).tolist() == slow_components(num_nodes, edges)


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
def test_a_long_chain_is_one_component(order: str) -> None:
    """A chain of 200,000 nodes is one component, whatever the order of its edges."""
    lefts = np.arange(199_999)
    if order == "descending":
        lefts = lefts[::-1]
    if order == "shuffled":
        lefts = np.random.default_rng(0).permutation(lefts)

    assert (connected_components(200_000, lefts + 1, lefts) == 0).all()


def test_without_edges_every_node_is_its_own_component() -> None:
    """No edges leave each node its own label; no nodes give an empty array."""
    no_nodes = np.empty(0, dtype=np.int64)

    assert connected_components(3, no_nodes, no_nodes).tolist() == [0, 1, 2]
    assert connected_components(0, no_nodes, no_nodes).tolist() == []


def test_edges_outside_the_graph_raise() -> None:
    """Nodes that are not in the graph, negative sizes and unequal lengths raise ParameterError."""
    with pytest.raises(ParameterError, match=r"rights holds nodes 1..3, out of range 0..2"):
        connected_components(3, np.array([0, 1]), np.array([1, 3]))
    with pytest.raises(ParameterError, match=r"lefts holds nodes -1..-1"):
        connected_components(3, np.array([-1]), np.array([1]))
    with pytest.raises(ParameterError, match="num_nodes=-1"):
        connected_components(-1, np.array([0]), np.array([0]))
    with pytest.raises(ParameterError, match="must be equal"):
        connected_components(3, np.array([0]), np.array([0, 1]))
