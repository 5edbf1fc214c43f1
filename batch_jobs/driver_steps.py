"""The steps over few new docs in the driver's own process: the adapters of the Spark steps on threads, without Spark.

On one machine a small step waits longer for Spark than for its work. As many tasks run at once here as in a local
session, each of the same size, and the kernels release the interpreter, so that threads keep all cores busy. Tables
hold the rows that Spark writes, term blocks in fewer pieces. Whoever names a master, or submits, gets Spark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batch_jobs import schemas
from batch_jobs.find_candidates import Join, join_part
from batch_jobs.make_terms import HASHED_ARROW, hash_batches
from batch_jobs.select_matches import SCORED_ARROW, Selection, histogram_stats, verify_blocks
from batch_jobs.session import write_arrow
from lsh.terms import TermParams

MAX_DOCS = 65_536
MIN_DOCS_PER_TASK = 2048
"""Every later night reads the blocks of each task, so few docs are not spread over many."""

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Driver:
    """How many tasks the driver runs at once, and who is told the share of those that are done, in 0..1."""

    num_threads: int
    progress: Callable[[float], None]

    def map(self, run: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
        """The result of each task, in their order."""
        results: list[Result] = []
        with ThreadPoolExecutor(self.num_threads) as pool:
            for result in pool.map(run, tasks):
                results.append(result)
                self.progress(len(results) / len(tasks))
        return results


def make_terms(
    driver: Driver, folder: Path, *, embeddings: str, params: TermParams, num_partitions: int
) -> Mapping[str, Any]:
    """`make_terms.make_terms`."""
    table = pq.read_table(embeddings)
    num_tasks = max(1, min(driver.num_threads, len(table) // MIN_DOCS_PER_TASK))
    docs_per_task = -(-len(table) // num_tasks)

    def hashed(first: int) -> list[pa.RecordBatch]:
        batches = iter(table.slice(first, docs_per_task).to_batches())
        return list(hash_batches(batches, params=params, num_parts=num_partitions))

    results = driver.map(hashed, range(0, len(table), docs_per_task))
    rows = pa.Table.from_batches([batch for result in results for batch in result], HASHED_ARROW)
    blocks, codes = (rows.filter(pc.is_valid(rows[column])) for column in ("block", "code"))
    (folder / "term_blocks").mkdir()
    for part in range(num_partitions):
        of_part = blocks.filter(pc.equal(blocks["part"], part)).select(["block"])
        write_arrow(of_part, folder / "term_blocks" / f"part={part}")
    write_arrow(codes.select(schemas.columns(schemas.CODES)), folder / "codes")
    return {"num_parts": num_partitions}


def find_candidates(driver: Driver, folder: Path, *, join: Join, num_parts: int) -> Mapping[str, Any]:
    """`find_candidates.find_candidates`."""
    found = pa.concat_tables(driver.map(partial(join_part, join=join), range(num_parts)))
    write_arrow(found, folder / "pair_blocks")
    totals = {name: pc.sum(found[name]) for name in ("num_pairs", "num_buckets", "num_cut_buckets", "num_cut_pairs")}
    totals["largest_bucket"] = pc.max(found["largest_bucket"])
    return {name: total.as_py() or 0 for name, total in totals.items()}


def select_matches(
    driver: Driver,
    folder: Path,
    *,
    pair_blocks: str,
    codes: tuple[str, ...],
    selection: Selection,
    docs_per_range: int,
    num_partitions: int,  # noqa: ARG001
) -> Mapping[str, Any]:
    """`select_matches.select_matches`."""
    blocks = pq.read_table(pair_blocks, columns=["left_range", "block"])
    blocks = blocks.filter(pc.is_valid(blocks["block"]))

    def verified(left_range: int) -> pa.Table:
        of_range = blocks.filter(pc.equal(blocks["left_range"], left_range))
        return verify_blocks(of_range, codes=codes, selection=selection, docs_per_range=docs_per_range)

    left_ranges = pc.unique(blocks["left_range"]).sort().to_pylist()
    scored = pa.concat_tables([SCORED_ARROW.empty_table(), *driver.map(verified, left_ranges)])
    write_arrow(scored.filter(pc.is_null(scored["histogram"])).drop_columns("histogram"), folder / "edges")
    return histogram_stats(scored["histogram"].drop_null().to_pylist())
