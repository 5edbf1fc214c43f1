"""Fits a calibration to scored pairs whose truth is known.

Pairs come from photos, and all pairs of a photo stand and fall together, so everything that is held out or resampled
here is whole photos. True and false pairs are weighted to what a query meets under a stated prior: so many true pairs,
and as many other images as its corpus holds. The same scores are worth less in a larger corpus.

Sources: isotonic regression, Zadrozny and Elkan, KDD 2002; logistic, Platt, 1999; the bootstrap, Efron and Tibshirani,
"An Introduction to the Bootstrap", 1993.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from embed.calibration.calibration import Calibration, Promise
from embed.errors import CalibrationError
from embed.evaluation.scored_pairs import ScoredPairs

NUM_FOLDS: Final = 5
NUM_RESAMPLES: Final = 2000
MAX_THRESHOLDS: Final = 512
MAX_KNOTS: Final = 256
NUM_RELIABILITY_BINS: Final = 10
METHODS: Final = ("logistic", "isotonic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What a query meets: how many near-duplicates it has on average, in a corpus of how many other images."""

    true_pairs_per_query: float
    corpus_size: int

    def __post_init__(self) -> None:
        if not 1e-6 <= self.true_pairs_per_query <= 1e6:
            raise CalibrationError(f"true_pairs_per_query={self.true_pairs_per_query} is out of range 1e-6..1e6; try 1")
        if not 1 <= self.corpus_size <= 10**12:
            raise CalibrationError(f"corpus_size={self.corpus_size} is out of range 1..1e12")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Predicted against observed, by bins of the predicted probability, on photos held out of the fit; `(bins,)`."""

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    weight: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A calibration, the held-out log loss of each method, and how well the chosen one held on photos it never saw."""

    calibration: Calibration
    log_loss: dict[str, float]
    reliability: Reliability


@dataclass(frozen=True, slots=True, eq=False)
class _Weighted:
    """All pairs as `(m,)` arrays; `weight` is how often a query meets such a pair."""

    scores: NDArray[np.float64]
    is_true: NDArray[np.bool_]
    photo: NDArray[np.int64]
    weight: NDArray[np.float64]


def fit_calibration(
    pairs: ScoredPairs,
    *,
    num_false_compared: int,
    prior: Prior,
    precision: float,
    scored_by: str,
    seed: int = 0,
) -> Fitted:
    """Fit both methods, keep the one of lower held-out log loss, and choose the threshold for `precision`.

    `pairs` holds the highest of `num_false_compared` false scores. Raises CalibrationError when no threshold reaches
    `precision` with confidence.
    """
    if not 0.5 <= precision <= 0.9999:
        raise CalibrationError(f"precision={precision} is out of range 0.5..0.9999; try 0.99")
    weighted = _weigh(pairs, num_false_compared, prior)
    if len(np.unique(weighted.photo)) < 2 * NUM_FOLDS or not len(pairs.false_scores):
        raise CalibrationError(
            f"{len(np.unique(weighted.photo))} photos with {len(pairs.false_scores)} false pairs are too few to "
            f"calibrate on; give a few hundred photos of the kind you will look up"
        )
    folds = np.random.default_rng(seed).integers(0, NUM_FOLDS, int(weighted.photo.max()) + 1)[weighted.photo]
    held_out = {method: _held_out(method, weighted, folds) for method in METHODS}
    log_loss = {method: _log_loss(predicted, weighted) for method, predicted in held_out.items()}
    method = min(METHODS, key=log_loss.__getitem__)
    knots, probabilities = _fit(method, weighted)
    threshold, promise = _lowest_threshold(pairs, num_false_compared, prior, precision=precision, seed=seed)
    return Fitted(
        calibration=Calibration(
            method=method,
            raw_scores=tuple(knots.tolist()),
            probabilities=tuple(probabilities.tolist()),
            threshold=threshold,
            promise=promise,
            scored_by=scored_by,
        ),
        log_loss=log_loss,
        reliability=_reliability(held_out[method], weighted),
    )


