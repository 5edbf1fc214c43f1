"""The evaluation of one descriptor: recall at several precisions, curve, histograms and the worst pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.evaluation.precision_recall import (
    PRECISIONS,
    Curve,
    Interval,
    Recall,
    check_precisions,
    num_true_needed,
    precision_recall_curve,
    recall_at,
)
from embed.evaluation.scored_pairs import JudgedPair, ScoredPairs

NUM_BINS: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts of true pairs and of the highest false ones over the same `bin_edges` `(bins + 1,)`."""

    bin_edges: NDArray[np.float64]
    num_true: NDArray[np.int64]
    num_false: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What `evaluate` found; `recalls` has one entry a precision, in the order asked for."""

    descriptor: str
    num_true: int
    recalls: tuple[Recall, ...]
    curve: Curve
    histogram: Histogram
    worst_misses: tuple[JudgedPair, ...]
    worst_false: tuple[JudgedPair, ...]
    images_per_second: float | None

    def at(self, precision: float) -> Recall:
        """The entry of `recalls` for a precision."""
        return next(recall for recall in self.recalls if recall.precision == precision)

    def as_json(self) -> dict[str, Any]:
        """The figures as plain values, the worst pairs left out."""
        return {
            "descriptor": self.descriptor,
            "num_true_pairs": self.num_true,
            "images_per_second": self.images_per_second,
            "recall_at": [_recall_as_json(recall) for recall in self.recalls],
        }


def evaluate(
    descriptor: str,
    pairs: ScoredPairs,
    *,
    precisions: Sequence[float] = PRECISIONS,
    images_per_second: float | None = None,
    num_resamples: int = 200,
    seed: int = 0,
) -> Evaluation:
    """Summarise scored pairs; raises EvaluationError for a precision out of range."""
    check_precisions(precisions)
    everything = np.concatenate([pairs.true_scores, pairs.false_scores])
    edges = np.linspace(float(everything.min()), float(everything.max()) + 1e-6, NUM_BINS + 1)
    return Evaluation(
        descriptor=descriptor,
        num_true=len(pairs.true_scores),
        recalls=tuple(recall_at(pairs, p, num_resamples=num_resamples, seed=seed) for p in precisions),
        curve=precision_recall_curve(pairs),
        histogram=Histogram(
            bin_edges=edges,
            num_true=np.histogram(pairs.true_scores, edges)[0],
            num_false=np.histogram(pairs.false_scores, edges)[0],
        ),
        worst_misses=pairs.worst_misses,
        worst_false=pairs.worst_false,
        images_per_second=images_per_second,
    )


def warnings_of(evaluations: Sequence[Evaluation]) -> list[str]:
    """What a reader must know: precisions that too few true pairs cannot show."""
    return [
        f"precision {recall.precision:g} needs {num_true_needed(recall.precision):,} true matches to afford one false; "
        f"{evaluation.descriptor} has {recall.point.num_true:,}, so its figure there means no false match at all"
        for evaluation in evaluations[:1]
        for recall in evaluation.recalls
        if not recall.is_measurable
    ]


def _recall_as_json(recall: Recall) -> dict[str, Any]:
    def interval(value: Interval) -> list[float]:
        return [value.low, value.high]

    return {
        "precision": recall.precision,
        "threshold": recall.point.threshold,
        "num_true_matches": recall.point.num_true,
        "num_false_matches": recall.point.num_false,
        "recall": recall.overall,
        "interval": interval(recall.interval),
        "by_kind": {
            kind: {"recall": value, "interval": interval(recall.interval_by_kind[kind])}
            for kind, value in recall.by_kind.items()
        },
    }
