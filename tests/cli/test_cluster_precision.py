"""Cluster precision: planted truth through the pipeline's clustering."""

from __future__ import annotations

import numpy as np
import pytest

from cli.cluster_precision import ClusterPrecision
from embed.evaluation.planted import Described
from embed.pair_scoring import PairScorer

DIM = 64


def described(*, mixed_up: bool) -> Described:
    """Ten photos with three near edits each; with `mixed_up` one edit of photo 0 looks like photo 1."""
    rng = np.random.default_rng(0)
    corpus = rng.normal(size=(10, DIM))
    edited = corpus[:, None] + 0.02 * rng.normal(size=(10, 3, DIM))
    if mixed_up:
        edited[0, 0] = corpus[1] + 0.01 * rng.normal(size=DIM)
    corpus /= np.linalg.norm(corpus, axis=-1, keepdims=True)
    edited /= np.linalg.norm(edited, axis=-1, keepdims=True)
    return Described(edited=edited.astype(np.float32), corpus=corpus.astype(np.float32), images_per_second=1.0)


def test_clusters_of_one_photo_each_are_clean() -> None:
    found = ClusterPrecision(described=described(mixed_up=False), scorer=PairScorer(), same=[]).at(0.9)
    assert (found.num_clusters, found.clean_share, found.member_share) == (10, 1.0, 1.0)


def test_a_stranger_spoils_its_cluster_and_counts_as_one_image() -> None:
    found = ClusterPrecision(described=described(mixed_up=True), scorer=PairScorer(), same=[]).at(0.9)
    assert (found.num_clusters, found.clean_share) == (10, 0.9)
    assert found.member_share == pytest.approx(29 / 30)
    assert found.member_interval[0] < found.member_share < found.member_interval[1]


def test_files_of_one_picture_are_no_strangers() -> None:
    found = ClusterPrecision(described=described(mixed_up=True), scorer=PairScorer(), same=[(0, 1)]).at(0.9)
    assert (found.clean_share, found.member_share) == (1.0, 1.0)
