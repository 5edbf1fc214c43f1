"""Whether a run's coverage and scores are like those of the last thirty runs.

Figures come from the runs' records alone. Scores are compared by the total variation distance between the histograms of
the matches' scores: the share of one run's matches that would have to move to another score to look like the other's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batch_jobs.run_records import NIGHTLY, RunRecord

MAX_RUNS = 30
MIN_RUNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One figure of a run beside those of earlier ones; `is_unusual` where it lies outside all of `MIN_RUNS` or more.

    `median`, `lowest` and `highest` are None without earlier runs, `value` where the run has no such figure.
    """

    figure: str
    value: float | None
    num_runs: int
    median: float | None
    lowest: float | None
    highest: float | None

    @property
    def is_unusual(self) -> bool:
        if self.value is None or self.lowest is None or self.highest is None or self.num_runs < MIN_RUNS:
            return False
        return not self.lowest <= self.value <= self.highest


def drift(record: RunRecord, earlier: Iterable[RunRecord]) -> list[Drift]:
    """The figures of a finished run beside those of finished ones, newest first; at most `MAX_RUNS` are looked at.

    Scores are compared only with runs of the same scorer and threshold.
    """
    runs = [one for one, _ in zip(earlier, range(MAX_RUNS), strict=False)]
    figures = [
        _beside(name, _figures(record)[name], [_figures(one)[name] for one in runs]) for name in _figures(record)
    ]
    alike = [one for one in runs if (one.scorer_digest, one.min_score) == (record.scorer_digest, record.min_score)]
    histograms = [found for one in alike if (found := match_histogram(one)) is not None]
    ours = match_histogram(record)
    if ours is None or not histograms:
        return [*figures, _beside("score drift", None, [])]
    pooled = np.sum(histograms, axis=0)
    theirs = [distance(one, pooled - one) for one in histograms] if len(histograms) > 1 else []
    return [*figures, _beside("score drift", distance(ours, pooled), theirs)]


def distance(left: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    """The total variation distance of two histograms with the same bins, 0..1; 1 where just one is empty.

    >>> distance(np.array([1, 1, 0]), np.array([0, 2, 2]))
    0.5
    """
    if not left.sum() or not right.sum():
        return float(bool(left.sum()) != bool(right.sum()))
    return float(np.abs(left / left.sum() - right / right.sum()).sum() / 2)


def match_histogram(record: RunRecord) -> NDArray[np.int64] | None:
    """The candidates' scores from `min_score` on, by bin over -1..1; None where the run has counted none."""
    counted = record.stat("select", "score_histogram")
    if counted is None:
        return None
    counts = np.array(counted, np.int64)
    edges = np.linspace(-1.0, 1.0, len(counts) + 1)
    counts[edges[1:] <= record.min_score] = 0
    return counts


def _figures(record: RunRecord) -> dict[str, float | None]:
    """Figures that do not grow with the corpus."""
    results = record.results
    seen = _num_seen(record)
    embedded = seen - results.get("rejected", 0)
    num_clustered = results.get("images", 0) if record.command == NIGHTLY else embedded
    histogram = match_histogram(record)
    selected = record.step("select")
    num_matches = selected.num_rows.get("edges") if selected else None
    mean_score = None
    if histogram is not None and histogram.sum():
        centers = np.linspace(-1.0, 1.0, len(histogram) + 1)
        mean_score = float(np.average((centers[1:] + centers[:-1]) / 2, weights=histogram))
    return {
        "coverage": _ratio(embedded, seen),
        "duplicates per image": _ratio(results.get("duplicates"), num_clustered),
        "candidates per image": _ratio(results.get("candidates"), embedded),
        "matches per image": _ratio(num_matches, embedded),
        "mean score of matches": mean_score,
    }


def _num_seen(record: RunRecord) -> int:
    """The images that a run has opened: all of its source, of a night those that came or changed."""
    results = record.results
    if record.command != NIGHTLY:
        return int(results.get("images", 0))
    catalogued = record.step("catalogue")
    num_unreadable = catalogued.num_rows["rejects"] if catalogued else 0
    return int(results.get("new", 0)) + int(results.get("changed", 0)) + num_unreadable


def _ratio(part: float | None, whole: float) -> float | None:
    return None if part is None or not whole else part / whole


def _beside(figure: str, value: float | None, others: Sequence[float | None]) -> Drift:
    known = [one for one in others if one is not None]
    return Drift(
        figure=figure,
        value=value,
        num_runs=len(known),
        median=float(np.median(known)) if known else None,
        lowest=min(known, default=None),
        highest=max(known, default=None),
    )
