"""Connected components of the graph of matches, by union-find.

Splits the corpus into independent pieces before the greedy cut; a label is the smallest node of its component, so the
answer does not depend on the order of the edges.

Source: Tarjan and van Leeuwen, "Worst-case analysis of set union algorithms", J. ACM 1984 (linking by index, halving).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.errors import ParameterError


def connected_components(num_nodes: int, lefts: NDArray[np.int64], rights: NDArray[np.int64]) -> NDArray[np.int64]:
    """`(num_nodes,)` int64: the smallest node that each node is connected to by the edges `(lefts[i], rights[i])`.

    Raises ParameterError for nodes outside `0..num_nodes - 1`.
    """
    lefts, rights = checked_edges(num_nodes, lefts, rights)
    return _connected_components(num_nodes, lefts, rights)  # type: ignore[no-any-return]


def checked_edges(
    num_nodes: int, lefts: NDArray[np.int64], rights: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Both ends of the edges as contiguous int64; raises ParameterError unless they are nodes of the graph."""
    if num_nodes < 0:
        raise ParameterError(f"num_nodes={num_nodes} is out of range; pass 0 or more")
    if lefts.shape != rights.shape or lefts.ndim != 1:
        raise ParameterError(f"lefts {lefts.shape} and rights {rights.shape} must be equal (m,)")
    for name, ends in (("lefts", lefts), ("rights", rights)):
        if ends.size and (int(ends.min()) < 0 or int(ends.max()) >= num_nodes):
            raise ParameterError(
                f"{name} holds nodes {int(ends.min())}..{int(ends.max())}, out of range 0..{num_nodes - 1}"
            )
    return np.ascontiguousarray(lefts, dtype=np.int64), np.ascontiguousarray(rights, dtype=np.int64)


@njit(cache=True, nogil=True)
def _connected_components(num_nodes: int, lefts: NDArray[np.int64], rights: NDArray[np.int64]) -> NDArray[np.int64]:
    parents = np.arange(num_nodes)
    for i in range(lefts.size):
        left, right = _root(parents, lefts[i]), _root(parents, rights[i])
        parents[max(left, right)] = min(left, right)
    # A parent is never above its child, so one ascending pass finds every parent already pointing at its root.
    for node in range(num_nodes):
        parents[node] = parents[parents[node]]
    return parents


@njit(cache=True, nogil=True)
def _root(parents: NDArray[np.int64], node: int) -> int:
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node
