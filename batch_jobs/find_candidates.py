"""Step 4, candidates: pairs of images that share terms.

A reduce task merges the term blocks of its partition, walks each bucket, and packs the pairs it finds into one binary
row per range of left docs. A pair found in several partitions is merged, its shared terms added up, in the next step.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyspark.sql import functions as f

from batch_jobs import schemas
from batch_jobs.session import write_table
from lsh.blocks import decode_term_blocks, encode_pair_block
from lsh.candidates import CandidateParams, Candidates, candidate_pairs

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PAIR_BLOCKS_ARROW = schemas.arrow(schemas.PAIR_BLOCKS)

STEP = "candidates"
TABLES = ("pair_blocks",)


def find_candidates(
    spark: SparkSession,
    folder: Path,
    *,
    term_blocks: str,
    params: CandidateParams,
    docs_per_range: int,
    num_partitions: int,
) -> Mapping[str, Any]:
    """Write `pair_blocks`; returns the counts of buckets and of what was not compared in those that were cut."""

    def join(table: pa.Table) -> pa.Table:
        return join_blocks(table, params=params, docs_per_range=docs_per_range)

    write_table(
        spark.read.parquet(term_blocks)
        .repartition(num_partitions, "part")
        .groupBy("part")
        .applyInArrow(join, schemas.PAIR_BLOCKS),
        folder / "pair_blocks",
    )
    totals = (
        spark.read.parquet(str(folder / "pair_blocks"))
        .select(
            *[f.sum(name).alias(name) for name in ("num_pairs", "num_buckets", "num_cut_buckets", "num_cut_pairs")],
            f.max("largest_bucket").alias("largest_bucket"),
        )
        .first()
    )
    return {name: int(count or 0) for name, count in totals.asDict().items()} if totals else {}


def join_blocks(table: pa.Table, *, params: CandidateParams, docs_per_range: int) -> pa.Table:
    """All term blocks of one reduce partition to `PAIR_BLOCKS` rows, one per range of left docs."""
    found = candidate_pairs(decode_term_blocks(table["block"].to_pylist()), params)
    left_ranges = (found.pairs[:, 0] // np.uint64(docs_per_range)).astype(np.int64)
    # Pairs are sorted by their left doc, so each range is one slice.
    ranges, starts = np.unique(left_ranges, return_index=True)
    ends = np.append(starts[1:], len(left_ranges))
    part = table["part"][0].as_py()
    rows = [
        {
            "part": part,
            "left_range": int(left_range),
            "num_pairs": int(end - start),
            "block": encode_pair_block(found.pairs[start:end], found.shared_terms[start:end]),
        }
        for left_range, start, end in zip(ranges, starts, ends, strict=True)
    ]
    return pa.Table.from_pylist([{"part": part, **_counts(found)}, *rows], schema=PAIR_BLOCKS_ARROW)


def _counts(found: Candidates) -> dict[str, int]:
    return {
        "num_buckets": found.num_buckets,
        "largest_bucket": found.largest_bucket,
        "num_cut_buckets": found.num_cut_buckets,
        "num_cut_pairs": found.num_cut_pairs,
    }


if __name__ == "__main__":
    from batch_jobs.submit import main

    main(until=STEP)
