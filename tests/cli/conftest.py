"""A small report that tests vary, and the distribution's Chromium to open it in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cli.report import Cluster, Member, Report, ScoreHistogram, make_thumbnail

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ReportOf = Callable[..., Report]
ClusterOf = Callable[..., Cluster]

_CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
_CHROMIUM_ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def cluster_of() -> ClusterOf:
    """`cluster_of("a.jpg", "b.jpg", ...)`: a cluster of images in /photos, the first one canonical."""

    def build(*names: str, **changes: Any) -> Cluster:
        members = tuple(
            Member(
                image_id=name,
                uri=f"/photos/{name}",
                score=1.0 - place / 100,
                size_bytes=340_000,
                width=1200,
                height=800,
                is_canonical=place == 0,
            )
            for place, name in enumerate(names)
        )
        return replace(Cluster(size=len(members), members=members), **changes)

    return build


@pytest.fixture(scope="session")
def report_of(cluster_of: ClusterOf) -> ReportOf:
    """`report_of(field=value, ...)`: a report of two clusters with gray thumbnails, with these fields changed."""
    gray = make_thumbnail(np.full((30, 40, 3), 128, np.uint8))

    def build(**changes: Any) -> Report:
        report = Report(
            source="/photos",
            created_at=datetime(2026, 6, 18, 14, 3, tzinfo=UTC),
            num_images=1200,
            num_rejected=0,
            num_exact_copies=4,
            num_clusters=2,
            num_duplicates=3,
            reclaimable_bytes=5_234_000,
            seconds_per_stage={"embed": 31.4, "cluster": 0.3},
            parameters={"num_tables": "32"},
            embedder_digest="sha256:00ff",
            scores=ScoreHistogram(bin_edges=np.linspace(0.5, 1.0, 11), counts=np.arange(11)[1:] ** 3, min_score=0.79),
            clusters=(cluster_of("beach.jpg", "beach_small.jpg", "beach_gray.jpg"), cluster_of("cat.png", "cat2.png")),
            thumbnail=lambda _: gray,
        )
        return replace(report, **changes)

    return build


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The distribution's Chromium, headless; its tests are skipped where there is none."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, _CHROMIUM_NAMES)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(_CHROMIUM_NAMES)} is installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_CHROMIUM_ARGS)
        yield browser
        browser.close()
