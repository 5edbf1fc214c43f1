"""Errors of `batch_jobs`.

BatchError
├── SourceError        a source that is missing, empty, unreadable or not of a known kind
├── WorkspaceError     a workspace that is in use, damaged, full or made with another embedder or other parameters
├── RejectedError      too many images of the source could not be read
└── SessionError       Spark could not be started
"""

from __future__ import annotations


class BatchError(Exception):
    """Base of every error that `batch_jobs` raises on purpose."""


class SourceError(BatchError):
    """The source is missing, empty, unreadable or not of a known kind."""


class WorkspaceError(BatchError):
    """The workspace is in use, damaged, full, or was made with another embedder or other parameters."""


class RejectedError(BatchError):
    """More images than allowed could not be read."""


class SessionError(BatchError):
    """Spark could not be started."""
