"""A finished run as a report: reads the run's tables, decodes the shown images, hands both to `cli.report`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from batch_jobs import catalogue, cluster_matches, select_matches
from batch_jobs.catalogue import image_bytes
from batch_jobs.exports import iterate_clusters, read_rejects
from batch_jobs.pipeline import Run
from batch_jobs.settings import as_json
from batch_jobs.sources import SourceKind
from cli.report import Cluster, Member, Reject, Report, ReportLimits, ScoreHistogram, make_thumbnail, write_report
from embed.calibration.calibration import Calibration
from embed.decoding import ImageLimits, ImageRejected, decode_image
from embed.pair_classifier.classifier import PairClassifier

THUMBNAIL_SIDE = 160
LIMITS = ReportLimits()


def write_dedup_report(run: Run, counts: Mapping[str, Any], path: Path) -> None:
    """Write the HTML report of a run; `counts` are those of `cli.results.Results`."""
    rows = list(islice(iterate_clusters(run.steps[cluster_matches.STEP].table("clusters")), LIMITS.max_images))
    images = _images(run, [row["image_id"] for row in rows])
    histogram = np.array(run.steps[select_matches.STEP].stats["score_histogram"], np.int64)
    report = Report(
        source=run.settings.source,
        created_at=datetime.now(UTC),
        num_images=counts["images"],
        num_rejected=counts["rejected"],
        num_exact_copies=counts["exact_copies"],
        num_clusters=counts["clusters"],
        num_duplicates=counts["duplicates"],
        reclaimable_bytes=counts["reclaimable_bytes"],
        seconds_per_stage=run.seconds,
        parameters=_parameters(run),
        embedder_digest=run.model.digest,
        scores=ScoreHistogram(
            bin_edges=np.linspace(-1.0, 1.0, len(histogram) + 1), counts=histogram, min_score=run.model.min_score
        ),
        clusters=_clusters(rows, images),
        thumbnail=_thumbnails(run, images),
        rejects=(
            Reject(image_id=row["image_id"], reason=row["reason"], detail=row["detail"] or "")
            for row in read_rejects(run).to_pylist()
        ),
    )
    write_report(report, path, limits=LIMITS)


def _images(run: Run, image_ids: list[str]) -> dict[str, dict[str, Any]]:
    """The catalogue's rows of some images."""
    table = run.steps[catalogue.STEP].table("catalogue")
    wanted = pyarrow.dataset.field("image_id").isin(pa.array(image_ids, pa.string()))
    found = pyarrow.dataset.dataset(table, format="parquet").to_table(
        columns=["image_id", "uri", "width", "height", "size_bytes"], filter=wanted
    )
    return {row["image_id"]: row for row in found.to_pylist()}


def _clusters(rows: list[dict[str, Any]], images: Mapping[str, dict[str, Any]]) -> Iterator[Cluster]:
    for _, members in groupby(rows, key=lambda row: row["canonical_id"]):
        cluster = list(members)
        yield Cluster(size=cluster[0]["size"], members=tuple(_member(row, images[row["image_id"]]) for row in cluster))


def _member(row: Mapping[str, Any], image: Mapping[str, Any]) -> Member:
    return Member(
        image_id=row["image_id"],
        uri=image["uri"] or "",
        score=row["score"],
        size_bytes=image["size_bytes"] or 0,
        width=image["width"] or 0,
        height=image["height"] or 0,
        is_canonical=row["is_canonical"],
    )


def _thumbnails(run: Run, images: Mapping[str, dict[str, Any]]) -> Callable[[Member], bytes | None]:
    """A function from a member to its thumbnail, or to None when its image cannot be read any more."""
    limits, root = run.settings.limits, str(run.source.root)
    if run.source.kind is SourceKind.EMBEDDINGS:
        return lambda _: None
    if run.source.kind is SourceKind.CONTENT_TABLE:
        ready = dict(_thumbnails_of_table(run, list(images), limits))
        return lambda member: ready.get(member.image_id)
    return lambda member: _thumbnail(member.uri, root=root, limits=limits)


def _thumbnail(place: str | bytes | None, *, root: str, limits: ImageLimits) -> bytes | None:
    try:
        content = image_bytes(place, root=root, limits=limits)
        return make_thumbnail(decode_image(content, limits, min_side=THUMBNAIL_SIDE), THUMBNAIL_SIDE)
    except ImageRejected:
        return None


def _thumbnails_of_table(run: Run, image_ids: list[str], limits: ImageLimits) -> Iterator[tuple[str, bytes | None]]:
    wanted = pyarrow.dataset.field("image_id").isin(pa.array(image_ids, pa.string()))
    contents = pyarrow.dataset.dataset(list(run.source.files), format="parquet")
    for batch in contents.to_batches(columns=["image_id", "content"], filter=wanted, batch_size=64):
        for image_id, content in zip(batch["image_id"].to_pylist(), batch["content"].to_pylist(), strict=True):
            yield image_id, _thumbnail(content, root=str(run.source.root), limits=limits)


def _parameters(run: Run) -> dict[str, str]:
    terms, candidates = as_json(run.settings.terms), as_json(run.settings.candidates)
    return {
        "source": run.settings.source,
        "embedder": f"{run.settings.embedder} ({run.model.dtype})",
        **{f"{name} digest": model.digest for name, model in _scoring_models(run).items()},
        "min_score": f"{run.model.min_score:g}",
        **{f"terms.{name}": str(value) for name, value in terms.items()},
        **{f"candidates.{name}": str(value) for name, value in candidates.items()},
    }


def _scoring_models(run: Run) -> dict[str, PairClassifier | Calibration]:
    scorer = run.model.scorer
    models = {"pair classifier": scorer.classifier, "calibration": scorer.calibration}
    return {name: model for name, model in models.items() if model is not None}
