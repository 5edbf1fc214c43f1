"""A calibration: the map, its threshold, and its file."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embed.calibration.calibration import (
    CALIBRATION_FILE,
    Calibration,
    Promise,
    calibration_bytes,
    read_calibration,
)
from embed.errors import EmbedderError

PROMISE = Promise(
    target=0.99,
    precision=0.995,
    lower_bound=0.991,
    upper_bound=0.999,
    recall=0.8,
    true_pairs_per_query=1.0,
    corpus_size=1000,
)
CALIBRATION = Calibration(
    method="isotonic",
    raw_scores=(0.5, 0.7, 0.9),
    probabilities=(0.0, 0.4, 1.0),
    threshold=0.8,
    promise=PROMISE,
    scored_by="ab" * 32,
)


def test_probabilities_lie_on_lines_between_the_knots() -> None:
    probabilities = CALIBRATION.apply(np.array([-1.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], np.float32))
    np.testing.assert_allclose(probabilities, [0, 0, 0.2, 0.4, 0.7, 1, 1], atol=1e-6)
    assert probabilities.dtype == np.float32


def test_min_score_is_the_probability_at_the_threshold() -> None:
    assert math.isclose(CALIBRATION.min_score, 0.7, abs_tol=1e-6)


@pytest.mark.parametrize("probability", [0.1, 0.4, 0.7, 1.0])
def test_invert_undoes_apply(probability: float) -> None:
    raw = CALIBRATION.invert(probability)
    assert math.isclose(float(CALIBRATION.apply(np.array([raw], np.float32))[0]), probability, abs_tol=1e-6)


def test_no_raw_score_has_a_probability_above_the_highest() -> None:
    assert replace(CALIBRATION, probabilities=(0.0, 0.4, 0.9)).invert(0.95) == math.inf


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / CALIBRATION_FILE).write_bytes(calibration_bytes(CALIBRATION))
    assert read_calibration(tmp_path / CALIBRATION_FILE) == CALIBRATION


def test_the_digest_changes_with_the_threshold() -> None:
    assert CALIBRATION.digest != replace(CALIBRATION, threshold=0.81).digest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 9}, "format_version 9"),
        ({"raw_scores": [0.5, 0.4, 0.9]}, "ascend"),
        ({"raw_scores": [0.5, "x", 0.9]}, "instead of a number"),
        ({"probabilities": [0.0, 0.4]}, "3 raw scores and 2"),
        ({"probabilities": [0.0, 0.4, 1.5]}, "within 0..1"),
        ({"method": "guess"}, "logistic or isotonic"),
        ({"threshold": None}, "instead of a number"),
        ({"more": 1}, "fields"),
        ({"promise": {}}, "fields"),
        ({"promise": 3}, "no calibration"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, change: dict[str, object], said: str) -> None:
    (tmp_path / CALIBRATION_FILE).write_bytes(calibration_bytes(CALIBRATION))
    path = tmp_path / CALIBRATION_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(EmbedderError, match=said) as error:
        read_calibration(path)
    assert str(path) in str(error.value)
    assert "neardup calibrate" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / CALIBRATION_FILE
    path.write_bytes(content)
    with pytest.raises(EmbedderError, match=r"calibration\.json"):
        read_calibration(path)
