"""Crowds of near-identical images through the whole pipeline: bounded, counted, one cluster each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from batch_jobs.pipeline import run_pipeline
from batch_jobs.settings import RunSettings
from lsh.terms import TermParams

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

DIM = 64
CROWDS = {"near-identical": (3000, 0.99), "template": (1000, 0.96), "blank": (1000, 1.0)}
NUM_OTHERS = 1000


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return result


def crowded_corpus() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Random rows and the crowds around a centre each, shuffled; and the crowd of each row, -1 for the random ones."""
    rng = np.random.default_rng(2)
    parts, crowd_of = [unit(rng.standard_normal((NUM_OTHERS, DIM)))], [np.full(NUM_OTHERS, -1)]
    for number, (size, cosine) in enumerate(CROWDS.values()):
        centre = unit(rng.standard_normal((1, DIM)))
        noise = rng.standard_normal((size, DIM))
        change = unit(noise - (noise @ centre.T) * centre)
        parts.append(unit(cosine * centre + np.sqrt(1 - cosine**2) * change))
        crowd_of.append(np.full(size, number))
    order = rng.permutation(sum(map(len, parts)))
    return np.concatenate(parts)[order], np.concatenate(crowd_of)[order]


def test_each_crowd_becomes_one_cluster_whatever_the_partitions(spark: SparkSession, tmp_path: Path) -> None:
    """Thousands of near-identical, similar and equal images: one cluster each, few pairs, and the cut is counted."""
    rows, crowd_of = crowded_corpus()
    image_ids = np.array([f"{row:05d}" for row in range(len(rows))])
    np.savez(tmp_path / "given.npz", image_ids=image_ids, embeddings=rows, digest=np.array("given"))
    found = []
    for num_partitions in (1, 5):
        settings = RunSettings(
            source=str(tmp_path / "given.npz"),
            workspace=tmp_path / str(num_partitions),
            min_score=0.8,
            terms=TermParams(num_tables=16, dim=DIM, num_polytopes=2, polytope_dim=64),
            num_partitions=num_partitions,
        )
        run = run_pipeline(settings)
        assert run.steps["candidates"].stats["num_cut_pairs"] > 0
        assert run.steps["select"].num_rows["edges"] < 200 * len(rows)
        found.append(pq.read_table(run.steps["cluster"].table("clusters")).to_pylist())
    assert found[0] == found[1]
    canonical_of = {int(row["image_id"]): row["canonical_id"] for row in found[0]}
    for crowd in range(len(CROWDS)):
        assert len({canonical_of[row] for row in np.flatnonzero(crowd_of == crowd).tolist()}) == 1
