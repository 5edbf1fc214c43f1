"""What a report says: the summary, the clusters, the rejects and the histogram of scores.

Filled in by the command that ran the pipeline, read by `cli.report.report`. `clusters` and `rejects` may be
generators over tables larger than memory: each is read once, in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from cli.report.errors import ReportError


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One image of a cluster; `score` is its score against the cluster's canonical image."""

    image_id: str
    uri: str
    score: float
    size_bytes: int
    width: int
    height: int
    is_canonical: bool

    def __post_init__(self) -> None:
        if not math.isfinite(self.score):
            raise ReportError(
                f"score={self.score} of image {self.image_id!r} is not a number; check the clusters table"
            )
        for name in ("size_bytes", "width", "height"):
            if getattr(self, name) < 0:
                raise ReportError(f"{name}={getattr(self, name)} of image {self.image_id!r} must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Images that match one canonical image; `members` may be only the first of its `size` images."""

    size: int
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        num_canonical = sum(member.is_canonical for member in self.members)
        if num_canonical != 1:
            raise ReportError(f"a cluster of {self.size} images has {num_canonical} canonical images; it must have 1")
        if self.size < max(2, len(self.members)):
            raise ReportError(
                f"size={self.size} of a cluster with {len(self.members)} members is out of range;"
                " it counts every image of the cluster, the canonical one included, so it is at least 2"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """An image that could not be used, and why: `reason` groups, `detail` explains."""

    image_id: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreHistogram:
    """Pairs counted by score: `bin_edges` `(bins + 1,)` ascending, `counts` `(bins,)`, and the threshold."""

    bin_edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    min_score: float

    def __post_init__(self) -> None:
        if self.counts.ndim != 1 or self.bin_edges.shape != (len(self.counts) + 1,) or not len(self.counts):
            raise ReportError(
                f"{self.bin_edges.shape} bin edges do not fit {self.counts.shape} counts;"
                " a histogram of n bins, at least 1, has n + 1 edges"
            )
        if not np.isfinite(self.bin_edges).all() or not (np.diff(self.bin_edges) > 0).all():
            raise ReportError("the bin edges of the scores must be finite and ascending")
        if (self.counts < 0).any():
            raise ReportError(f"counts of scores must be 0 or more; the smallest is {self.counts.min()}")
        if not math.isfinite(self.min_score):
            raise ReportError(f"min_score={self.min_score} is not a number")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Report:
    """All that the page shows.

    `clusters` come largest first, each with its members in any order. `thumbnail` gives an image's WebP, JPEG or PNG
    bytes (see `make_thumbnail`), or None where it cannot be shown any more; it is called from several threads.
    """

    source: str
    created_at: datetime
    num_images: int
    num_rejected: int
    num_exact_copies: int
    num_clusters: int
    num_duplicates: int
    reclaimable_bytes: int
    seconds_per_stage: Mapping[str, float]
    parameters: Mapping[str, str]
    embedder_digest: str
    scores: ScoreHistogram
    clusters: Iterable[Cluster]
    thumbnail: Callable[[Member], bytes | None]
    rejects: Iterable[Reject] = field(default_factory=tuple)
    title: str = "Near-duplicate images"

    def __post_init__(self) -> None:
        for name in (
            "num_images",
            "num_rejected",
            "num_exact_copies",
            "num_clusters",
            "num_duplicates",
            "reclaimable_bytes",
        ):
            if getattr(self, name) < 0:
                raise ReportError(f"{name}={getattr(self, name)} must be 0 or more")
