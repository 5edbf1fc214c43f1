"""Rules of the threshold at which descriptors are compared."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from embed.errors import EvaluationError
from embed.evaluation.precision_recall import (
    OperatingPoint,
    check_precisions,
    lowest_threshold,
    precision_recall_curve,
    recall_at,
)
from embed.evaluation.scored_pairs import ScoredPairs


def counted_one_by_one(true_scores: list[float], false_scores: list[float]) -> OperatingPoint:
    """The obvious twin: try every observed score from the lowest up and count."""
    for threshold in sorted({*true_scores, *false_scores}):
        num_true = sum(score >= threshold for score in true_scores)
        num_false = sum(score >= threshold for score in false_scores)
        if 100 * num_false <= num_true:
            return OperatingPoint(threshold=threshold, num_true=num_true, num_false=num_false)
    return OperatingPoint(threshold=math.inf, num_true=0, num_false=0)


def scores(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


# Few distinct values, as Hamming distances have, so that ties sit right at the threshold.
TIED = st.integers(-6, 6).map(float)


@given(
    true_runs=st.lists(st.tuples(TIED, st.integers(0, 150)), max_size=6),
    false_scores=st.lists(TIED, max_size=12),
)
def test_the_threshold_equals_counting_one_by_one(
    true_runs: list[tuple[float, int]], false_scores: list[float]
) -> None:
    """With ties on both sides the fast search and the count over every observed score agree."""
    true_scores = [score for score, times in true_runs for _ in range(times)]
    assert lowest_threshold(scores(*true_scores), scores(*false_scores)) == counted_one_by_one(
        true_scores, false_scores
    )


@given(seed=st.integers(0, 2**32 - 1), num_true=st.integers(0, 400), num_false=st.integers(0, 60))
def test_the_threshold_equals_counting_on_continuous_scores(seed: int, num_true: int, num_false: int) -> None:
    """Without ties the two agree as well."""
    rng = np.random.default_rng(seed)
    true_scores = rng.normal(1.0, 1.0, num_true).astype(np.float32)
    false_scores = rng.normal(-1.0, 1.0, num_false).astype(np.float32)
    assert lowest_threshold(true_scores, false_scores) == counted_one_by_one(
        true_scores.tolist(), false_scores.tolist()
    )


def test_exactly_one_percent_is_accepted_and_a_little_more_is_not() -> None:
    """One false match is allowed per hundred true ones, and not per ninety-nine."""
    assert lowest_threshold(scores(*[5.0] * 100), scores(5.0)).num_true == 100
    assert lowest_threshold(scores(*[5.0] * 99), scores(5.0)) == OperatingPoint(
        threshold=math.inf, num_true=0, num_false=0
    )


def test_equal_scores_are_admitted_together() -> None:
    """A threshold never splits a tie: the two false matches at 3 are both in or both out."""
    found = lowest_threshold(scores(*[4.0] * 150, *[3.0] * 40), scores(3.0, 3.0, 1.0))
    assert found == OperatingPoint(threshold=4.0, num_true=150, num_false=0)


def test_a_false_match_on_top_does_not_raise_the_threshold_that_pays_for_it() -> None:
    """The lowest good threshold counts even when a higher one is bad: false matches are paid for by all true ones."""
    found = lowest_threshold(scores(*[0.5] * 200), scores(0.9, 0.1, 0.1))
    assert found == OperatingPoint(threshold=0.5, num_true=200, num_false=1)


def test_without_false_scores_everything_true_is_accepted() -> None:
    """The lowest true score is the threshold when nothing false exists."""
    assert lowest_threshold(scores(0.25, 0.75), scores()) == OperatingPoint(threshold=0.25, num_true=2, num_false=0)


def pairs_of(
    true_scores: list[float], false_scores: list[float], *, photos: list[int] | None = None, kinds: int = 1
) -> ScoredPairs:
    return ScoredPairs(
        kinds=tuple(f"kind {number}" for number in range(kinds)),
        true_scores=scores(*true_scores),
        true_kind=np.arange(len(true_scores)) % kinds,
        true_photo=np.array(photos or range(len(true_scores)), np.int64),
        false_scores=scores(*false_scores),
        false_photo=np.arange(len(false_scores)),
    )


def test_recall_is_the_share_above_one_threshold_by_kind_and_overall() -> None:
    """Both kinds are judged at the threshold that all pairs together allow."""
    found = recall_at(pairs_of([0.9, 0.2] * 100, [0.5] * 50, kinds=2), 0.99, num_resamples=5)
    assert (found.overall, found.by_kind) == (0.5, {"kind 0": 1.0, "kind 1": 0.0})
    assert found.point.threshold == pytest.approx(0.9)


def test_an_interval_holds_its_figure_and_shrinks_with_more_photos() -> None:
    """A hundredfold of independent photos makes the 95 % interval about ten times as narrow."""
    rng = np.random.default_rng(0)
    widths = []
    for num in (100, 10_000):
        true_scores = rng.random(num).tolist()
        found = recall_at(pairs_of(true_scores, [0.5] * num), 0.9, num_resamples=100)
        assert found.interval.low <= found.overall <= found.interval.high
        widths.append(found.interval.high - found.interval.low)
    assert 4 < widths[0] / widths[1] < 25


def test_pairs_of_one_photo_are_resampled_together() -> None:
    """Fifty pairs of each of four photos are no more certain than four pairs."""
    alike = [0.9] * 50 + [0.9] * 50 + [0.1] * 50 + [0.1] * 50
    found = recall_at(pairs_of(alike, [0.5] * 100, photos=[i // 50 for i in range(200)]), 0.9, num_resamples=200)
    assert found.interval.high - found.interval.low >= 0.5


def test_a_figure_that_too_few_pairs_can_show_is_marked() -> None:
    """At precision 0.999 a hundred true matches cannot pay for a false one; at 0.99 they can."""
    pairs = pairs_of([0.9] * 100, [0.1])
    assert recall_at(pairs, 0.99, num_resamples=2).is_measurable
    assert not recall_at(pairs, 0.999, num_resamples=2).is_measurable


def test_the_curve_counts_what_each_threshold_admits() -> None:
    """Recall never falls and precision is the share of true ones as thresholds go down."""
    curve = precision_recall_curve(pairs_of([0.9, 0.7, 0.5], [0.8, 0.6, 0.4]))
    assert curve.thresholds.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert curve.recalls.tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1])
    assert curve.precisions.tolist() == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2, 3 / 5, 1 / 2])


@pytest.mark.parametrize("precision", [0.4, 1.0, float("nan")])
def test_a_precision_out_of_range_is_refused(precision: float) -> None:
    """The error names the value and the range."""
    with pytest.raises(EvaluationError, match=r"precision=.* is out of range 0\.5\.\.0\.9999"):
        check_precisions([precision])


def test_scores_that_are_no_numbers_are_refused() -> None:
    """A damaged descriptor is found out before it is judged."""
    with pytest.raises(EvaluationError, match="true_scores holds values that are no numbers"):
        pairs_of([0.9, math.nan], [0.1])
    with pytest.raises(EvaluationError, match="no true pair"):
        pairs_of([], [0.1])
