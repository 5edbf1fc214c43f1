"""The report: what one deduplication found, as a single HTML page that works offline.

`model` is what the caller fills in, `report` writes the page, `thumbnails` makes the small images on it.
"""

from cli.report.errors import ReportError
from cli.report.model import Cluster, Member, Reject, Report, ScoreHistogram
from cli.report.report import ReportLimits, write_report
from cli.report.thumbnails import make_thumbnail

__all__ = [
    "Cluster",
    "Member",
    "Reject",
    "Report",
    "ReportError",
    "ReportLimits",
    "ScoreHistogram",
    "make_thumbnail",
    "write_report",
]
