"""Tests of the cluster step's kernel: canonical choice, and copies that join their original."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from batch_jobs.cluster_matches import Members, cluster_docs
from lsh.clusters import MIN_COMMON


def clustered(edges: list[tuple[int, int, float]], original_docs: list[int], pixels: list[int]) -> Members:
    lefts, rights, scores = zip(*edges, strict=True) if edges else ((), (), ())
    return cluster_docs(
        lefts=np.array(lefts, np.int64),
        rights=np.array(rights, np.int64),
        scores=np.array(scores, np.float32),
        original_docs=np.array(original_docs, np.int64),
        pixels=np.array(pixels, np.int64),
    )


def test_the_larger_image_is_canonical() -> None:
    """Of two matching images the one with more pixels leads, whatever their docs."""
    members = clustered([(0, 1, 0.9)], original_docs=[0, 1], pixels=[10, 20])
    assert members.canonical_docs.tolist() == [1, 1]


def test_the_older_image_is_canonical_at_equal_size() -> None:
    """At equal pixels the smaller doc leads."""
    members = clustered([(0, 1, 0.9)], original_docs=[0, 1], pixels=[10, 10])
    assert members.canonical_docs.tolist() == [0, 0]


def test_copies_join_the_cluster_of_their_original() -> None:
    """A byte-identical copy has its original's canonical and score."""
    members = clustered([(0, 1, 0.8)], original_docs=[0, 1, 1], pixels=[20, 10, 10])
    assert members.docs.tolist() == [0, 1, 2]
    assert members.canonical_docs.tolist() == [0, 0, 0]
    assert members.scores.tolist() == [1.0, np.float32(0.8), np.float32(0.8)]


def test_copies_alone_make_a_cluster() -> None:
    """Exact copies are duplicates even where nothing else matches."""
    members = clustered([], original_docs=[0, 0, 2], pixels=[1, 1, 1])
    assert members.docs.tolist() == [0, 1]
    assert members.canonical_docs.tolist() == [0, 0]
    assert members.scores.tolist() == [1.0, 1.0]


def test_a_chain_does_not_join_its_ends() -> None:
    """Every member matches its canonical directly: the far ends of a chain part."""
    chain = [(0, 1, 0.9), (1, 2, 0.9), (2, 3, 0.9), (3, 4, 0.9)]
    members = clustered(chain, original_docs=[0, 1, 2, 3, 4], pixels=[1] * 5)
    assert dict(zip(members.docs.tolist(), members.canonical_docs.tolist(), strict=True)) == {
        0: 1,
        1: 1,
        2: 1,
        3: 3,
        4: 3,
    }


def test_a_crowd_in_pieces_is_compared_and_cut_again() -> None:
    """Two hubs of one crowd that were never compared are, and all that then match directly is one cluster."""
    num_docs = MIN_COMMON + 4
    edges = [(hub, doc) for hub in (0, 1) for doc in range(2, num_docs - 2)] + [(0, num_docs - 2), (1, num_docs - 1)]
    asked: list[list[int]] = []

    def match(pairs: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        asked.extend(pairs.tolist())
        return np.ones(len(pairs), np.bool_), np.full(len(pairs), 0.9, np.float32)

    lefts, rights = np.array(edges).T
    members = cluster_docs(
        lefts=lefts,
        rights=rights,
        scores=np.full(len(edges), 0.9, np.float32),
        original_docs=np.arange(num_docs),
        pixels=np.ones(num_docs, np.int64),
        match=match,
    )
    assert asked == [[0, 1], [0, num_docs - 1]]
    assert members.canonical_docs.tolist() == [0] * num_docs
