"""Rules of drift: a run's figures beside those of earlier runs, unusual only where enough of them say so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from batch_jobs.run_drift import MAX_RUNS, MIN_RUNS, distance, drift, match_histogram
from batch_jobs.run_records import RunRecord
from tests.night import pets, run_night


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return run_night(tmp_path_factory.mktemp("drift"), pets(), rejects=["bad-1", "bad-2"])


def with_results(record: RunRecord, **results: int) -> RunRecord:
    return replace(record, results={**record.results, **results})


def test_figures_are_shares_of_images(record: RunRecord) -> None:
    """Eight of ten images have an embedding; five are duplicates; nine pairs match."""
    found = {one.figure: one.value for one in drift(record, [])}
    assert found["coverage"] == pytest.approx(0.8)
    assert found["duplicates per image"] == pytest.approx(5 / 8)
    assert found["matches per image"] == pytest.approx(9 / 8)
    assert 0.9 < (found["mean score of matches"] or 0) < 1


def test_a_run_beyond_all_earlier_ones_is_unusual(record: RunRecord) -> None:
    """A night whose images mostly cannot be read stands out; with few earlier runs nothing is called unusual."""
    bad = with_results(record, rejected=9)
    assert next(one.is_unusual for one in drift(bad, [record] * MIN_RUNS))
    assert not any(one.is_unusual for one in drift(bad, [record] * (MIN_RUNS - 1)))
    assert not any(one.is_unusual for one in drift(record, [record] * MIN_RUNS))


def test_at_most_thirty_runs_are_looked_at(record: RunRecord) -> None:
    """Older nights are forgotten."""
    assert drift(record, [record] * 50)[0].num_runs == MAX_RUNS == 30


def test_scores_are_compared_within_one_scorer(record: RunRecord) -> None:
    """Another scorer's or threshold's scores are another scale."""
    assert drift(record, [replace(record, scorer_digest="other")] * 9)[-1].value is None
    assert drift(record, [replace(record, min_score=0.5)] * 9)[-1].value is None
    assert drift(record, [record] * 9)[-1].value == 0.0


def test_only_matches_count(record: RunRecord) -> None:
    """Candidates below the threshold take no part."""
    histogram = match_histogram(record)
    assert histogram is not None
    assert int(histogram.sum()) == 9
    assert not histogram[:90].any()


def test_distance_is_the_share_that_moved() -> None:
    """0 for equal shapes, 1 for shapes with nothing in common or one empty side."""
    assert distance(np.array([1, 3]), np.array([10, 30])) == 0.0
    assert distance(np.array([1, 0]), np.array([0, 5])) == 1.0
    assert distance(np.array([0, 0]), np.array([0, 5])) == 1.0
    assert distance(np.array([0, 0]), np.array([0, 0])) == 0.0
