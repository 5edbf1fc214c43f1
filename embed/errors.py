"""Errors of `embed`.

EmbedError
├── EmbedderError      an embedder directory or weights file that cannot be used
└── TrainingError      photos or settings that cannot be trained on
"""

from __future__ import annotations


class EmbedError(Exception):
    """Base of every error that `embed` raises on purpose."""


class EmbedderError(EmbedError):
    """An embedder directory, architecture or weights file that cannot be used."""


class TrainingError(EmbedError):
    """Photos or settings that cannot be trained on."""
