"""Writes a report as one HTML file that needs nothing else: no server, no network, no other file.

The shell (`page.html`) is a Jinja2 template with its style and script inlined; the clusters follow as JSON blocks,
streamed to disk as they are made, so that memory holds one page of thumbnails however large the report.
Used by `neardup dedup --report`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.report import histogram, html
from cli.report.errors import ReportError
from cli.report.model import Reject, Report
from cli.report.pages import CLUSTERS_PER_PAGE, ClusterPages, json_for_html
from cli.report.whole_file import write_whole_file
from cli.report.wording import visible


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportLimits:
    """How much one page may hold before it only says how much more there is."""

    max_images: int = 20_000
    max_images_per_cluster: int = 100
    max_rejects_per_reason: int = 500

    def __post_init__(self) -> None:
        for name in ("max_images", "max_images_per_cluster", "max_rejects_per_reason"):
            if getattr(self, name) < 1:
                raise ReportError(f"{name}={getattr(self, name)} is out of range; it must be at least 1")


def write_report(report: Report, path: Path, *, limits: ReportLimits | None = None) -> None:
    """Write `report` to `path` as one HTML file; an existing file is replaced only by a whole one.

    Raises ReportError where the file cannot be written or the clusters do not come largest first.
    """
    limits = limits or ReportLimits()
    style = html.style_sheet()
    script = (html.FOLDER / "page.js").read_text(encoding="utf-8")
    pages = ClusterPages(report, max_images=limits.max_images, max_images_per_cluster=limits.max_images_per_cluster)

    def contents() -> str:
        return json_for_html(
            {
                "pages": pages.num_pages,
                "clusters": pages.num_clusters,
                "images": pages.num_images,
                "allClusters": max(report.num_clusters, pages.num_clusters),
            }
        )

    write_whole_file(
        path,
        html.template("page.html").generate(
            report=report,
            version=html.release(),
            policy=html.content_security_policy(style, script),
            style=style,
            script=script,
            total_seconds=sum(report.seconds_per_stage.values()),
            slowest_seconds=max(report.seconds_per_stage.values(), default=0.0),
            chart=histogram,
            drawing=histogram.draw(report.scores),
            rejects=_rejects_by_reason(report.rejects, limits.max_rejects_per_reason),
            pages=pages,
            clusters_per_page=CLUSTERS_PER_PAGE,
            contents=contents,
        ),
    )


def _rejects_by_reason(rejects: Iterable[Reject], max_shown: int) -> list[dict[str, Any]]:
    """The most frequent reason first; each with its count and the first `max_shown` images."""
    num_of_reason: Counter[str] = Counter()
    shown: dict[str, list[list[str]]] = {}
    for reject in rejects:
        num_of_reason[reject.reason] += 1
        images = shown.setdefault(reject.reason, [])
        if len(images) < max_shown:
            images.append([visible(reject.image_id), visible(reject.detail)])
    return [
        {"reason": reason, "count": count, "images": shown[reason]} for reason, count in num_of_reason.most_common()
    ]
