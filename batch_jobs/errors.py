"""Errors of `batch_jobs`.

BatchError
├── SourceError        a source that is missing, empty, unreadable or not of a known kind
├── WorkspaceError     a workspace that is in use, damaged, full or made with another embedder or other parameters
│   ├── LeaseHeldError     another process holds the lease
│   └── LeaseLostError     another process has taken the lease over
├── DecisionError      a decision by hand that contradicts an earlier one, or names images that are not there
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


class LeaseHeldError(WorkspaceError):
    """Another process holds the lease; the message says who."""


class LeaseLostError(WorkspaceError):
    """Another process has taken the lease over, because it was not renewed in time; the message says who."""


class DecisionError(BatchError):
    """A decision by hand contradicts an earlier one, or names images that are not there."""


class RejectedError(BatchError):
    """More images than allowed could not be read."""


class SessionError(BatchError):
    """Spark could not be started."""
