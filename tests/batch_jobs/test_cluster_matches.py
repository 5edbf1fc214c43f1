"""Tests of the cluster step's kernel: canonical choice, and copies that join their original."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from batch_jobs.assignments import Members
from batch_jobs.cluster_matches import Before, Clustered, cluster_docs
from batch_jobs.cluster_scope import Edges
from batch_jobs.contents import contents_of
from batch_jobs.decisions import DocDecisions
from batch_jobs.select_matches import Match
from lsh.clusters import MIN_COMMON


def clustered(edges: list[tuple[int, int, float]], original_docs: list[int], pixels: list[int]) -> Members:
    lefts, rights, scores = zip(*edges, strict=True) if edges else ((), (), ())
    return cluster_docs(
        Edges(np.array(lefts, np.int64), np.array(rights, np.int64), np.array(scores, np.float32)),
        original_docs=np.array(original_docs, np.int64),
        pixels=np.array(pixels, np.int64),
    ).members


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


NUM_IN_PIECES = MIN_COMMON + 4
IN_PIECES = [
    *((hub, doc, 0.9) for hub in (0, 1) for doc in range(2, NUM_IN_PIECES - 2)),
    (0, NUM_IN_PIECES - 2, 0.9),
    (1, NUM_IN_PIECES - 1, 0.9),
]
"""Two hubs with the same neighbours, one more of its own each, and no edge between them."""


@dataclass
class Comparison:
    """Matches all pairs that it is asked for, and remembers them."""

    asked: list[list[int]] = field(default_factory=list)

    def __call__(self, pairs: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        self.asked.extend(pairs.tolist())
        return np.ones(len(pairs), np.bool_), np.full(len(pairs), 0.9, np.float32)


def clustered_crowd(edges: list[tuple[int, int, float]], num_docs: int, match: Match, **options: Any) -> Clustered:
    lefts, rights, scores = zip(*edges, strict=True)
    return cluster_docs(
        Edges(np.array(lefts), np.array(rights), np.array(scores, np.float32)),
        original_docs=np.arange(num_docs),
        pixels=np.ones(num_docs, np.int64),
        match=match,
        **options,
    )


def test_a_crowd_in_pieces_is_compared_and_cut_again() -> None:
    """Two hubs of one crowd that were never compared are, and all that then match directly is one cluster."""
    match = Comparison()
    clustered = clustered_crowd(IN_PIECES, NUM_IN_PIECES, match)
    assert match.asked == [[0, 1], [0, NUM_IN_PIECES - 1]]
    assert clustered.members.canonical_docs.tolist() == [0] * NUM_IN_PIECES
    found = clustered.crowd_edges
    assert list(zip(found.lefts.tolist(), found.rights.tolist(), strict=True)) == [(0, 1), (0, NUM_IN_PIECES - 1)]


@pytest.mark.parametrize("is_edge", [False, True])
def test_a_crowd_compared_again_obeys_a_split(is_edge: bool) -> None:
    """No comparison brings hubs together that were parted by hand, and an edge that was dropped is not asked for."""
    match = Comparison()
    edges = [*IN_PIECES, (0, 1, 0.95)] if is_edge else IN_PIECES
    split = DocDecisions(splits=({0: 0, 1: 1},), merges=())
    clustered = clustered_crowd(edges, NUM_IN_PIECES, match, decided=split)
    canonical_of = dict(zip(clustered.members.docs.tolist(), clustered.members.canonical_docs.tolist(), strict=True))
    assert canonical_of.get(0, 0) != canonical_of.get(1, 1)
    assert not is_edge or [0, 1] not in match.asked


def test_new_images_of_a_crowd_join_the_canonical_that_it_has() -> None:
    """New images that met only a member of a crowd are compared with its canonical, known ones are not asked about."""
    crowd = [(0, doc, 0.9) for doc in range(1, 60)]
    new = range(60, 60 + MIN_COMMON)
    match = Comparison()
    canonical_rows, is_new = np.zeros(60 + MIN_COMMON, np.int64), np.arange(60 + MIN_COMMON) >= 60
    edges = [*crowd, *((7, doc, 0.9) for doc in new)]
    degrees = np.bincount([end for left, right, _ in edges for end in (left, right)])
    clustered = clustered_crowd(
        edges,
        60 + MIN_COMMON,
        match,
        before=Before(np.where(is_new, np.arange(is_new.size), canonical_rows), is_new, degrees),
    )
    assert match.asked == [[0, doc] for doc in new]
    assert clustered.members.canonical_docs.tolist() == [0] * (60 + MIN_COMMON)


@given(
    content_docs=st.lists(st.integers(0, 40) | st.sampled_from([10**6, 10**12])),
    asked=st.lists(st.integers(-3, 45) | st.sampled_from([10**6, 10**12, 10**15])),
)
def test_contents_are_found_by_their_docs(content_docs: list[int], asked: list[int]) -> None:
    """Each content has the row of its first image, whether docs lie close or far apart, and others none."""
    contents, rows = contents_of(np.array(content_docs, np.int64), np.ones(len(content_docs), np.bool_))
    first = {doc: content_docs.index(doc) for doc in sorted(content_docs)}
    assert dict(zip(contents.docs.tolist(), contents.rows.tolist(), strict=True)) == first
    assert rows.tolist() == [first[doc] for doc in content_docs]
    assert contents.rows_of(np.array(asked, np.int64)).tolist() == [first.get(doc, -1) for doc in asked]
