"""A run over a handful of embeddings without Spark: the pipeline's own steps, committed and recorded as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from batch_jobs import catalogue, embed_images, schemas
from batch_jobs.exports import run_counts
from batch_jobs.listeners import SilentListener
from batch_jobs.pipeline import STEPS, Pipeline
from batch_jobs.run_records import RunRecord, find_record, finish_record
from batch_jobs.session import Session, write_arrow
from batch_jobs.settings import RunSettings, digest
from batch_jobs.sources import open_source
from batch_jobs.workspace import Workspace
from lsh.candidates import CandidateParams
from lsh.terms import TermParams

DIM = 32
NUM_PARTS = 3
PARAMS = TermParams(num_tables=24, dim=DIM, num_polytopes=1, polytope_dim=32)


def family(seed: int, size: int, *, spread: float = 0.15) -> NDArray[np.float32]:
    """`(size, DIM)` float32 unit rows around one centre: cosines of about `1 / (1 + spread ** 2)`."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=DIM) + spread * rng.normal(size=(size, DIM))
    unit: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def pets() -> dict[str, NDArray[np.float32]]:
    """Four cats, three dogs, and a fish that looks like nobody."""
    named = {f"cat-{place}": row for place, row in enumerate(family(1, 4))}
    named |= {f"dog-{place}": row for place, row in enumerate(family(2, 3))}
    return {**named, "fish": family(3, 1)[0]}


def write_source(folder: Path, images: Mapping[str, NDArray[np.float32]], rejects: Sequence[str] = ()) -> Path:
    """An `.npz` of embeddings by image id, the same file for the same ones; `rejects` make it another."""
    ids = sorted(images)
    rows = np.array([images[image_id] for image_id in ids], np.float32)
    path = folder / f"{digest([ids, rows.tobytes().hex(), list(rejects)])[:16]}.npz"
    if not path.exists():
        folder.mkdir(exist_ok=True)
        np.savez(path, image_ids=np.array(ids), embeddings=rows, digest=np.array("given"))
    return path


def run_night(
    workspace: Path,
    images: Mapping[str, NDArray[np.float32]],
    *,
    copies: Mapping[str, str] | None = None,
    rejects: Sequence[str] = (),
    min_score: float = 0.8,
    until: str = STEPS[-1],
    prediction: Mapping[str, float] | None = None,
    candidates: CandidateParams | None = None,
) -> RunRecord:
    """Run the steps up to `until` on embeddings by image id; `copies` maps ids to ids with the same bytes."""
    copied = {copy: images[original] for copy, original in (copies or {}).items()}
    settings = RunSettings(
        source=str(write_source(workspace / "sources", {**images, **copied}, rejects)),
        workspace=workspace,
        min_score=min_score,
        terms=PARAMS,
        candidates=candidates or CandidateParams(),
        num_partitions=NUM_PARTS,
        prediction=prediction,
    )
    with (
        pytest.MonkeyPatch.context() as patch,
        Workspace(workspace) as opened,
        Session(master=None, log=workspace / "spark.log") as session,
    ):
        _as_if_images(patch, copies or {}, rejects)
        pipeline = Pipeline(settings, opened, open_source(settings.source), listener=SilentListener(), session=session)
        pipeline.begin()
        run = pipeline.run(until=until)
        if until == STEPS[-1]:
            finish_record(opened, run.run_id, seconds=dict.fromkeys(STEPS, 0.5), results=run_counts(run))
    return find_record(workspace, run.run_id)


def _as_if_images(patch: pytest.MonkeyPatch, copies: Mapping[str, str], rejects: Sequence[str]) -> None:
    """Let the first steps find byte-identical and unreadable images, which given embeddings never are."""
    catalogue_embeddings, adopt_embeddings = catalogue.catalogue_embeddings, embed_images.adopt_embeddings

    def catalogue_images(folder: Path, **options: Any) -> Mapping[str, Any]:
        stats = catalogue_embeddings(folder, **options)
        rows = pq.read_table(folder / "catalogue")
        doc_of = dict(zip(rows["image_id"].to_pylist(), rows["doc"].to_pylist(), strict=True))
        originals = [doc_of[copies.get(image_id, image_id)] for image_id in doc_of]
        place = rows.schema.get_field_index("original_doc")
        rewrite(rows.set_column(place, rows.schema.field(place), pa.array(originals)), folder / "catalogue")
        bad = {"stage": "catalogue", "reason": "truncated", "detail": "it ends in the middle"}
        schema = schemas.arrow(schemas.REJECTS)
        rewrite(pa.Table.from_pylist([{"image_id": one, **bad} for one in rejects], schema=schema), folder / "rejects")
        return stats

    def embed_originals(folder: Path, **options: Any) -> Mapping[str, Any]:
        stats = adopt_embeddings(folder, **options)
        ids = np.load(options["source"].path)["image_ids"].tolist()
        is_copy = [sorted(ids).index(copy) for copy in copies]
        rows = pq.read_table(folder / "embeddings")
        rewrite(rows.filter(pc.invert(pc.is_in(rows["doc"], pa.array(is_copy, pa.int64())))), folder / "embeddings")
        return stats

    patch.setattr(catalogue, "catalogue_embeddings", catalogue_images)
    patch.setattr(embed_images, "adopt_embeddings", embed_originals)


def rewrite(table: pa.Table, folder: Path) -> None:
    """Write a table in place of the files that are in `folder`."""
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    write_arrow(table, folder)


def clusters_of(workspace: Path, record: RunRecord) -> list[set[str]]:
    """The members of each cluster of a run."""
    found: dict[str, set[str]] = {}
    for row in pq.read_table(record.table(workspace, "cluster", "clusters")).to_pylist():
        found.setdefault(row["canonical_id"], set()).add(row["image_id"])
    return sorted(found.values(), key=sorted)
