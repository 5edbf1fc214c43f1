"""Errors of `embed`.

EmbedError
├── ImageRejected      bytes that are not an image this system accepts, with a `RejectReason`
├── EmbedderError      an embedder directory or weights file that cannot be used
├── ClassifierError    pairs that no classifier can be trained on, a classifier that cannot be used
├── EvaluationError    photos or labelled pairs that cannot be evaluated on
├── CalibrationError   scores that cannot be calibrated, a calibration that cannot be read
├── LineageError       a lineage that cannot be written, read or found
│   └── TrackingError         a tracking store that cannot be used
└── TrainingError      photos, settings or checkpoints that cannot be trained on
    └── TrainingInterrupted   stopped by the user; the last checkpoint is kept
"""

from __future__ import annotations

from enum import StrEnum


class RejectReason(StrEnum):
    """Why an image was rejected; the values are stable and stored in the `rejects` table."""

    EMPTY = "empty"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_PIXELS = "too_many_pixels"
    UNKNOWN_FORMAT = "unknown_format"
    UNSUPPORTED = "unsupported"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    UNREADABLE = "unreadable"


class EmbedError(Exception):
    """Base of every error that `embed` raises on purpose."""


class ImageRejected(EmbedError):  # noqa: N818 - the glossary's word
    """Bytes that are not an image this system accepts; `reason` is for counting, `detail` for people."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.detail}"


class EmbedderError(EmbedError):
    """An embedder directory, architecture or weights file that cannot be used."""


class ClassifierError(EmbedError):
    """Pairs that no classifier can be trained on, or a classifier file that cannot be used."""


class EvaluationError(EmbedError):
    """Photos, labelled pairs or scores that cannot be evaluated."""


class CalibrationError(EmbedError):
    """Scores that cannot be calibrated to the precision asked for, or a calibration file that cannot be used."""


class LineageError(EmbedError):
    """A model's lineage that cannot be written, read or found."""


class TrackingError(LineageError):
    """A tracking store that cannot be used."""


class TrainingError(EmbedError):
    """Photos, settings or checkpoints that cannot be trained on."""


class TrainingInterrupted(TrainingError):  # noqa: N818 - nothing is wrong
    """The user stopped the training; the message says how to go on."""
