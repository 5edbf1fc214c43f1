"""Writes an evaluation as one HTML file: recall by kind, the curve, the histogram and the worst pairs as images.

Used by `neardup evaluate --report`. The page has no script.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cli.report import html
from cli.report.thumbnails import media_type
from cli.report.whole_file import write_whole_file
from embed.evaluation.evaluation import Evaluation, Histogram

WIDTH, HEIGHT = 760, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 736, 24, 292
LOWEST_PRECISION: Final = 0.8
COLORS: Final = ("var(--accent)", "#0f9d76", "#d9822b", "#c2417c")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPair:
    """A pair of images with its score; a thumbnail is None where the image cannot be read any more."""

    kind: str
    score: float
    left: bytes | None
    left_name: str
    right: bytes | None
    right_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """What the page says. `evaluations` has ours first; the worst pairs are those of the first.

    `precision`, one of those evaluated, is the one that the table by kind shows.
    """

    source: str
    created_at: datetime
    precision: float
    evaluations: Sequence[Evaluation]
    parameters: Mapping[str, str]
    warnings: Sequence[str]
    rejects: Sequence[tuple[str, str]]
    worst_misses: Sequence[ShownPair]
    worst_false: Sequence[ShownPair]


@dataclass(frozen=True, slots=True)
class Line:
    """A curve of the drawing: SVG points, colour and name."""

    points: str
    color: str
    name: str


def write_evaluation_report(report: EvaluationReport, path: Path) -> None:
    """Write `report` to `path` as one HTML file, whole or not at all; raises ReportError where it cannot be written."""
    style = html.style_sheet()
    page = html.template("evaluation.html").generate(
        report=report,
        version=html.release(),
        policy=html.content_security_policy(style),
        style=style,
        kinds=list(report.evaluations[0].at(report.precision).by_kind),
        chart={"WIDTH": WIDTH, "HEIGHT": HEIGHT, "LEFT": LEFT, "RIGHT": RIGHT, "TOP": TOP, "BOTTOM": BOTTOM},
        curves=_curves(report.evaluations),
        recall_ticks=[(_x(share), f"{share:.1f}") for share in np.linspace(0, 1, 6).tolist()],
        precision_ticks=[(_y_of_precision(share), f"{share:.2f}") for share in (0.8, 0.85, 0.9, 0.95, 1.0)],
        bars=_bars(report.evaluations[0].histogram),
        score_ticks=_score_ticks(report.evaluations[0].histogram),
        thresholds=_thresholds(report.evaluations[0]),
        as_image=_as_image,
        as_score=_as_score,
    )
    write_whole_file(path, page)


def _as_image(thumbnail: bytes) -> str:
    return f"data:{media_type(thumbnail)};base64,{base64.b64encode(thumbnail).decode('ascii')}"


def _as_score(score: float) -> str:
    return f"{score:.4f}" if math.isfinite(score) else "none"


def _x(recall: float) -> float:
    return round(LEFT + (RIGHT - LEFT) * recall, 1)


def _y_of_precision(precision: float) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * (max(precision, LOWEST_PRECISION) - LOWEST_PRECISION) / 0.2, 1)


def _curves(evaluations: Sequence[Evaluation]) -> list[Line]:
    lines = []
    for evaluation, color in zip(evaluations, COLORS, strict=False):
        curve = evaluation.curve
        shown = curve.precisions >= LOWEST_PRECISION
        points = zip(curve.recalls[shown].tolist(), curve.precisions[shown].tolist(), strict=True)
        lines.append(Line(" ".join(f"{_x(r)},{_y_of_precision(p)}" for r, p in points), color, evaluation.descriptor))
    return lines


def _bars(histogram: Histogram) -> list[dict[str, Any]]:
    """One rectangle a bin and side, counts on a logarithmic axis."""
    most = max(int(histogram.num_true.max()), int(histogram.num_false.max()), 1)
    width = (RIGHT - LEFT) / len(histogram.num_true)

    def side(counts: NDArray[np.int64], name: str) -> list[dict[str, Any]]:
        return [
            {
                "side": name,
                "x": round(LEFT + width * place, 1),
                "width": round(width, 2),
                "height": round((BOTTOM - TOP) * math.log1p(count) / math.log1p(most), 1),
                "label": f"{low:.3f} to {high:.3f}: {count:,} {name} pairs",
            }
            for place, (count, low, high) in enumerate(
                zip(counts.tolist(), histogram.bin_edges[:-1].tolist(), histogram.bin_edges[1:].tolist(), strict=True)
            )
            if count
        ]

    return side(histogram.num_false, "false") + side(histogram.num_true, "true")


def _x_of_score(histogram: Histogram, score: float) -> float:
    low, high = float(histogram.bin_edges[0]), float(histogram.bin_edges[-1])
    return round(LEFT + (RIGHT - LEFT) * (score - low) / (high - low), 1)


def _score_ticks(histogram: Histogram) -> list[tuple[float, str]]:
    scores = np.linspace(histogram.bin_edges[0], histogram.bin_edges[-1], 6).tolist()
    return [(_x_of_score(histogram, score), f"{score:.2f}") for score in scores]


def _thresholds(evaluation: Evaluation) -> list[tuple[float, str]]:
    """Where each precision's threshold lies on the axis of scores."""
    return [
        (_x_of_score(evaluation.histogram, recall.point.threshold), f"{recall.precision:g}")
        for recall in evaluation.recalls
        if math.isfinite(recall.point.threshold)
    ]
