"""Rules of the threshold at which descriptors are compared."""

from __future__ import annotations

import doctest
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import benchmarks.threshold
from benchmarks.threshold import OperatingPoint, lowest_threshold


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


def test_the_worked_example_runs() -> None:
    """The docstring's numbers are what the function returns."""
    assert doctest.testmod(benchmarks.threshold).failed == 0
