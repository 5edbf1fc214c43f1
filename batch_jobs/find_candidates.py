"""Step 4, candidates: pairs of images that share terms.

A task reads the posting lists of one part, walks each bucket, and packs the pairs it finds into binary rows by the
range of their left docs. A pair found in several parts is merged, its shared terms added up, in the next step.

A night joins new against all and new against new: known lists are only read for the terms of new docs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batch_jobs import schemas
from batch_jobs.make_terms import read_lists
from batch_jobs.task_files import parquet_file
from batch_jobs.task_runners import TaskRunner
from lsh.blocks import encode_pair_block
from lsh.candidates import CandidateParams, Candidates
from lsh.leaders import Leaders, candidates_with_leaders
from lsh.new_candidates import candidates_with_later, new_candidates
from lsh.pair_tally import Spill

PAIR_BLOCKS_ARROW, PAIR_COUNTS_ARROW = schemas.arrow(schemas.PAIR_BLOCKS), schemas.arrow(schemas.PAIR_COUNTS)

STEP = "candidates"
TABLES = ("pair_blocks",)
PART_BYTES = 3 << 29
"""What merging or joining one part may take."""
PAIRS_PER_BLOCK = 1 << 22
_BYTES_PER_DOC = 90
_BYTES_PER_POSTING = 76
"""A posting and, as measured at four million images, its share of the pairs; these are spilled when they are many."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Join:
    """What is joined: the posting lists of new docs with one another and with known ones.

    `removed_docs`, ascending, are left out of the known. `leaders` of crowds lead where nothing is known. Without
    `among_new` new docs meet known ones alone, all of which may lie behind them (`are_known_later`).
    """

    new: str
    known: tuple[str, ...]
    removed_docs: NDArray[np.int64]
    leaders: Leaders
    params: CandidateParams
    docs_per_range: int
    among_new: bool = True
    are_known_later: bool = False


def find_candidates(runner: TaskRunner, folder: Path, *, join: Join, num_parts: int) -> Mapping[str, Any]:
    """Write `pair_blocks`; returns the counts of buckets and of what was not compared in those that were cut."""
    (folder / "pair_blocks").mkdir()

    def write_pairs(part: int) -> pa.Table:
        return join_part(part, join, folder / "pair_blocks")

    return pair_counts(runner.run(num_parts, write_pairs, returns=schemas.PAIR_COUNTS, folder=folder))


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


def join_part(part: int, join: Join, folder: Path) -> pa.Table:
    """Join all posting lists of one part; writes its file of `PAIR_BLOCKS` and returns its `PAIR_COUNTS`.

    Each block is a row group, which can be read alone; one for a range of left docs, more where it has many pairs.
    """
    num_pairs = 0
    with parquet_file(folder / f"part-{part:05d}.parquet", PAIR_BLOCKS_ARROW, compression="none") as file:

        def write(pairs: NDArray[np.uint64], shared_terms: NDArray[np.uint32]) -> None:
            nonlocal num_pairs
            num_pairs += len(pairs)
            for left_range, rows in _blocks_of(pairs[:, 0], join.docs_per_range):
                block = encode_pair_block(pairs[rows], shared_terms[rows])
                row = {"part": part, "left_range": left_range, "num_pairs": rows.stop - rows.start, "block": block}
                file.write_table(pa.Table.from_pylist([row], schema=PAIR_BLOCKS_ARROW))

        found = _found_in(part, join, write)
        write(found.pairs, found.shared_terms)
        counts = {"part": part, "num_pairs": num_pairs, **_counts(found)}
        file.write_table(pa.Table.from_pylist([{**counts, "num_pairs": None}], schema=PAIR_BLOCKS_ARROW))
    return pa.Table.from_pylist([counts], schema=PAIR_COUNTS_ARROW)


def _blocks_of(lefts: NDArray[np.uint64], docs_per_range: int) -> Iterator[tuple[int, slice]]:
    """Each range of the left docs of sorted pairs with its rows, at most `PAIRS_PER_BLOCK` at a time."""
    start = 0
    while start < lefts.size:
        left_range = int(lefts[start]) // docs_per_range
        end = int(np.searchsorted(lefts, np.uint64((left_range + 1) * docs_per_range)))
        end = min(end, start + PAIRS_PER_BLOCK)
        yield left_range, slice(start, end)
        start = end


def _found_in(part: int, join: Join, spill: Spill) -> Candidates:
    new = read_lists(join.new, part, is_verified=False)
    if not join.known:
        return candidates_with_leaders(new.buckets(), join.params, join.leaders, spill=spill)
    known = (read_lists(table, part) for table in join.known)
    removed_docs = join.removed_docs.astype(np.uint64)
    if join.are_known_later:
        return candidates_with_later(known, new, join.params, removed_docs=removed_docs, spill=spill)
    return new_candidates(known, new, join.params, removed_docs=removed_docs, among_new=join.among_new, spill=spill)


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
