"""Writes what is known of a run as one HTML file: its sections as tables. No script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cli.report import html
from cli.report.whole_file import write_whole_file
from cli.run_sections import RunSummary, Section


def write_run_report(summary: RunSummary, sections: Sequence[Section], path: Path) -> None:
    """Write the sections of a run to `path`, whole or not at all; raises ReportError where it cannot be written."""
    style = html.style_sheet()
    page = html.template("run.html").generate(
        run_id=summary.record.run_id,
        state=summary.state,
        source=summary.record.source,
        sections=sections,
        version=html.release(),
        policy=html.content_security_policy(style),
        style=style,
    )
    write_whole_file(path, page)
