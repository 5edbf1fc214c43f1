"""Rules of the report's file: what it holds, in which order, and that it appears whole or not at all."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.report import Cluster, Member, Reject, Report, ReportError, ReportLimits, ScoreHistogram, write_report
from cli.report.pages import CLUSTERS_PER_PAGE, json_for_html

ReportOf = Callable[..., Report]
ClusterOf = Callable[..., Cluster]


def block(page: str, block_id: str) -> Any:
    """The data of one JSON block of the page."""
    match = re.search(f'<script type="application/json" id="{block_id}">(.*?)</script>', page)
    assert match is not None, block_id
    return json.loads(match[1])


def written(report: Report, folder: Path, limits: ReportLimits | None = None) -> str:
    write_report(report, folder / "report.html", limits=limits)
    return (folder / "report.html").read_text(encoding="utf-8")


@given(st.text() | st.lists(st.text()))
def test_json_blocks_are_plain_ascii_that_no_markup_can_leave(value: Any) -> None:
    """Any text inside a JSON block reads back as it was and holds no character that HTML gives a meaning."""
    text = json_for_html(value)

    assert json.loads(text) == value
    assert text.isascii()
    assert not set(text) & set("<>&")


def test_hostile_text_is_escaped_everywhere(report_of: ReportOf, cluster_of: ClusterOf, tmp_path: Path) -> None:
    """No title, source, parameter, stage, reason or file name brings markup of its own onto the page."""
    hostile = "</script><img src=x onerror=alert(1)>\"'"
    page = written(
        report_of(
            title=hostile,
            source=hostile,
            parameters={hostile: hostile},
            seconds_per_stage={hostile: 1.0},
            embedder_digest=hostile,
            rejects=[Reject(image_id=hostile, reason=hostile, detail=hostile)],
            clusters=[cluster_of(hostile, "b.jpg")],
        ),
        tmp_path,
    )

    assert "<img src=x" not in page
    assert block(page, "clusters-0")[0]["members"][0]["id"] == hostile
    assert block(page, "rejects-0") == [[hostile, hostile]]


def test_text_that_is_no_text_is_spelled_out(report_of: ReportOf, cluster_of: ClusterOf, tmp_path: Path) -> None:
    """Undecodable bytes, line breaks and direction overrides in names reach the page as visible code points."""
    page = written(
        report_of(source="a\udcff", clusters=[cluster_of("\udcff.jpg", "line\nbreak\u202egpj.exe")]), tmp_path
    )

    assert [member["name"] for member in block(page, "clusters-0")[0]["members"]] == [
        "‹U+DCFF›.jpg",
        "line‹U+000A›break‹U+202E›gpj.exe",
    ]
    assert "a‹U+DCFF›" in page


def test_page_names_nothing_outside_itself(report_of: ReportOf, tmp_path: Path) -> None:
    """The page loads no address but data:, and its policy would not let it."""
    page = written(report_of(), tmp_path)

    assert re.findall(r"<(?:script|img|iframe|object|embed)[^>]*\ssrc=", page) == []
    assert all(href.startswith(("data:", "#")) for href in re.findall(r'href="([^"]*)"', page))
    policy = page.split('Content-Security-Policy" content="')[1].split('"')[0]
    assert policy.startswith("default-src &#39;none&#39;;")
    assert "unsafe" not in policy


def test_canonical_comes_first_then_the_best_scores(report_of: ReportOf, cluster_of: ClusterOf, tmp_path: Path) -> None:
    """Members are shown canonical first, then by falling score, then by image id, however they were given."""
    members = cluster_of("canonical", "b", "c", "d").members
    tied = (*members[:2], replace(members[2], score=members[1].score, image_id="a"), members[3])
    page = written(report_of(clusters=[Cluster(size=4, members=tied[::-1])]), tmp_path)

    assert [member["id"] for member in block(page, "clusters-0")[0]["members"]] == ["canonical", "a", "b", "d"]
    assert [member["canonical"] for member in block(page, "clusters-0")[0]["members"]] == [True, False, False, False]


def test_thumbnails_stand_in_the_order_of_their_members(
    report_of: ReportOf, cluster_of: ClusterOf, tmp_path: Path
) -> None:
    """The n-th thumbnail of a cluster belongs to its n-th member; an image without one has null."""

    def thumbnail(member: Member) -> bytes | None:
        return None if member.image_id == "b" else b"\xff\xd8\xff" + member.image_id.encode()

    page = written(report_of(clusters=[cluster_of("a", "b", "c"), cluster_of("d", "e")], thumbnail=thumbnail), tmp_path)

    jpeg = "data:image/jpeg;base64,"
    assert [[f"{jpeg}/9j/YQ==", None, f"{jpeg}/9j/Yw=="], [f"{jpeg}/9j/ZA==", f"{jpeg}/9j/ZQ=="]] == block(
        page, "thumbnails-0"
    )


def test_thumbnail_of_no_known_format_is_refused(report_of: ReportOf, tmp_path: Path) -> None:
    """Bytes that are neither WebP, JPEG nor PNG never reach the page."""
    with pytest.raises(ReportError, match="WebP, JPEG or PNG"):
        written(report_of(thumbnail=lambda _: b"<svg onload=alert(1)>"), tmp_path)


def test_clusters_are_split_into_pages(report_of: ReportOf, cluster_of: ClusterOf, tmp_path: Path) -> None:
    """Each page of clusters has a block of words and a block of thumbnails, and the contents count them."""
    clusters = [cluster_of("a", "b")] * (CLUSTERS_PER_PAGE + 1)
    page = written(report_of(clusters=clusters, num_clusters=len(clusters)), tmp_path)

    assert [len(block(page, f"clusters-{number}")) for number in range(2)] == [CLUSTERS_PER_PAGE, 1]
    assert [len(block(page, f"thumbnails-{number}")) for number in range(2)] == [CLUSTERS_PER_PAGE, 1]
    assert block(page, "contents") == {"pages": 2, "clusters": 25, "images": 50, "allClusters": 25}


def test_clusters_must_come_largest_first(report_of: ReportOf, cluster_of: ClusterOf, tmp_path: Path) -> None:
    """A cluster larger than the one before it is an error that says how to sort, and no file is left."""
    with pytest.raises(ReportError, match="largest first"):
        written(report_of(clusters=[cluster_of("a", "b"), cluster_of("c", "d", "e")]), tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_endless_clusters_end_at_the_limit(report_of: ReportOf, cluster_of: ClusterOf, tmp_path: Path) -> None:
    """Clusters are read one page at a time and no further than the limit on images."""
    endless = repeat(cluster_of("a", "b", "c"))
    page = written(
        report_of(clusters=endless, num_clusters=10**6),
        tmp_path,
        ReportLimits(max_images=100, max_images_per_cluster=2),
    )

    assert block(page, "contents") == {"pages": 3, "clusters": 50, "images": 100, "allClusters": 10**6}
    assert [len(members) for members in block(page, "thumbnails-2")] == [2, 2]


def test_bytes_are_summed_only_over_whole_clusters(report_of: ReportOf, cluster_of: ClusterOf, tmp_path: Path) -> None:
    """A cluster says what it would free without its canonical image, unless some of its images were not given."""
    clusters = [cluster_of("a", "b", size=1000), cluster_of("c", "d", "e")]
    page = written(report_of(clusters=clusters), tmp_path)

    assert [cluster["freed"] for cluster in block(page, "clusters-0")] == [None, "680 kB"]
    assert [cluster["size"] for cluster in block(page, "clusters-0")] == [1000, 3]


def test_rejects_are_grouped_by_reason(report_of: ReportOf, tmp_path: Path) -> None:
    """Reasons come most frequent first, each counted in full and listed up to the limit."""
    rejects = [Reject(image_id=str(i), reason="empty" if i < 3 else "truncated", detail="0 bytes") for i in range(10)]
    page = written(report_of(rejects=iter(rejects), num_rejected=10), tmp_path, ReportLimits(max_rejects_per_reason=2))

    assert block(page, "rejects-0") == [["3", "0 bytes"], ["4", "0 bytes"]]
    assert block(page, "rejects-1") == [["0", "0 bytes"], ["1", "0 bytes"]]
    assert "The first 2 of 7" in page


def test_summary_shows_the_numbers_it_was_given(report_of: ReportOf, tmp_path: Path) -> None:
    """Counts, bytes, times, parameters and the model's digest stand on the page."""
    page = written(report_of(), tmp_path)

    for text in ("<dd>1,200</dd>", "<dd>5.2 MB</dd>", "18 June 2026, 14:03 UTC", "31 s", "num_tables", "sha256:00ff"):
        assert text in page


