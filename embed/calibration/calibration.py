"""A calibration: the monotone map from a pair's raw score to a probability, and the threshold it was made for.

Kept as `calibration.json` in the embedder directory whose raw scores it maps. Applying one needs numpy alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.errors import CalibrationError, EmbedderError

FORMAT_VERSION: Final = 1
CALIBRATION_FILE: Final = "calibration.json"
MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What a threshold promises, and under what.

    Of the pairs accepted, a share of `precision` is right, and of at least `lower_bound` with 95 % confidence, when a
    query has `true_pairs_per_query` near-duplicates on average and is compared with `corpus_size` other images.
    `recall` is the share of the true pairs of the photos calibrated on that it accepts.
    """

    target: float
    precision: float
    lower_bound: float
    upper_bound: float
    recall: float
    true_pairs_per_query: float
    corpus_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Raw scores at `raw_scores` have `probabilities`, those between them lie on the line; both ascend, `(k,)`.

    A raw score from `threshold` on is a match; `min_score` is its probability. `scored_by` is the digest of what makes
    the raw scores: a calibration for another is refused.
    """

    method: str
    raw_scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    threshold: float
    promise: Promise
    scored_by: str

    def __post_init__(self) -> None:
        if self.method not in ("logistic", "isotonic"):
            raise CalibrationError(f"method={self.method!r} is unknown; it is logistic or isotonic")
        knots, probabilities = np.asarray(self.raw_scores, np.float64), np.asarray(self.probabilities, np.float64)
        if knots.shape != probabilities.shape or knots.size < 2:
            raise CalibrationError(
                f"{knots.size} raw scores and {probabilities.size} probabilities; at least 2 of each"
            )
        if not (np.isfinite(knots).all() and (np.diff(knots) > 0).all()):
            raise CalibrationError("raw_scores must be finite and ascend")
        if not ((np.diff(probabilities) >= 0).all() and probabilities[0] >= 0 and probabilities[-1] <= 1):
            raise CalibrationError("probabilities must ascend within 0..1")
        if not math.isfinite(self.threshold):
            raise CalibrationError(f"threshold={self.threshold} is not a number")

    @property
    def min_score(self) -> float:
        """The lowest probability of a match."""
        return float(self.apply(np.array([self.threshold], np.float32))[0])

    @property
    def digest(self) -> str:
        """The identity of the map and its threshold."""
        return hashlib.sha256(calibration_bytes(self)).hexdigest()

    def apply(self, raw_scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """`(m,)` raw scores -> `(m,)` float32 probabilities in 0..1."""
        return np.interp(raw_scores, self.raw_scores, self.probabilities).astype(np.float32)

    def invert(self, probability: float) -> float:
        """The lowest raw score whose probability is at least `probability`; infinite when none is."""
        probabilities = np.asarray(self.probabilities)
        if probability > probabilities[-1]:
            return math.inf
        above = int(np.searchsorted(probabilities, probability, side="left"))
        if above == 0:
            return self.raw_scores[0]
        low, high = probabilities[above - 1], probabilities[above]
        share = (probability - low) / (high - low)
        return float(self.raw_scores[above - 1] + share * (self.raw_scores[above] - self.raw_scores[above - 1]))


def calibration_bytes(calibration: Calibration) -> bytes:
    """`calibration` as a JSON file; equal ones give equal bytes."""
    return (json.dumps({"format_version": FORMAT_VERSION, **asdict(calibration)}, sort_keys=True) + "\n").encode()


def read_calibration(path: Path) -> Calibration:
    """The calibration of a file; raises EmbedderError for one that is damaged or of another release."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CalibrationError(f"more than {MAX_BYTES} bytes")
        given = json.loads(path.read_text("utf-8"))
        version = given.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise CalibrationError(f"format_version {version!r} where this release reads {FORMAT_VERSION}")
        return _from_json(given)
    except (CalibrationError, OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise EmbedderError(
            f"{path} is no calibration ({error}); restore it, or run `neardup calibrate` again"
        ) from error


def _from_json(given: Mapping[str, Any]) -> Calibration:
    for kind, value in ((Calibration, given), (Promise, given["promise"])):
        expected = {field.name for field in fields(kind)}
        if set(value) != expected:
            raise CalibrationError(f"fields {sorted(value)} instead of {sorted(expected)}")
    promise = Promise(**{name: _number(name, value) for name, value in given["promise"].items()})
    return Calibration(
        method=given["method"],
        raw_scores=tuple(_number("raw_scores", value) for value in given["raw_scores"]),
        probabilities=tuple(_number("probabilities", value) for value in given["probabilities"]),
        threshold=_number("threshold", given["threshold"]),
        promise=promise,
        scored_by=str(given["scored_by"]),
    )


def _number(name: str, value: object) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CalibrationError(f"{name} holds {value!r} instead of a number")
    return value
