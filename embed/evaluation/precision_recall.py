"""Precision and recall of scored pairs: thresholds, curves and intervals. Pure numpy.

A figure "at precision p" is taken at the lowest threshold at which false matches are at most `1 - p` of true ones, so
the precision reached is at least p. Precision is a ratio of counts, so equal scores (two images at the same Hamming
distance) are accepted or refused together: a threshold is always an observed score and admits all that are as high.

Intervals are the percentile bootstrap over photos, not over pairs: all edits of one photo stand and fall together.
Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embed.errors import EvaluationError
from embed.evaluation.scored_pairs import ScoredPairs

PRECISIONS: Final = (0.9, 0.99, 0.999)
MAX_CURVE_POINTS: Final = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """What is accepted at `threshold`; an infinite threshold accepts nothing."""

    threshold: float
    num_true: int
    num_false: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """Recall at one precision, one threshold for all kinds of pairs."""

    precision: float
    point: OperatingPoint
    overall: float
    interval: Interval
    by_kind: dict[str, float]
    interval_by_kind: dict[str, Interval]

    @property
    def is_measurable(self) -> bool:
        """Whether one false match could have been paid for; with fewer true pairs the figure says "no error at all"."""
        return self.point.num_true >= num_true_needed(self.precision)


def num_true_needed(precision: float) -> int:
    """How many true matches it takes to afford one false.

    >>> num_true_needed(0.999)
    1000
    """
    return math.ceil(1 / (1 - precision) - 1e-6)


def lowest_threshold(
    true_scores: NDArray[np.float32], false_scores: NDArray[np.float32], *, precision: float = 0.99
) -> OperatingPoint:
    """The lowest observed score at which false matches are at most `1 - precision` of the true ones.

    `true_scores` `(n,)` and `false_scores` `(m,)`: higher is more similar, in any order.

    Never more than `(1 - precision) n` false matches can be afforded, so only that many of the highest false
    scores are looked at: at and below the next one every threshold is too low.

    At 121 two false matches would need 200 true ones and 179 are there; above 150 one false needs 100 of 149:

    >>> lowest_threshold(np.arange(300, dtype=np.float32), np.float32([250, 150, 120, 50, 40]))
    OperatingPoint(threshold=151.0, num_true=149, num_false=1)
    """
    true_per_false = num_true_needed(precision)
    affordable = len(true_scores) // true_per_false
    too_low = -math.inf
    if len(false_scores) > affordable:
        false_scores = np.partition(false_scores, len(false_scores) - affordable - 1)[-affordable - 1 :]
        too_low = float(false_scores[0])
    observed = np.unique(np.concatenate([true_scores, false_scores]))
    observed = observed[observed > too_low]
    num_true = _num_at_least(observed, true_scores)
    num_false = _num_at_least(observed, false_scores)
    good = np.flatnonzero(num_false * true_per_false <= num_true)
    if not len(good):
        return OperatingPoint(threshold=math.inf, num_true=0, num_false=0)
    lowest = good[0]
    return OperatingPoint(
        threshold=float(observed[lowest]), num_true=int(num_true[lowest]), num_false=int(num_false[lowest])
    )


def _num_at_least(thresholds: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.int64]:
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")


def recall_at(pairs: ScoredPairs, precision: float, *, num_resamples: int = 200, seed: int = 0) -> Recall:
    """Recall over all pairs and by kind at the threshold for `precision`, with bootstrap intervals."""
    point = lowest_threshold(pairs.true_scores, pairs.false_scores, precision=precision)
    found = pairs.true_scores >= point.threshold
    num_kinds = len(pairs.kinds)
    resampled = _resampled_recalls(pairs, precision, num_resamples=num_resamples, seed=seed)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    intervals = [Interval(low=float(a), high=float(b)) for a, b in zip(low, high, strict=True)]
    by_kind = _shares(found, pairs.true_kind, np.ones(len(found)), num_kinds)
    return Recall(
        precision=precision,
        point=point,
        overall=float(found.mean()),
        interval=intervals[num_kinds],
        by_kind=dict(zip(pairs.kinds, by_kind.tolist(), strict=True)),
        interval_by_kind=dict(zip(pairs.kinds, intervals, strict=False)),
    )


def recall_gain(
    better: ScoredPairs, base: ScoredPairs, precision: float, *, num_resamples: int = 200, seed: int = 0
) -> tuple[float, Interval]:
    """How much more of the same true pairs `better` finds than `base`, each at its own threshold, with its interval.

    Both hold the same photos' pairs; the two are resampled together.
    """
    better_recalls, base_recalls = (
        _resampled_recalls(pairs, precision, num_resamples=num_resamples, seed=seed)[:, -1] for pairs in (better, base)
    )
    low, high = np.quantile(better_recalls - base_recalls, [0.025, 0.975])
    better_recall, base_recall = (
        (pairs.true_scores >= lowest_threshold(pairs.true_scores, pairs.false_scores, precision=precision).threshold)
        for pairs in (better, base)
    )
    return float(better_recall.mean() - base_recall.mean()), Interval(low=float(low), high=float(high))


def _shares(
    found: NDArray[np.bool_], kind: NDArray[np.int64], weight: NDArray[np.float64], num_kinds: int
) -> NDArray[np.float64]:
    """The weighted share of found pairs of each kind; 0 for a kind without weight."""
    total = np.bincount(kind, weight, num_kinds)
    return np.bincount(kind, weight * found, num_kinds) / np.maximum(total, 1e-12)


def _resampled_recalls(pairs: ScoredPairs, precision: float, *, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """`(num_resamples, num_kinds + 1)`: recall by kind, then overall, each with its own threshold."""
    rng = np.random.default_rng(seed)
    photos, compact = np.unique(np.concatenate([pairs.true_photo, pairs.false_photo]), return_inverse=True)
    true_photo, false_photo = np.split(compact, [len(pairs.true_photo)])
    scores = np.concatenate([pairs.true_scores, pairs.false_scores])
    order = np.argsort(-scores, kind="stable")
    ends_tie = np.append(scores[order][1:] != scores[order][:-1], True)
    recalls = np.empty((num_resamples, len(pairs.kinds) + 1))
    for row in recalls:
        times = np.bincount(rng.integers(0, len(photos), len(photos)), minlength=len(photos)).astype(np.float64)
        of_true, of_false = times[true_photo], times[false_photo]
        num_true = np.cumsum(np.concatenate([of_true, np.zeros(len(of_false))])[order])
        num_false = np.cumsum(np.concatenate([np.zeros(len(of_true)), of_false])[order])
        good = np.flatnonzero(ends_tie & (num_false * num_true_needed(precision) <= num_true) & (num_true > 0))
        threshold = scores[order][good[-1]] if len(good) else np.inf
        found = pairs.true_scores >= threshold
        row[:-1] = _shares(found, pairs.true_kind, of_true, len(pairs.kinds))
        row[-1] = (of_true * found).sum() / max(of_true.sum(), 1e-12)
    return recalls


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Precision against recall, thresholds descending."""

    thresholds: NDArray[np.float32]
    precisions: NDArray[np.float64]
    recalls: NDArray[np.float64]


def precision_recall_curve(pairs: ScoredPairs) -> Curve:
    """The curve at up to `MAX_CURVE_POINTS` observed thresholds, as far down as the kept false scores reach."""
    thresholds = np.unique(np.concatenate([pairs.true_scores, pairs.false_scores]))[::-1]
    if len(pairs.false_scores) >= len(pairs.true_scores):
        thresholds = thresholds[thresholds >= pairs.false_scores.min()]
    num_true = _num_at_least(thresholds, pairs.true_scores)
    num_false = _num_at_least(thresholds, pairs.false_scores)
    shown = np.unique(np.linspace(0, len(thresholds) - 1, MAX_CURVE_POINTS).astype(np.int64))
    return Curve(
        thresholds=thresholds[shown],
        precisions=(num_true / np.maximum(num_true + num_false, 1))[shown],
        recalls=(num_true / len(pairs.true_scores))[shown],
    )


def check_precisions(precisions: Sequence[float]) -> None:
    """Raise EvaluationError unless each is in 0.5..0.9999."""
    for precision in precisions:
        if not 0.5 <= precision <= 0.9999:
            raise EvaluationError(f"precision={precision} is out of range 0.5..0.9999; try 0.99")