def _weigh(pairs: ScoredPairs, num_false_compared: int, prior: Prior) -> _Weighted:
    """True pairs weigh `true_pairs_per_query` together, false ones `corpus_size` if all had been kept.

    True pairs below the lowest kept false score are left out: nothing is known about false ones there.
    """
    known = pairs.true_scores >= pairs.false_scores.min(initial=np.inf)
    num_true = int(known.sum())
    return _Weighted(
        scores=np.concatenate([pairs.true_scores[known], pairs.false_scores]).astype(np.float64),
        is_true=np.repeat([True, False], [num_true, len(pairs.false_scores)]),
        photo=np.concatenate([pairs.true_photo[known], pairs.false_photo]),
        weight=np.repeat(
            [prior.true_pairs_per_query / len(pairs.true_scores), prior.corpus_size / num_false_compared],
            [num_true, len(pairs.false_scores)],
        ),
    )


def _fit(method: str, pairs: _Weighted) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Knots and their probabilities."""
    low, high = float(pairs.scores.min()), float(pairs.scores.max())
    knots = np.unique(np.quantile(pairs.scores, np.linspace(0, 1, MAX_KNOTS)))
    if len(knots) < 2:
        raise CalibrationError(f"all raw scores are {low:g}; nothing tells true pairs from false ones")
    weight = pairs.weight / pairs.weight.mean()
    if method == "logistic":
        middle, spread = (low + high) / 2, (high - low) / 2
        model = LogisticRegression(C=1e6, max_iter=1000)
        model.fit(((pairs.scores - middle) / spread)[:, None], pairs.is_true, sample_weight=weight)
        slope = max(float(model.coef_[0, 0]), 0.0)
        logits = slope * (knots - middle) / spread + float(model.intercept_[0])
        return knots, 1 / (1 + np.exp(-logits))
    isotonic = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    level = isotonic.fit_transform(pairs.scores, pairs.is_true.astype(np.float64), sample_weight=weight)
    return _centred(pairs.scores, level, weight)


def _centred(
    scores: NDArray[np.float64], level: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Isotonic regression with each step reduced to its centre, so that nearly all scores keep their order.

    Source: Oron and Flournoy, "Centered Isotonic Regression", arXiv 1701.05964.
    """
    levels, step = np.unique(level, return_inverse=True)
    total = np.bincount(step, weight)
    centres = np.bincount(step, weight * scores) / total
    knots = np.concatenate([[scores.min()], centres, [scores.max()]])
    probabilities = np.concatenate([levels[:1], levels, levels[-1:]])
    first = np.append(True, np.diff(knots) > 0)
    return knots[first], probabilities[first]


