"""Errors of `cli.report`.

ReportError    a report that cannot be described or written
"""

from __future__ import annotations


class ReportError(Exception):
    """A report that cannot be described (values out of range) or written (the disk, the path)."""