def test_failed_write_keeps_the_old_report(report_of: ReportOf, tmp_path: Path) -> None:
    """When the disk takes no more, the error names the path, the old file is untouched and nothing else is left."""
    target = tmp_path / "report.html"
    target.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ReportError, match=re.escape(f"cannot write the report to {target}")):
            write_report(report_of(), target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert target.read_text() == "old"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_interrupted_write_leaves_no_trace(
    report_of: ReportOf, tmp_path: Path, interruption: type[BaseException]
) -> None:
    """Ctrl-C or an error of the caller's thumbnails passes through as it is and leaves the folder as it was."""

    def thumbnail(member: Member) -> bytes | None:
        raise interruption

    with pytest.raises(interruption):
        write_report(report_of(thumbnail=thumbnail), tmp_path / "report.html")

    assert list(tmp_path.iterdir()) == []


def test_interrupted_table_leaves_no_trace(report_of: ReportOf, cluster_of: ClusterOf, tmp_path: Path) -> None:
    """An error while the clusters are read, pages after the first were written, leaves no file."""

    def clusters() -> Iterator[Cluster]:
        yield from repeat(cluster_of("a", "b"), 3 * CLUSTERS_PER_PAGE)
        raise ConnectionError("table lost")

    with pytest.raises(ReportError, match="table lost"):
        write_report(report_of(clusters=clusters()), tmp_path / "report.html")

    assert list(tmp_path.iterdir()) == []


def test_unusable_path_is_a_clear_error(report_of: ReportOf, tmp_path: Path) -> None:
    """A missing folder and a directory in the file's place are errors that name the path."""
    with pytest.raises(ReportError, match=r"absent.*No such file"):
        write_report(report_of(), tmp_path / "absent" / "report.html")
    with pytest.raises(ReportError, match="is a directory"):
        write_report(report_of(), tmp_path)


def test_same_report_writes_the_same_bytes(report_of: ReportOf, tmp_path: Path) -> None:
    """Threads that make thumbnails do not change the file."""
    assert written(report_of(), tmp_path) == written(report_of(), tmp_path)


def test_values_out_of_range_are_refused(report_of: ReportOf, cluster_of: ClusterOf) -> None:
    """A report, cluster, member, histogram or limit that cannot be true is an error that shows the value."""
    cluster = cluster_of("a", "b")
    with pytest.raises(ReportError, match="num_images=-1"):
        report_of(num_images=-1)
    with pytest.raises(ReportError, match="2 canonical images"):
        replace(cluster, members=(cluster.members[0], cluster.members[0]))
    with pytest.raises(ReportError, match="size=1"):
        replace(cluster, size=1)
    with pytest.raises(ReportError, match="score=nan"):
        replace(cluster.members[0], score=float("nan"))
    with pytest.raises(ReportError, match="width=-1"):
        replace(cluster.members[0], width=-1)
    with pytest.raises(ReportError, match=re.escape("(3,) bin edges")):
        ScoreHistogram(bin_edges=np.array([0.0, 0.5, 1.0]), counts=np.array([1]), min_score=0.5)
    with pytest.raises(ReportError, match="ascending"):
        ScoreHistogram(bin_edges=np.array([0.0, 0.0]), counts=np.array([1]), min_score=0.5)
    with pytest.raises(ReportError, match="smallest is -3"):
        ScoreHistogram(bin_edges=np.array([0.0, 1.0]), counts=np.array([-3]), min_score=0.5)
    with pytest.raises(ReportError, match="max_images=0"):
        ReportLimits(max_images=0)
