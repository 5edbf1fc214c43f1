"""Step 5, select: candidates become matches.

Candidates are verified by the exact cosine of their codes; the embedder's `PairScorer` (classifier and calibration,
or the cosine itself) scores them, and a pair with `score >= min_score` is a match.

Where codes do not fit, candidates stay unverified: those of at least `min_shared_terms` are matches, and both
similarity and score are the overlap of their terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
from numpy.typing import NDArray

from batch_jobs import schemas
from batch_jobs.make_terms import binary_values
from batch_jobs.nights import read_columns
from batch_jobs.session import write_table
from embed.pair_scoring import PairScorer
from lsh.blocks import decode_pair_blocks
from lsh.codes import pair_cosines

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SCORED_ARROW = schemas.arrow(schemas.SCORED)

STEP = "select"
TABLES = ("edges",)
HISTOGRAM_BINS = 100

Match = Callable[[NDArray[np.int64]], tuple[NDArray[np.bool_], NDArray[np.float32]]]
"""From pairs of docs `(m, 2)` to whether each is a match, and its score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """How candidates become matches."""

    dim: int
    min_score: float
    min_shared_terms: int
    scorer: PairScorer
    num_tables: int
    verified: bool = True


def select_matches(
    spark: SparkSession,
    folder: Path,
    *,
    pair_blocks: str,
    codes: tuple[str, ...],
    selection: Selection,
    docs_per_range: int,
    num_partitions: int,
) -> Mapping[str, Any]:
    """Write `edges`; returns the histogram of the candidates' scores over -1..1."""

    def verify(table: pa.Table) -> pa.Table:
        return verify_blocks(table, codes=codes, selection=selection, docs_per_range=docs_per_range)

    scored = (
        spark.read.parquet(pair_blocks)
        .where("block IS NOT NULL")
        .select("left_range", "block")
        .repartition(num_partitions, "left_range")
        .groupBy("left_range")
        .applyInArrow(verify, schemas.SCORED)
        .persist()
    )
    try:
        write_table(scored.where("histogram IS NULL").drop("histogram"), folder / "edges")
        histograms = scored.where("histogram IS NOT NULL").select("histogram").toLocalIterator()
        return histogram_stats([row["histogram"] for row in histograms])
    finally:
        scored.unpersist()


def histogram_stats(histograms: Sequence[bytes]) -> Mapping[str, Any]:
    """What the step reports, from the histograms of its tasks."""
    counts = [np.zeros(HISTOGRAM_BINS, np.int64), *(np.frombuffer(histogram, "<i8") for histogram in histograms)]
    histogram = np.sum(counts, axis=0, dtype=np.int64)
    return {"num_distinct_pairs": int(histogram.sum()), "score_histogram": histogram.tolist()}


def verify_blocks(table: pa.Table, *, codes: tuple[str, ...], selection: Selection, docs_per_range: int) -> pa.Table:
    """All pair blocks of one range of left docs to `SCORED` rows."""
    pairs, shared_terms = decode_pair_blocks(table["block"].to_pylist())
    enough = shared_terms >= selection.min_shared_terms
    pairs, shared_terms = pairs[enough], shared_terms[enough]
    if selection.verified:
        similarities, scores = _scored(pairs, codes=codes, selection=selection, docs_per_range=docs_per_range)
        matches = scores >= np.float32(selection.min_score)
    else:
        similarities = scores = term_overlap(shared_terms, num_tables=selection.num_tables)
        matches = np.ones(len(pairs), np.bool_)
    histogram, _ = np.histogram(scores, bins=HISTOGRAM_BINS, range=(-1.0, 1.0))
    num_rows = int(matches.sum())
    rows = pa.table(
        [
            pairs[matches, 0].astype(np.int64),
            pairs[matches, 1].astype(np.int64),
            similarities[matches],
            scores[matches],
            shared_terms[matches].astype(np.int32),
            pa.nulls(num_rows, pa.binary()),
        ],
        schema=SCORED_ARROW,
    )
    counted = pa.Table.from_pylist([{"histogram": histogram.astype("<i8").tobytes()}], schema=SCORED_ARROW)
    return pa.concat_tables([rows, counted])


