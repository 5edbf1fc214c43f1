"""The operating point of a descriptor: the lowest threshold that keeps false matches rare, and the recall there.

Precision is a ratio of counts, so equal scores (two images at the same Hamming distance) are accepted or refused
together: a threshold is always one of the observed scores and admits every score that is at least as high.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TRUE_PER_FALSE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """What is accepted at `threshold`; an infinite threshold accepts nothing."""

    threshold: float
    num_true: int
    num_false: int


def lowest_threshold(true_scores: NDArray[np.float32], false_scores: NDArray[np.float32]) -> OperatingPoint:
    """The lowest observed score at which `TRUE_PER_FALSE` times the false matches are at most the true ones.

    `true_scores` `(n,)` and `false_scores` `(m,)`: higher is more similar, in any order.

    Never more than `n // TRUE_PER_FALSE` false matches can be afforded, so only that many of the highest false
    scores are looked at: at and below the next one every threshold is too low.

    At 121 two false matches would need 200 true ones and 179 are there; above 150 one false needs 100 of 149:

    >>> lowest_threshold(np.arange(300, dtype=np.float32), np.float32([250, 150, 120, 50, 40]))
    OperatingPoint(threshold=151.0, num_true=149, num_false=1)
    """
    affordable = len(true_scores) // TRUE_PER_FALSE
    too_low = -math.inf
    if len(false_scores) > affordable:
        false_scores = np.partition(false_scores, len(false_scores) - affordable - 1)[-affordable - 1 :]
        too_low = float(false_scores[0])
    observed = np.unique(np.concatenate([true_scores, false_scores]))
    observed = observed[observed > too_low]
    num_true = _num_at_least(observed, true_scores)
    num_false = _num_at_least(observed, false_scores)
    good = np.flatnonzero(num_false * TRUE_PER_FALSE <= num_true)
    if not len(good):
        return OperatingPoint(threshold=math.inf, num_true=0, num_false=0)
    lowest = good[0]
    return OperatingPoint(
        threshold=float(observed[lowest]), num_true=int(num_true[lowest]), num_false=int(num_false[lowest])
    )


def _num_at_least(thresholds: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.int64]:
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")
