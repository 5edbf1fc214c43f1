"""The clusters as data on the page, a page of clusters at a time.

Each page becomes two JSON blocks, one of words and one of thumbnails, which the browser parses only when it shows
them. `ClusterPages` reads the clusters once, in order, and holds one page in memory. Used by `cli.report.report`.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cli.report.errors import ReportError
from cli.report.model import Cluster, Member, Report
from cli.report.thumbnails import media_type
from cli.report.wording import file_name, format_bytes, format_score, link_to, visible

CLUSTERS_PER_PAGE = 24


def json_for_html(value: Any) -> str:
    r"""`value` as JSON that can stand inside `<script>`: nothing in it can end the element or open another.

    >>> json_for_html("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@dataclass(frozen=True, slots=True)
class ClusterPage:
    """One page's two JSON blocks: a list of clusters, and as many lists of data URLs or nulls."""

    clusters: str
    thumbnails: str


class ClusterPages:
    """The pages of a report's clusters; what they hold so far is in `num_clusters` and `num_images`."""

    def __init__(self, report: Report, *, max_images: int, max_images_per_cluster: int) -> None:
        self._report = report
        self._max_images = max_images
        self._max_images_per_cluster = max_images_per_cluster
        self.num_pages = 0
        self.num_clusters = 0
        self.num_images = 0

    def __iter__(self) -> Iterator[ClusterPage]:
        clusters = self._within_limits(_largest_first(self._report.clusters))
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            while batch := list(islice(clusters, CLUSTERS_PER_PAGE)):
                self.num_pages += 1
                members = [members_in_order(cluster)[: self._max_images_per_cluster] for cluster in batch]
                urls = iter(list(pool.map(self._data_url, (member for group in members for member in group))))
                yield ClusterPage(
                    clusters=json_for_html(
                        [_described(cluster, group) for cluster, group in zip(batch, members, strict=True)]
                    ),
                    thumbnails=json_for_html([list(islice(urls, len(group))) for group in members]),
                )

    def _within_limits(self, clusters: Iterator[Cluster]) -> Iterator[Cluster]:
        while self.num_images < self._max_images and (cluster := next(clusters, None)) is not None:
            self.num_clusters += 1
            self.num_images += min(len(cluster.members), self._max_images_per_cluster)
            yield cluster

    def _data_url(self, member: Member) -> str | None:
        thumbnail = self._report.thumbnail(member)
        if thumbnail is None:
            return None
        return f"data:{media_type(thumbnail)};base64,{base64.b64encode(thumbnail).decode('ascii')}"


def members_in_order(cluster: Cluster) -> list[Member]:
    """The canonical image, then the others by falling score, then by image id."""
    return sorted(cluster.members, key=lambda member: (not member.is_canonical, -member.score, member.image_id))


def _largest_first(clusters: Iterable[Cluster]) -> Iterator[Cluster]:
    previous_size: int | None = None
    for cluster in clusters:
        if previous_size is not None and cluster.size > previous_size:
            raise ReportError(
                f"a cluster of {cluster.size} images comes after one of {previous_size};"
                " a report takes its clusters largest first: sort them by falling size"
            )
        previous_size = cluster.size
        yield cluster


def _described(cluster: Cluster, shown: list[Member]) -> dict[str, Any]:
    is_whole = len(cluster.members) == cluster.size
    freed = sum(member.size_bytes for member in cluster.members if not member.is_canonical)
    return {
        "size": cluster.size,
        "freed": format_bytes(freed) if is_whole else None,
        "members": [_described_member(member) for member in shown],
    }


def _described_member(member: Member) -> dict[str, Any]:
    return {
        "name": visible(file_name(member.uri) or member.image_id),
        "uri": visible(member.uri),
        "id": visible(member.image_id),
        "link": link_to(member.uri),
        "score": format_score(member.score),
        "pixels": f"{member.width} × {member.height}",
        "bytes": format_bytes(member.size_bytes),
        "canonical": member.is_canonical,
    }
