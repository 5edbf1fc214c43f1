"""Fitting a calibration: probabilities that hold, a threshold that keeps its promise."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from embed.calibration.fitting import Prior, fit_calibration
from embed.errors import CalibrationError
from embed.evaluation.scored_pairs import ScoredPairs

PRIOR = Prior(true_pairs_per_query=1.0, corpus_size=1000)
NUM_PHOTOS, NUM_EDITS, CORPUS = 300, 10, 1000


@cache
def scored_pairs(seed: int, *, num_photos: int = NUM_PHOTOS) -> ScoredPairs:
    """True scores around 0.8, false ones around 0.1, the highest 20,000 of all false ones kept."""
    rng = np.random.default_rng(seed)
    num_true = num_photos * NUM_EDITS
    false = rng.normal(0.1, 0.13, (num_true, CORPUS)).astype(np.float32)
    top = np.argsort(-false, axis=None)[:20_000]
    photo = np.repeat(np.arange(num_photos), NUM_EDITS)
    return ScoredPairs(
        kinds=("edit",),
        true_scores=rng.normal(0.8, 0.1, num_true).astype(np.float32),
        true_kind=np.zeros(num_true, np.int64),
        true_photo=photo,
        false_scores=false.ravel()[top],
        false_photo=photo[top // CORPUS],
    )


def num_compared(num_photos: int = NUM_PHOTOS) -> int:
    return num_photos * NUM_EDITS * CORPUS


def precision_at(pairs: ScoredPairs, threshold: float) -> float:
    num_true = int((pairs.true_scores >= threshold).sum())
    return num_true / (num_true + int((pairs.false_scores >= threshold).sum()))


def test_the_threshold_keeps_its_promise_on_photos_it_never_saw() -> None:
    fitted = fit_calibration(
        scored_pairs(0), num_false_compared=num_compared(), prior=PRIOR, precision=0.99, scored_by="x"
    )
    promise = fitted.calibration.promise
    achieved = [precision_at(scored_pairs(seed), fitted.calibration.threshold) for seed in range(1, 6)]
    assert 0.99 <= promise.lower_bound <= promise.precision <= promise.upper_bound
    assert all(promise.lower_bound - 0.003 <= precision <= promise.upper_bound + 0.003 for precision in achieved)


def test_probabilities_equal_observed_shares_on_photos_it_never_saw() -> None:
    fitted = fit_calibration(
        scored_pairs(0), num_false_compared=num_compared(), prior=PRIOR, precision=0.99, scored_by="x"
    )
    np.testing.assert_allclose(fitted.reliability.predicted, fitted.reliability.observed, atol=0.12)


def test_fewer_photos_ask_for_a_higher_threshold() -> None:
    def threshold(num_photos: int) -> float:
        pairs = scored_pairs(0, num_photos=num_photos)
        return fit_calibration(
            pairs, num_false_compared=num_compared(num_photos), prior=PRIOR, precision=0.99, scored_by="x"
        ).calibration.threshold

    assert threshold(20) > threshold(300)


def test_a_larger_corpus_asks_for_a_higher_threshold() -> None:
    def threshold(corpus_size: int) -> float:
        prior = Prior(true_pairs_per_query=1.0, corpus_size=corpus_size)
        return fit_calibration(
            scored_pairs(0), num_false_compared=num_compared(), prior=prior, precision=0.99, scored_by="x"
        ).calibration.threshold

    assert threshold(100) < threshold(1000) < threshold(10_000)


def test_the_same_seed_gives_the_same_calibration() -> None:
    first, second = (
        fit_calibration(
            scored_pairs(0), num_false_compared=num_compared(), prior=PRIOR, precision=0.99, scored_by="x", seed=4
        )
        for _ in range(2)
    )
    assert first.calibration.digest == second.calibration.digest


def test_a_precision_out_of_reach_names_the_best() -> None:
    prior = Prior(true_pairs_per_query=1e-3, corpus_size=10**9)
    with pytest.raises(CalibrationError, match=r"no threshold reaches precision 0\.99 .* Give more photos"):
        fit_calibration(scored_pairs(0), num_false_compared=num_compared(), prior=prior, precision=0.99, scored_by="x")


def test_too_few_photos_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"5 photos .* too few"):
        fit_calibration(
            scored_pairs(0, num_photos=5),
            num_false_compared=num_compared(5),
            prior=PRIOR,
            precision=0.99,
            scored_by="x",
        )


@pytest.mark.parametrize(
    ("prior", "said"),
    [
        ({"true_pairs_per_query": 0.0, "corpus_size": 10}, "true_pairs_per_query=0.0 is out of range"),
        ({"true_pairs_per_query": 1.0, "corpus_size": 0}, "corpus_size=0 is out of range"),
    ],
)
def test_an_impossible_prior_is_refused(prior: dict[str, float], said: str) -> None:
    with pytest.raises(CalibrationError, match=said):
        Prior(**prior)  # type: ignore[arg-type]


def test_a_precision_that_promises_nothing_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"precision=0\.3 is out of range"):
        fit_calibration(scored_pairs(0), num_false_compared=num_compared(), prior=PRIOR, precision=0.3, scored_by="x")