def term_overlap(shared_terms: NDArray[np.uint32], *, num_tables: int) -> NDArray[np.float32]:
    """The Jaccard overlap of two signatures that share this many of `num_tables` terms, `(m,)` float32.

    >>> term_overlap(np.array([8, 16], np.uint32), num_tables=16).round(3).tolist()
    [0.3330000042915344, 1.0]
    """
    shared = np.minimum(shared_terms, num_tables).astype(np.float32)
    return shared / (np.float32(2 * num_tables) - shared)


def _scored(
    pairs: NDArray[np.uint64], *, codes: tuple[str, ...], selection: Selection, docs_per_range: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and scores of pairs whose left docs share one range, reading one range of right docs at a time.

    Pairs too far apart to match are not looked at beyond their cosine.
    """
    similarities, scores = np.empty(len(pairs), np.float32), np.empty(len(pairs), np.float32)
    if not len(pairs):
        return similarities, scores
    dim, scorer = selection.dim, selection.scorer
    right_ranges = (pairs[:, 1] // np.uint64(docs_per_range)).astype(np.int64)
    left_range = int(pairs[0, 0]) // docs_per_range
    left_docs, left_codes = read_codes(codes, left_range, dim=dim, docs_per_range=docs_per_range)
    lowest = scorer.lowest_similarity(selection.min_score)
    for right_range in np.unique(right_ranges):
        rows = np.flatnonzero(right_ranges == right_range)
        right_docs, right_codes = (
            (left_docs, left_codes)
            if right_range == left_range
            else read_codes(codes, int(right_range), dim=dim, docs_per_range=docs_per_range)
        )
        left_rows, right_rows = np.searchsorted(left_docs, pairs[rows, 0]), np.searchsorted(right_docs, pairs[rows, 1])
        similarities[rows] = pair_cosines(left_codes, right_codes, left_rows, right_rows)
        scores[rows] = scorer.scores_above(
            similarities[rows], left_codes, right_codes, left_rows, right_rows, lowest_similarity=lowest
        )
    return similarities, scores


def matcher(codes: tuple[str, ...], selection: Selection) -> Match | None:
    """A `Match` by the codes of all segments `codes`; None unverified."""

    def match(pairs: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        docs = np.unique(pairs)
        wanted = pyarrow.dataset.field("doc").isin(pa.array(docs))
        table = read_columns(codes, ["doc", "code"], where=wanted).sort_by("doc")
        rows = np.frombuffer(binary_values(table["code"].combine_chunks()), np.int8).reshape(-1, selection.dim)
        left_rows, right_rows = np.searchsorted(docs, pairs[:, 0]), np.searchsorted(docs, pairs[:, 1])
        projected = selection.scorer.project(rows)
        similarities = pair_cosines(rows, rows, left_rows, right_rows)
        scores = selection.scorer.scores(similarities, projected, projected, left_rows, right_rows)
        return scores >= np.float32(selection.min_score), scores

    return match if selection.verified else None


def read_codes(
    codes: tuple[str, ...], doc_range: int, *, dim: int, docs_per_range: int
) -> tuple[NDArray[np.uint64], NDArray[np.int8]]:
    """The docs of a range that have a code in a segment of `codes`, ascending, and their `(n, dim)` int8 codes."""
    doc = pyarrow.dataset.field("doc")
    first = doc_range * docs_per_range
    table = read_columns(codes, ["doc", "code"], where=(doc >= first) & (doc < first + docs_per_range))
    docs = table["doc"].to_numpy().astype(np.uint64)
    rows = np.frombuffer(binary_values(table["code"].combine_chunks()), np.int8).reshape(-1, dim)
    order = np.argsort(docs, kind="stable")
    return docs[order], rows[order]


if __name__ == "__main__":
    from batch_jobs.submit import main

    main(until=STEP)
