"""The histogram of scores as a drawing: where its bars, ticks and threshold go, in units of the SVG.

Counts are drawn on a logarithmic axis, since random pairs outnumber near-duplicates a thousandfold. Scores are
drawn on a linear one, without the empty bins at either end. Read by `page.html`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cli.report.model import ScoreHistogram

WIDTH, HEIGHT = 760, 358
LEFT, RIGHT, TOP, BOTTOM = 76, 736, 58, 298
# The axis starts below one, so that a single pair still has a bar.
_LOWEST_COUNT = 0.6


@dataclass(frozen=True, slots=True)
class Bar:
    """One bin: its rectangle, and what it says when pointed at."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis; a minor one may be left out on a narrow screen."""

    position: float
    label: str
    is_minor: bool


@dataclass(frozen=True, slots=True)
class Drawing:
    """Everything the SVG needs; `threshold` is None where it lies outside the drawn range."""

    bars: tuple[Bar, ...]
    score_ticks: tuple[Tick, ...]
    count_ticks: tuple[Tick, ...]
    threshold: float | None
    accepted_from: float
    num_pairs: int


def draw(histogram: ScoreHistogram) -> Drawing:
    """Places for the bars of the bins that hold pairs, for the ticks of both axes, and for the threshold."""
    shown = _bins_with_pairs_or_threshold(histogram)
    edges = [float(edge) for edge in histogram.bin_edges[shown.start : shown.stop + 1]]
    counts = [int(count) for count in histogram.counts[shown]]
    lowest, highest = edges[0], edges[-1]
    num_decades = max(1, math.ceil(math.log10(max(*counts, 1))))

    def x_of(score: float) -> float:
        return LEFT + (RIGHT - LEFT) * (score - lowest) / (highest - lowest)

    def y_of(count: float) -> float:
        share = math.log10(count / _LOWEST_COUNT) / (num_decades - math.log10(_LOWEST_COUNT))
        return BOTTOM - (BOTTOM - TOP) * share

    def bar(left: float, right: float, count: int) -> Bar:
        label = f"{left:.3g} to {right:.3g}: {count:,} {'pair' if count == 1 else 'pairs'}"
        return Bar(round(x_of(left), 2), round(y_of(count), 2), round(x_of(right) - x_of(left), 2),
                   round(BOTTOM - y_of(count), 2), label)  # fmt: skip

    threshold = round(x_of(histogram.min_score), 2) if lowest <= histogram.min_score <= highest else None
    return Drawing(
        bars=tuple(
            bar(left, right, count) for left, right, count in zip(edges, edges[1:], counts, strict=False) if count
        ),
        score_ticks=tuple(
            Tick(round(x_of(value), 2), label, is_minor) for value, label, is_minor in _round_values(lowest, highest)
        ),
        count_ticks=tuple(
            Tick(round(y_of(10**decade), 2), _short_count(10**decade), num_decades > 5 and decade % 2 == 1)
            for decade in range(num_decades + 1)
        ),
        threshold=threshold,
        accepted_from=min(max(x_of(histogram.min_score), LEFT), RIGHT),
        num_pairs=sum(counts),
    )


def _bins_with_pairs_or_threshold(histogram: ScoreHistogram) -> slice:
    """The bins from the first to the last that hold pairs or the threshold; all of them where there are no pairs."""
    bins = np.flatnonzero(histogram.counts)
    if not len(bins):
        return slice(0, len(histogram.counts))
    of_threshold = int(np.searchsorted(histogram.bin_edges, histogram.min_score, side="right")) - 1
    if 0 <= of_threshold < len(histogram.counts):
        bins = np.append(bins, of_threshold)
    return slice(int(bins.min()), int(bins.max()) + 1)


def _round_values(lowest: float, highest: float) -> list[tuple[float, str, bool]]:
    """Five to eleven multiples of 1, 2 or 5 times a power of ten within a range; every second one is minor."""
    magnitude = 10.0 ** math.floor(math.log10((highest - lowest) / 10))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if (highest - lowest) / (magnitude * factor) <= 10.001)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(lowest / step - 1e-9), math.floor(highest / step + 1e-9)
    return [
        (index * step, f"{index * step + 0.0:.{digits}f}", (last - index) % 2 == 1) for index in range(first, last + 1)
    ]


def _short_count(count: int) -> str:
    for factor, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= factor:
            return f"{count // factor}{unit}"
    return str(count)
