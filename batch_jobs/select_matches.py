"""Step 5, select: candidates become matches.

Candidates are verified by the exact cosine of their codes; the embedder's `PairScorer` (classifier and calibration,
or the cosine itself) scores them, and a pair with `score >= min_score` is a match.

Where codes do not fit, candidates stay unverified: those of at least `min_shared_terms` are matches, and both
similarity and score are the overlap of their terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batch_jobs import schemas
from batch_jobs.make_terms import binary_values
from batch_jobs.nights import read_columns
from batch_jobs.session import ROWS_PER_GROUP, num_cores
from batch_jobs.task_files import parquet_file
from batch_jobs.task_runners import TaskRunner
from embed.pair_scoring import PairScorer
from lsh.blocks import decode_pair_blocks
from lsh.codes import pair_cosines

EDGES_ARROW, HISTOGRAMS_ARROW = schemas.arrow(schemas.EDGES), schemas.arrow(schemas.HISTOGRAMS)

STEP = "select"
TABLES = ("edges",)
HISTOGRAM_BINS = 100
DOCS_PER_STRIP = 32_768
PAIRS_AT_ONCE = 1 << 24
"""What a task verifies at once; 50 bytes each."""

Match = Callable[[NDArray[np.int64]], tuple[NDArray[np.bool_], NDArray[np.float32]]]
"""From pairs of docs `(m, 2)` to whether each is a match, and its score."""


@dataclass(frozen=True, slots=True)
class Margins:
    """What the cosine of a pair counts less, by its right doc: `values` in turn, from `first_doc` on."""

    first_doc: int
    values: tuple[float, ...]

    def of(self, docs: NDArray[np.uint64]) -> NDArray[np.float32]:
        """Those of pairs with these right docs, none of them before `first_doc`.

        >>> Margins(10, (0.0, 0.5)).of(np.array([10, 11, 12], np.uint64)).tolist()
        [0.0, 0.5, 0.0]
        """
        places = (docs - np.uint64(self.first_doc)) % np.uint64(len(self.values))
        return np.array(self.values, np.float32)[places.astype(np.int64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """How candidates become matches."""

    dim: int
    min_score: float
    min_shared_terms: int
    scorer: PairScorer
    num_tables: int
    verified: bool = True
    margins: Margins | None = None


def select_matches(
    runner: TaskRunner,
    folder: Path,
    *,
    pair_blocks: str,
    codes: tuple[str, ...],
    selection: Selection,
    docs_per_range: int,
) -> Mapping[str, Any]:
    """Write `edges`; returns the histogram of the candidates' scores over -1..1."""
    (folder / "edges").mkdir()
    ranges = pairs_by_range(pair_blocks)

    def write_matches(number: int) -> pa.Table:
        left_range, num_pairs = ranges[number]
        histogram = np.zeros(HISTOGRAM_BINS, np.int64)
        with parquet_file(folder / "edges" / f"part-{left_range:05d}.parquet", EDGES_ARROW) as file:
            for lefts in strips_of_lefts(left_range, num_pairs, docs_per_range=docs_per_range):
                pairs, shared_terms = decode_pair_blocks(read_pair_blocks(pair_blocks, left_range), lefts=lefts)
                edges, scores = verified(
                    pairs, shared_terms, codes=codes, selection=selection, docs_per_range=docs_per_range
                )
                file.write_table(edges, row_group_size=ROWS_PER_GROUP)
                histogram += np.histogram(scores, bins=HISTOGRAM_BINS, range=(-1.0, 1.0))[0]
        return pa.Table.from_pylist([{"histogram": histogram.astype("<i8").tobytes()}], schema=HISTOGRAMS_ARROW)

    histograms = runner.run(len(ranges), write_matches, returns=schemas.HISTOGRAMS, folder=folder)
    if not ranges:
        with parquet_file(folder / "edges" / "part-00000.parquet", EDGES_ARROW):
            pass
    return histogram_stats(histograms)