def _held_out(method: str, pairs: _Weighted, folds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each pair's probability by a fit on the photos of the other folds."""
    predicted = np.empty(len(pairs.scores))
    for fold in range(NUM_FOLDS):
        rest = folds != fold
        part = _Weighted(pairs.scores[rest], pairs.is_true[rest], pairs.photo[rest], pairs.weight[rest])
        if part.is_true.all() or not part.is_true.any():
            raise CalibrationError("true and false pairs come from too few photos; give more photos to calibrate on")
        predicted[~rest] = np.interp(pairs.scores[~rest], *_fit(method, part))
    return predicted


def _log_loss(predicted: NDArray[np.float64], pairs: _Weighted) -> float:
    clipped = np.clip(predicted, 1e-4, 1 - 1e-4)
    losses = -np.log(np.where(pairs.is_true, clipped, 1 - clipped))
    return float(np.average(losses, weights=pairs.weight))


def _reliability(predicted: NDArray[np.float64], pairs: _Weighted) -> Reliability:
    bins = np.minimum((predicted * NUM_RELIABILITY_BINS).astype(np.int64), NUM_RELIABILITY_BINS - 1)
    weight = np.bincount(bins, pairs.weight, NUM_RELIABILITY_BINS)
    used = weight > 0
    total = np.maximum(weight, 1e-300)
    return Reliability(
        predicted=(np.bincount(bins, pairs.weight * predicted, NUM_RELIABILITY_BINS) / total)[used],
        observed=(np.bincount(bins, pairs.weight * pairs.is_true, NUM_RELIABILITY_BINS) / total)[used],
        weight=weight[used].astype(np.float64),
    )


def _lowest_threshold(
    pairs: ScoredPairs, num_false_compared: int, prior: Prior, *, precision: float, seed: int
) -> tuple[float, Promise]:
    """The lowest raw score whose precision is at least `precision` in 95 of 100 resamples of the photos.

    Each resample counts one false pair more than it has: a kind of look-alike that these photos do not show.
    """
    thresholds = _thresholds_to_try(pairs)
    photos, compact = np.unique(np.concatenate([pairs.true_photo, pairs.false_photo]), return_inverse=True)
    true_photo, false_photo = np.split(compact, [len(pairs.true_photo)])
    num_true = _counts_from(thresholds, pairs.true_scores, true_photo, len(photos))
    num_false = _counts_from(thresholds, pairs.false_scores, false_photo, len(photos))
    pairs_of_photo = np.bincount(true_photo, minlength=len(photos))
    rng = np.random.default_rng(seed)
    times = rng.multinomial(len(photos), np.full(len(photos), 1 / len(photos)), NUM_RESAMPLES).astype(np.float64)

    def precision_of(times: NDArray[np.float64], unseen: float) -> NDArray[np.float64]:
        found = times @ num_true / np.maximum(times @ pairs_of_photo, 1)[:, None] * prior.true_pairs_per_query
        wrong = (times @ num_false + unseen) * (prior.corpus_size / num_false_compared)
        return found / np.maximum(found + wrong, 1e-300)

    resampled = precision_of(times, 1.0)
    lower, upper = np.quantile(resampled, 0.05, axis=0), np.quantile(resampled, 0.975, axis=0)
    good = np.flatnonzero(lower >= precision)
    if not len(good):
        best = int(np.argmax(lower))
        raise CalibrationError(
            f"no threshold reaches precision {precision:g} with 95 % confidence under {prior.true_pairs_per_query:g} "
            f"true pairs a query in a corpus of {prior.corpus_size:,}; the best is {lower[best]:.4f} at raw score "
            f"{thresholds[best]:.4f}. Give more photos, a lower precision, or a smaller corpus size"
        )
    chosen = int(good[0])
    once = np.ones((1, len(photos)))
    return float(thresholds[chosen]), Promise(
        target=precision,
        precision=float(precision_of(once, 0.0)[0, chosen]),
        lower_bound=float(lower[chosen]),
        upper_bound=float(upper[chosen]),
        recall=float((pairs.true_scores >= thresholds[chosen]).mean()),
        true_pairs_per_query=prior.true_pairs_per_query,
        corpus_size=prior.corpus_size,
    )


def _thresholds_to_try(pairs: ScoredPairs) -> NDArray[np.float32]:
    """Observed scores, ascending, none below the lowest false score kept."""
    scores = np.unique(np.concatenate([pairs.true_scores, pairs.false_scores]))
    scores = scores[scores >= pairs.false_scores.min()]
    tried: NDArray[np.float32] = scores[np.unique(np.linspace(0, len(scores) - 1, MAX_THRESHOLDS).astype(np.int64))]
    return tried


def _counts_from(
    thresholds: NDArray[np.float32], scores: NDArray[np.float32], photo: NDArray[np.int64], num_photos: int
) -> NDArray[np.float64]:
    """`(num_photos, len(thresholds))`: how many of a photo's scores are at least each threshold."""
    counts = np.zeros((num_photos, len(thresholds) + 1))
    np.add.at(counts, (photo, np.searchsorted(thresholds, scores, side="right")), 1)
    return counts[:, :0:-1].cumsum(axis=1)[:, ::-1]
