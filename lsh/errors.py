"""Errors of `lsh`.

LshError
├── ParameterError     parameters or arrays that no kernel can work with
├── FormatError        bytes that are not what they claim to be: truncated, damaged, or of an unknown version
├── GenerationError    an index generation that cannot be opened, trusted, found or published
└── StoreError         a store in Redis that cannot be reached, or refuses
    └── StoreFullError it has no memory left
"""

from __future__ import annotations


class LshError(Exception):
    """Base of every error that `lsh` raises on purpose."""


class ParameterError(LshError, ValueError):
    """A parameter out of its range, or arrays whose shape or content a kernel cannot work with."""


class FormatError(LshError, ValueError):
    """Bytes that are truncated, damaged, or written by another format or version."""


class GenerationError(LshError):
    """An index generation with a missing, truncated, damaged or foreign file, or one that is not there."""


class StoreError(LshError):
    """A store in Redis that cannot be reached, lost a page, or refuses a command."""


class StoreFullError(StoreError):
    """A store in Redis without memory for more."""
