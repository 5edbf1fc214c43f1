"""Step 4, candidates: pairs of images that share terms.

A task reads the term blocks of one part, walks each bucket, and packs the pairs it finds into one binary row per range
of left docs. A pair found in several parts is merged, its shared terms added up, in the next step.

A night joins new against all and new against new: known blocks are only scanned for the terms of new docs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batch_jobs import schemas
from batch_jobs.task_files import parquet_file
from batch_jobs.task_runners import TaskRunner
from lsh.blocks import decode_term_blocks, encode_pair_block
from lsh.candidates import CandidateParams, Candidates
from lsh.leaders import Leaders, candidates_with_leaders
from lsh.new_candidates import new_candidates

PAIR_BLOCKS_ARROW = schemas.arrow(schemas.PAIR_BLOCKS)

STEP = "candidates"
TABLES = ("pair_blocks",)
PART_BYTES = 3 << 29
"""What joining one part may take."""
_BYTES_PER_DOC = 90
_BYTES_PER_POSTING = 76
"""A posting and, as measured at four million images, its share of the pairs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Join:
    """What is joined: the term blocks of new docs with one another and with known ones.

    `removed_docs`, ascending, are left out of the known. `leaders` of crowds lead where nothing is known. Without
    `among_new` new docs meet known ones alone.
    """

    new: str
    known: tuple[str, ...]
    removed_docs: NDArray[np.int64]
    leaders: Leaders
    params: CandidateParams
    docs_per_range: int
    among_new: bool = True


def find_candidates(runner: TaskRunner, folder: Path, *, join: Join, num_parts: int) -> Mapping[str, Any]:
    """Write `pair_blocks`; returns the counts of buckets and of what was not compared in those that were cut."""
    (folder / "pair_blocks").mkdir()

    def write_pairs(part: int) -> pa.Table:
        found = join_part(part, join)
        write_pair_blocks(found, folder / "pair_blocks", part=part)
        return found.drop_columns(["left_range", "block"])

    return pair_counts(runner.run(num_parts, write_pairs, returns=schemas.PAIR_COUNTS, folder=folder))


def write_pair_blocks(found: pa.Table, folder: Path, *, part: int) -> None:
    """The `PAIR_BLOCKS` rows of one part as its file, each block a row group that can be read alone."""
    with parquet_file(folder / f"part-{part:05d}.parquet", PAIR_BLOCKS_ARROW, compression="none") as file:
        file.write_table(found, row_group_size=1)


def pair_counts(counts: pa.Table) -> dict[str, int]:
    """The counts of all parts as those of the step."""
    totals = {name: pc.sum(counts[name]) for name in ("num_pairs", "num_buckets", "num_cut_buckets", "num_cut_pairs")}
    totals["largest_bucket"] = pc.max(counts["largest_bucket"])
    return {name: total.as_py() or 0 for name, total in totals.items()}


def fitting_parts(num_docs: int, *, num_tables: int) -> int:
    """The fewest parts of which each can be joined in `PART_BYTES`.

    A part of few names every doc; once there are more parts than tables it names at most one doc for each posting.

    >>> [fitting_parts(num_docs, num_tables=48) for num_docs in (100_000, 1_000_000, 4_000_000, 100_000_000)]
    [1, 3, 12, 495]
    """
    num_postings = num_docs * num_tables
    left = PART_BYTES - num_docs * _BYTES_PER_DOC
    naming_all = -(-num_postings * _BYTES_PER_POSTING // left) if left > 0 else num_tables + 1
    naming_some = -(-num_postings * (_BYTES_PER_POSTING + _BYTES_PER_DOC) // PART_BYTES)
    return max(1, naming_all if naming_all <= num_tables else naming_some)


def join_part(part: int, join: Join) -> pa.Table:
    """All term blocks of one part to `PAIR_BLOCKS` rows, one per range of left docs."""
    found = _found_in(part, join)
    # Pairs are sorted by their left doc, so each range is one slice.
    last_range = int(found.pairs[-1, 0]) // join.docs_per_range if len(found.pairs) else -1
    ranges = np.arange(last_range + 2)
    bounds = np.searchsorted(found.pairs[:, 0], (ranges * join.docs_per_range).astype(np.uint64))
    rows = [
        {
            "part": part,
            "left_range": int(left_range),
            "num_pairs": int(end - start),
            "block": encode_pair_block(found.pairs[start:end], found.shared_terms[start:end]),
        }
        for left_range, start, end in zip(ranges[:-1], bounds[:-1], bounds[1:], strict=True)
        if start < end
    ]
    return pa.Table.from_pylist([{"part": part, **_counts(found)}, *rows], schema=PAIR_BLOCKS_ARROW)


def _found_in(part: int, join: Join) -> Candidates:
    new = list(read_blocks(join.new, part))
    if not join.known:
        return candidates_with_leaders(decode_term_blocks(new), join.params, join.leaders)
    known = (block for table in join.known for block in read_blocks(table, part))
    return new_candidates(
        known, new, join.params, removed_docs=join.removed_docs.astype(np.uint64), among_new=join.among_new
    )


def read_blocks(term_blocks: str, part: int) -> Iterator[memoryview]:
    """The blocks of one part, one file at a time; none where no image has a term of it."""
    for file in sorted(Path(term_blocks, f"part={part}").glob("*.parquet")):
        with pq.ParquetFile(file) as opened:
            blocks = opened.read(columns=["block"], use_threads=False)["block"]
        for block in blocks:
            yield memoryview(block.as_buffer())


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