def pairs_by_range(pair_blocks: str) -> list[tuple[int, int]]:
    """The ranges of left docs that have pairs, ascending, and how many pairs the blocks of each have."""
    blocks = read_columns((pair_blocks,), ["left_range", "num_pairs"]).drop_null()
    counts = blocks.group_by("left_range").aggregate([("num_pairs", "sum")]).sort_by("left_range")
    return list(zip(counts["left_range"].to_pylist(), counts["num_pairs_sum"].to_pylist(), strict=True))


def strips_of_lefts(left_range: int, num_pairs: int, *, docs_per_range: int) -> Iterator[range]:
    """The left docs of a range of so many pairs, cut evenly into strips of about `PAIRS_AT_ONCE`.

    >>> list(strips_of_lefts(2, 3 * PAIRS_AT_ONCE, docs_per_range=10))
    [range(20, 23), range(23, 26), range(26, 30)]
    """
    num_strips = min(docs_per_range, max(1, -(-num_pairs // PAIRS_AT_ONCE)))
    first = left_range * docs_per_range
    bounds = [first + number * docs_per_range // num_strips for number in range(num_strips + 1)]
    yield from map(range, bounds[:-1], bounds[1:])


def read_pair_blocks(pair_blocks: str, left_range: int) -> Iterator[memoryview]:
    """The blocks of one range, one at a time, in the order of parts."""
    scanner = pyarrow.dataset.dataset(pair_blocks, format="parquet").scanner(
        columns=["block"],
        filter=pyarrow.dataset.field("left_range") == left_range,
        use_threads=False,
        batch_readahead=1,
        fragment_readahead=1,
    )
    for batch in scanner.to_batches():
        for block in batch["block"]:
            yield memoryview(block.as_buffer())


def histogram_stats(histograms: pa.Table) -> dict[str, Any]:
    """The histograms of all ranges as the step's one."""
    total = np.zeros(HISTOGRAM_BINS, np.int64)
    for histogram in histograms["histogram"].to_pylist():
        total += np.frombuffer(histogram, "<i8")
    return {"num_distinct_pairs": int(total.sum()), "score_histogram": total.tolist()}


def verified(
    pairs: NDArray[np.uint64],
    shared_terms: NDArray[np.uint32],
    *,
    codes: tuple[str, ...],
    selection: Selection,
    docs_per_range: int,
) -> tuple[pa.Table, NDArray[np.float32]]:
    """Distinct pairs, ascending, whose left docs share one range: their matches as `EDGES`, and the scores of all."""
    if selection.min_shared_terms > 1:
        enough = shared_terms >= selection.min_shared_terms
        pairs, shared_terms = pairs[enough], shared_terms[enough]
    if selection.verified:
        similarities, scores = _scored(pairs, codes=codes, selection=selection, docs_per_range=docs_per_range)
        matches = scores >= np.float32(selection.min_score)
    else:
        similarities = scores = term_overlap(shared_terms, num_tables=selection.num_tables)
        matches = np.ones(len(pairs), np.bool_)
    columns = [
        pairs[matches, 0].astype(np.int64),
        pairs[matches, 1].astype(np.int64),
        similarities[matches],
        scores[matches],
        shared_terms[matches].astype(np.int32),
    ]
    return pa.table(columns, schema=EDGES_ARROW), scores


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
    left_range = int(pairs[0, 0]) // docs_per_range
    left_docs, left_codes = read_codes(codes, left_range, dim=dim, docs_per_range=docs_per_range)
    left_row_of = _row_of(left_docs, left_range, docs_per_range)
    lowest = scorer.lowest_similarity(selection.min_score)
    for right_range, rows in _by_right_range(pairs[:, 1], docs_per_range):
        right_docs, right_codes = (
            (left_docs, left_codes)
            if right_range == left_range
            else read_codes(codes, right_range, dim=dim, docs_per_range=docs_per_range)
        )
        right_row_of = _row_of(right_docs, right_range, docs_per_range)
        left_rows = left_row_of[pairs[rows, 0] - np.uint64(left_range * docs_per_range)]
        right_rows = right_row_of[pairs[rows, 1] - np.uint64(right_range * docs_per_range)]
        similarities[rows] = pair_cosines(left_codes, right_codes, left_rows, right_rows)
        if selection.margins is not None:
            similarities[rows] -= selection.margins.of(pairs[rows, 1])
        scores[rows] = scorer.scores_above(
            similarities[rows], left_codes, right_codes, left_rows, right_rows, lowest_similarity=lowest
        )
    return similarities, scores


def _by_right_range(rights: NDArray[np.uint64], docs_per_range: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each range of right docs that there is, and the rows of its pairs, strip by strip: its codes fit in a cache."""
    docs_per_strip = DOCS_PER_STRIP if docs_per_range % DOCS_PER_STRIP == 0 else docs_per_range
    strips = rights // np.uint64(docs_per_strip)
    first_strip = int(strips.min())
    strips -= np.uint64(first_strip)
    # Sorting the low bits first sorts by all of them: a stable sort of 16 bits counts, one of 64 compares.
    order = np.argsort(strips.astype(np.uint16), kind="stable")
    if int(strips.max()) > np.iinfo(np.uint16).max:
        order = order[np.argsort(strips[order] >> np.uint64(16), kind="stable")]
    ends = np.cumsum(np.bincount(strips.view(np.int64)))
    ranges = (first_strip + np.arange(ends.size)) * docs_per_strip // docs_per_range
    last_strips = np.append(np.flatnonzero(np.diff(ranges)), ends.size - 1)
    start = 0
    for strip in last_strips.tolist():
        if start < ends[strip]:
            yield int(ranges[strip]), order[start : ends[strip]]
        start = int(ends[strip])


def _row_of(docs: NDArray[np.uint64], doc_range: int, docs_per_range: int) -> NDArray[np.int64]:
    """The row of each doc of a range by its place in the range, -1 for one that has none."""
    row_of = np.full(docs_per_range, -1)
    row_of[(docs - np.uint64(doc_range * docs_per_range)).astype(np.int64)] = np.arange(docs.size)
    return row_of


def matcher(codes: tuple[str, ...], selection: Selection) -> Match | None:
    """A `Match` by the codes of all segments `codes`; None unverified."""

    def match(pairs: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        of_codes = pairs_of_codes(codes, pairs, dim=selection.dim)
        scores = of_codes.scores(of_codes.cosines, selection.scorer)
        return scores >= np.float32(selection.min_score), scores

    return match if selection.verified else None


@dataclass(frozen=True, slots=True, eq=False)
class CodePairs:
    """Pairs of rows of codes `(n, dim)`, and their cosines `(m,)` float32."""

    codes: NDArray[np.int8]
    left_rows: NDArray[np.int64]
    right_rows: NDArray[np.int64]
    cosines: NDArray[np.float32]

    def scores(self, similarities: NDArray[np.float32], scorer: PairScorer) -> NDArray[np.float32]:
        """The scores of the pairs, were they so similar."""
        projected = scorer.project(self.codes)
        return scorer.scores(similarities, projected, projected, self.left_rows, self.right_rows)


def pairs_of_codes(codes: tuple[str, ...], pairs: NDArray[np.int64], *, dim: int) -> CodePairs:
    """Pairs of docs `(m, 2)` with their codes of all segments `codes`."""
    docs = np.unique(pairs)
    rows = _codes_of_docs(codes, docs.astype(np.uint64), dim=dim)
    left_rows, right_rows = np.searchsorted(docs, pairs[:, 0]), np.searchsorted(docs, pairs[:, 1])
    return CodePairs(rows, left_rows, right_rows, pair_cosines(rows, rows, left_rows, right_rows))


@dataclass(frozen=True, slots=True)
class CodeGroup:
    """A row group of a file of codes, and which docs it may have, both ends included."""

    file: Path
    number: int
    first_doc: int
    last_doc: int


@lru_cache(maxsize=1)
def code_groups(codes: tuple[str, ...]) -> tuple[CodeGroup, ...]:
    """The row groups of all segments `codes`, which never change, by what their footers say."""
    groups = []
    for table in codes:
        for file in sorted(Path(table).glob("*.parquet")):
            metadata = pq.read_metadata(file)
            place = metadata.schema.names.index("doc")
            for number in range(metadata.num_row_groups):
                if not metadata.row_group(number).num_rows:
                    continue
                bounds = metadata.row_group(number).column(place).statistics
                groups.append(CodeGroup(file, number, bounds.min, bounds.max))
    return tuple(groups)


def _codes_of(group: CodeGroup, first: int, stop: int, *, dim: int) -> tuple[NDArray[np.uint64], NDArray[np.int8]]:
    """The docs and codes of a row group that are in `first..stop - 1`; read whole, because a filter copies them."""
    with pq.ParquetFile(group.file, memory_map=True) as file:
        table = file.read_row_group(group.number, columns=["doc", "code"], use_threads=False)
    docs = table["doc"].to_numpy().astype(np.uint64)
    rows = np.frombuffer(binary_values(table["code"].combine_chunks()), np.int8).reshape(-1, dim)
    if first <= group.first_doc and group.last_doc < stop:
        return docs, rows
    is_wanted = (docs >= np.uint64(first)) & (docs < np.uint64(stop))
    return docs[is_wanted], rows[is_wanted]


def _codes_of_docs(codes: tuple[str, ...], docs: NDArray[np.uint64], *, dim: int) -> NDArray[np.int8]:
    """The codes `(n, dim)` of some docs, ascending; what has any of them is read whole, so by several threads."""

    def found_in(group: CodeGroup) -> tuple[NDArray[np.uint64], NDArray[np.int8]]:
        group_docs, rows = _codes_of(group, group.first_doc, group.last_doc + 1, dim=dim)
        is_wanted = np.isin(group_docs, docs)
        return group_docs[is_wanted], rows[is_wanted]

    bounds = [np.searchsorted(docs, [group.first_doc, group.last_doc + 1]) for group in code_groups(codes)]
    groups = [group for group, (first, stop) in zip(code_groups(codes), bounds, strict=True) if first < stop]
    with ThreadPoolExecutor(num_cores()) as pool:
        parts = list(pool.map(found_in, groups))
    order = np.argsort(np.concatenate([part[0] for part in parts]), kind="stable")
    found: NDArray[np.int8] = np.concatenate([part[1] for part in parts])[order]
    return found


def read_codes(
    codes: tuple[str, ...], doc_range: int, *, dim: int, docs_per_range: int
) -> tuple[NDArray[np.uint64], NDArray[np.int8]]:
    """The docs of a range that have a code in a segment of `codes`, ascending, and their `(n, dim)` int8 codes."""
    first, stop = doc_range * docs_per_range, (doc_range + 1) * docs_per_range
    groups = [group for group in code_groups(codes) if group.first_doc < stop and first <= group.last_doc]
    parts = [_codes_of(group, first, stop, dim=dim) for group in groups]
    if len(parts) == 1:
        docs, rows = parts[0]
    else:
        docs = np.concatenate([np.empty(0, np.uint64), *(part[0] for part in parts)])
        rows = np.concatenate([np.empty((0, dim), np.int8), *(part[1] for part in parts)])
    if np.all(docs[1:] > docs[:-1]):
        return docs, rows
    order = np.argsort(docs, kind="stable")
    return docs[order], rows[order]


if __name__ == "__main__":
    from batch_jobs.submit import main

    main(until=STEP)
