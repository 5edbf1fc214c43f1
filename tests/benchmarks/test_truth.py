"""Rules of counting pairs against known groups."""

from __future__ import annotations

import doctest
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import benchmarks.truth
from benchmarks.truth import PairMetrics, Truth, read_clusters, score_clusters, wrong_pairs

TRUTH = Truth({"a": "a", "a1": "a", "a2": "a", "b": "b", "b1": "b", "c": "c"})


def counts(clusters: list[list[str]]) -> tuple[int, int, int]:
    metrics = score_clusters(clusters, TRUTH)
    return metrics.num_true_pairs, metrics.num_found_pairs, metrics.num_correct_pairs


def test_the_truth_itself_has_precision_and_recall_one() -> None:
    """Clusters equal to the groups find all four true pairs and nothing else."""
    assert counts([["a", "a1", "a2"], ["b", "b1"]]) == (4, 4, 4)


def test_a_cluster_that_joins_two_groups_loses_precision_only() -> None:
    """Five images in one cluster are ten pairs, four of them true."""
    metrics = score_clusters([["a", "a1", "a2", "b", "b1"]], TRUTH)
    assert (metrics.precision, metrics.recall) == (0.4, 1.0)


def test_a_split_group_loses_recall_only() -> None:
    """Without `a2` one of the three pairs of `a` and the pair of `b` are left of four."""
    metrics = score_clusters([["a", "a1"], ["b", "b1"]], TRUTH)
    assert (metrics.precision, metrics.recall) == (1.0, 0.5)


def test_nothing_found_is_precise_and_recalls_nothing() -> None:
    """Without clusters there is no wrong pair; images in no cluster stand alone."""
    metrics = score_clusters([], TRUTH)
    assert (metrics.precision, metrics.recall) == (1.0, 0.0)


def test_images_that_nothing_belongs_to_need_not_be_found() -> None:
    """A truth without pairs is recalled completely."""
    assert score_clusters([], Truth({"a": "a", "b": "b"})).recall == 1.0


def test_unjudged_pairs_count_neither_way() -> None:
    """`a` and `b` may share a cluster, `c` may not."""
    truth = Truth(TRUTH.original_of, frozenset({("a", "b")}))
    clusters = [["a", "a1", "a2", "b", "b1", "c"]]
    metrics = score_clusters(clusters, truth)
    assert (metrics.num_found_pairs, metrics.num_correct_pairs) == (9, 4)
    assert {*wrong_pairs(clusters, truth)} == {("a", "c"), ("a1", "c"), ("a2", "c"), ("b", "c"), ("b1", "c")}


@given(labels=st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 3)), max_size=14))
def test_the_counts_equal_looking_at_every_pair(labels: list[tuple[str, int]]) -> None:
    """The counts by group sizes and the walk over all pairs agree."""
    truth = Truth({str(number): original for number, (original, _) in enumerate(labels)})
    clusters: dict[int, list[str]] = {}
    for number, (_, cluster) in enumerate(labels):
        clusters.setdefault(cluster, []).append(str(number))
    pairs = list(combinations(labels, 2))
    assert score_clusters(clusters.values(), truth) == PairMetrics(
        num_true_pairs=sum(left[0] == right[0] for left, right in pairs),
        num_found_pairs=sum(left[1] == right[1] for left, right in pairs),
        num_correct_pairs=sum(left == right for left, right in pairs),
    )


def test_wrong_pairs_are_the_found_ones_that_are_not_true() -> None:
    """Each wrong pair is named once."""
    assert list(wrong_pairs([["a", "b", "a1"], ["c"]], TRUTH)) == [("a", "b"), ("b", "a1")]


def test_an_unknown_or_repeated_image_is_an_error() -> None:
    """A clustering of other images is never scored by accident."""
    with pytest.raises(ValueError, match="d is in a cluster but not in the truth of 6 images"):
        score_clusters([["a", "d"]], TRUTH)
    with pytest.raises(ValueError, match="a1 is listed twice"):
        score_clusters([["a", "a1"], ["a1", "b"]], TRUTH)


def test_clusters_are_read_by_their_canonical_image(tmp_path: Path) -> None:
    """Rows with the same canonical are one cluster, named by file name."""
    csv = tmp_path / "clusters.csv"
    csv.write_text('image_id,canonical_id,score\nx/a.jpg,x/a.jpg,1\nb.jpg,b.jpg,1\n"y/a 1, new.jpg",x/a.jpg,0.9\n')
    assert read_clusters(csv) == [["a.jpg", "a 1, new.jpg"], ["b.jpg"]]


def test_the_truth_is_written_as_csv(tmp_path: Path) -> None:
    """The file has one line per image, in order."""
    Truth({"b.jpg": "a.jpg", "a.jpg": "a.jpg"}).write_csv(tmp_path / "truth.csv")
    assert (tmp_path / "truth.csv").read_text() == "image,original\na.jpg,a.jpg\nb.jpg,a.jpg\n"


def test_the_worked_example_runs() -> None:
    """The docstring's numbers are what the function returns."""
    assert doctest.testmod(benchmarks.truth).failed == 0
