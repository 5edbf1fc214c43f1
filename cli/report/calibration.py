"""Writes a calibration as one HTML file: the promise, the reliability diagram and the parameters. No script."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from cli.report import html
from cli.report.whole_file import write_whole_file
from embed.calibration.fitting import Fitted

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 736, 24, 372
MAX_CURVE_POINTS: Final = 200


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """What the page says; `clusters` is None where only pairs were judged."""

    created_at: datetime
    fitted: Fitted
    clusters: Mapping[str, Any] | None
    parameters: Mapping[str, str]


def write_calibration_report(report: CalibrationReport, path: Path) -> None:
    """Write `report` to `path` as one HTML file, whole or not at all; raises ReportError where it cannot be written."""
    style = html.style_sheet()
    page = html.template("calibration.html").generate(
        report=report,
        calibration=report.fitted.calibration,
        version=html.release(),
        policy=html.content_security_policy(style),
        style=style,
        chart={"WIDTH": WIDTH, "HEIGHT": HEIGHT, "LEFT": LEFT, "RIGHT": RIGHT, "TOP": TOP, "BOTTOM": BOTTOM},
        ticks=[(_x(share), _y(share), f"{share:.1f}") for share in np.linspace(0, 1, 6).tolist()],
        bins=_bins(report.fitted),
        scale=_scale(report.fitted),
    )
    write_whole_file(path, page)


def _x(share: float) -> float:
    return round(LEFT + (RIGHT - LEFT) * share, 1)


def _y(share: float) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * share, 1)


def _bins(fitted: Fitted) -> list[dict[str, Any]]:
    """A dot a bin, larger where more pairs fall."""
    reliability = fitted.reliability
    most = float(reliability.weight.max())
    return [
        {
            "x": _x(predicted),
            "y": _y(observed),
            "radius": round(4 + 8 * (weight / most) ** 0.5, 1),
            "label": f"predicted {predicted:.3f}, observed {observed:.3f}, {weight:.3g} pairs a query",
        }
        for predicted, observed, weight in zip(
            reliability.predicted.tolist(), reliability.observed.tolist(), reliability.weight.tolist(), strict=True
        )
    ]


def _scale(fitted: Fitted) -> dict[str, Any]:
    """The curve from raw score to probability, with the threshold."""
    calibration = fitted.calibration
    low, high = calibration.raw_scores[0], calibration.raw_scores[-1]
    raw = np.linspace(low, high, MAX_CURVE_POINTS)
    probabilities = calibration.apply(raw.astype(np.float32)).tolist()
    points = zip(np.linspace(0, 1, MAX_CURVE_POINTS).tolist(), probabilities, strict=True)
    return {
        "points": " ".join(f"{_x(share)},{_y(probability)}" for share, probability in points),
        "threshold": _x((calibration.threshold - low) / (high - low)),
        "ticks": [(_x(share), f"{low + share * (high - low):.3g}") for share in np.linspace(0, 1, 6).tolist()],
    }
