"""Step 6, cluster: matches become clusters around canonical images.

The greedy k-cut runs on the driver over packed arrays: about 24 bytes an edge and 40 an image that has one.
Byte-identical copies were embedded once; here they join the cluster of their original with its score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from lsh.clusters import greedy_cut
from numpy.typing import NDArray
from pyspark.sql import functions as f

from batch_jobs import schemas
from batch_jobs.session import write_arrow, write_table

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

STEP = "cluster"
TABLES = ("members", "clusters")


@dataclass(frozen=True, slots=True)
class Members:
    """Images in clusters of two or more, one row each, by doc."""

    docs: NDArray[np.int64]
    canonical_docs: NDArray[np.int64]
    scores: NDArray[np.float32]


def cluster_matches(spark: SparkSession, folder: Path, *, edges: str, catalogue: str) -> Mapping[str, Any]:
    """Write `members` (docs) and `clusters` (image ids, largest cluster first); returns the counts for the summary."""
    matches = (
        spark.read.parquet(edges).select("left_doc", "right_doc", "score").orderBy("left_doc", "right_doc").toArrow()
    )
    images = spark.read.parquet(catalogue)
    pixels = f.coalesce(f.col("width").cast("long") * f.col("height"), f.lit(0)).alias("pixels")
    known = images.select("doc", "original_doc", pixels).orderBy("doc").toArrow()
    members = cluster_docs(
        lefts=matches["left_doc"].to_numpy(),
        rights=matches["right_doc"].to_numpy(),
        scores=matches["score"].to_numpy(),
        original_docs=known["original_doc"].to_numpy(),
        pixels=known["pixels"].to_numpy(),
    )
    _, cluster_of_row, sizes = np.unique(members.canonical_docs, return_inverse=True, return_counts=True)
    columns = [members.docs, members.canonical_docs, members.scores, sizes[cluster_of_row].astype(np.int32)]
    write_arrow(pa.table(columns, schema=schemas.arrow(schemas.MEMBERS)), folder / "members")
    clusters = _with_image_ids(spark, folder, catalogue)
    write_table(clusters, folder / "clusters")
    duplicates = images.join(
        spark.read.parquet(str(folder / "members")).where("doc <> canonical_doc").select("doc"), "doc"
    )
    reclaimable = duplicates.agg(f.coalesce(f.sum("size_bytes"), f.lit(0)).alias("size_bytes")).first()
    return {
        "num_clusters": len(sizes),
        "num_duplicates": int(len(members.docs) - len(sizes)),
        "num_exact_copies": int((known["original_doc"].to_numpy() != known["doc"].to_numpy()).sum()),
        "reclaimable_bytes": int(reclaimable["size_bytes"]) if reclaimable else 0,
    }


def cluster_docs(
    *,
    lefts: NDArray[np.int64],
    rights: NDArray[np.int64],
    scores: NDArray[np.float32],
    original_docs: NDArray[np.int64],
    pixels: NDArray[np.int64],
) -> Members:
    """Cluster docs `0..n-1` along edges `(m,)` between originals.

    The better image is the one with more pixels, then the smaller doc. `original_docs` and `pixels` are `(n,)`.
    """
    num_docs = len(original_docs)
    rank = np.empty(num_docs, np.int64)
    rank[np.lexsort((np.arange(num_docs), -pixels))] = np.arange(num_docs)
    cut = greedy_cut(num_docs, lefts, rights, scores, rank)
    canonical_docs = cut.canonical[original_docs]
    member_scores = cut.score[original_docs]
    sizes = np.bincount(canonical_docs, minlength=num_docs)
    docs = np.flatnonzero(sizes[canonical_docs] > 1)
    return Members(docs, canonical_docs[docs], member_scores[docs])


def _with_image_ids(spark: SparkSession, folder: Path, catalogue: str) -> Any:
    ids = spark.read.parquet(catalogue).select("image_id", "doc")
    members = spark.read.parquet(str(folder / "members"))
    return (
        members.join(ids, "doc")
        .join(ids.toDF("canonical_id", "canonical_doc"), "canonical_doc")
        .withColumn("is_canonical", f.col("doc") == f.col("canonical_doc"))
        .orderBy(f.desc("size"), "canonical_doc", f.desc("is_canonical"), f.desc("score"), "doc")
        .select(*schemas.columns(schemas.CLUSTERS))
    )
