"""Step 3, terms: LSH terms of every embedding, as posting lists for whoever joins them, and the codes.

A map task hashes its embeddings and packs its (term, doc) pairs into one binary block per part, so a few blobs move
instead of one row per term. A part is a folder into which each task writes a file of its own, so nothing is shuffled. A
second task for each part merges its blocks into posting lists, of which a later night reads the terms it needs. Of the
huge crowds among the embeddings the driver chooses leaders, from a sample of sketches and signatures that the first
tasks return.
"""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batch_jobs import schemas
from batch_jobs.errors import WorkspaceError
from batch_jobs.task_files import allow_open_files, new_file, parquet_file
from batch_jobs.task_runners import TaskRunner
from lsh.blocks import decode_term_blocks, encode_term_blocks
from lsh.buckets import Buckets
from lsh.codes import quantize
from lsh.leaders import NO_LEADERS, Leaders, are_sampled, choose_leaders
from lsh.posting_lists import PostingLists
from lsh.sketches import WORDS_PER_SKETCH, long_sketches
from lsh.terms import TermHasher, TermParams

HASHED_ARROW = schemas.arrow(schemas.HASHED)
BLOCKS_ARROW = schemas.arrow(schemas.TERM_BLOCKS)
CODES_ARROW = schemas.arrow(schemas.CODES)
SKETCHES_ARROW, SAMPLED_ARROW = schemas.arrow(schemas.SKETCHES), schemas.arrow(schemas.SAMPLED)

STEP = "terms"
STEP_OF_VIEWS = "view_terms"
"""The same for views, in thorough runs."""
TABLES = ("posting_lists", "codes", "leaders")
BLOCKS = "term_blocks"
"""Where blocks lie until they are merged."""
DOCS_PER_BLOCK = 65_536
MAX_TASKS = 512
"""Each task writes a file into every part: more docs than it takes are in larger tasks, not in more files."""
_ROWS_AT_ONCE = 16_384

RowGroup = tuple[str, int]
"""A Parquet file, and the number of one of its row groups."""


def make_terms(
    runner: TaskRunner, folder: Path, *, embeddings: str, params: TermParams, num_partitions: int, is_night: bool
) -> Mapping[str, Any]:
    """Write `posting_lists` of `num_partitions` parts, a file each, `codes` and `leaders`.

    A night over known images has no leaders.
    """
    shares, num_docs = row_group_shares(embeddings)
    make_folders(folder, num_parts=num_partitions)

    def hash_share(number: int) -> pa.Table:
        allow_open_files(num_partitions)
        batches = read_row_groups(shares[number])
        rows = hash_batches(batches, params=params, num_parts=num_partitions, num_docs=num_docs)
        return write_hashed(rows, folder, number=number)

    sampled = runner.run(len(shares), hash_share, returns=schemas.SAMPLED, folder=folder)
    leaders = NO_LEADERS if is_night else choose_leaders(*_sketches(sampled), _signatures(sampled, params.num_tables))
    columns = [pa.array(leaders.docs.astype(np.int64)), binary_rows(leaders.sketches)]
    pq.write_table(pa.table(columns, schema=SKETCHES_ARROW), folder / "leaders" / "part-00000.parquet")
    (folder / "posting_lists").mkdir()
    merged = runner.run(num_partitions, partial(merge_part, folder=folder), returns=schemas.MERGED, folder=folder)
    shutil.rmtree(folder / BLOCKS)
    return {"num_parts": num_partitions, "block_bytes": pc.sum(merged["block_bytes"]).as_py()}


def merge_part(part: int, *, folder: Path) -> pa.Table:
    """Merge the term blocks of one part into its file of posting lists; returns its `MERGED` row."""
    blocks = list(_read_blocks(folder / BLOCKS / f"part={part}"))
    lists = PostingLists.of(Buckets.of(decode_term_blocks(blocks)))
    with new_file(_lists_file(folder / "posting_lists", part)) as path, path.open("wb") as file:
        file.writelines(lists.frame())
    row = {"part": part, "block_bytes": sum(map(len, blocks))}
    return pa.Table.from_pylist([row], schema=schemas.arrow(schemas.MERGED))


def _read_blocks(part: Path) -> Iterator[memoryview]:
    """The blocks of one part, one file at a time; none where no image has a term of it."""
    for file in sorted(part.glob("*.parquet")):
        with pq.ParquetFile(file) as opened:
            blocks = opened.read(columns=["block"], use_threads=False)["block"]
        for block in blocks:
            yield memoryview(block.as_buffer())


def read_lists(table: str, part: int, *, is_verified: bool = True) -> PostingLists:
    """The posting lists of one part, mapped into memory; the checksum is read unless the file `is_verified`.

    Raises WorkspaceError for a file that is missing or damaged.
    """
    path = _lists_file(Path(table), part)
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return PostingLists.from_frame(memoryview(mapped), is_verified=is_verified)
    except (OSError, ValueError) as error:
        raise WorkspaceError(
            f"{path} cannot be read ({error}); restore it, or start over with another --workspace"
        ) from error


def _lists_file(table: Path, part: int) -> Path:
    return table / f"part-{part:05d}.lists"


def read_leaders(table: str) -> Leaders:
    """The `leaders` of this step."""
    return Leaders(*_sketches(pq.read_table(table, schema=SKETCHES_ARROW)))


def _sketches(table: pa.Table) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The docs `(n,)` and sketches `(n, WORDS_PER_SKETCH)` of a table that has them."""
    rows = np.frombuffer(binary_values(table["sketch"].combine_chunks()), "<u8").reshape(-1, WORDS_PER_SKETCH)
    return table["doc"].to_numpy().astype(np.uint64), rows


def _signatures(sampled: pa.Table, num_tables: int) -> NDArray[np.uint64]:
    """The signatures `(n, num_tables)` of a `SAMPLED` table."""
    return np.frombuffer(binary_values(sampled["signature"].combine_chunks()), "<u8").reshape(-1, num_tables)


def make_folders(folder: Path, *, num_parts: int) -> None:
    """The empty folders of the step below `folder`. Only the driver makes them: what is left of a run makes none."""
    for part in range(num_parts):
        (folder / BLOCKS / f"part={part}").mkdir(parents=True)
    (folder / "codes").mkdir()
    (folder / "leaders").mkdir()


def write_hashed(rows: Iterator[pa.RecordBatch], folder: Path, *, number: int) -> pa.Table:
    """`HASHED` rows to file `number` of the codes and of each part that they have blocks for; returns the sample."""
    name = f"part-{number:05d}.parquet"
    sampled = []
    with ExitStack() as files:
        codes = files.enter_context(parquet_file(folder / "codes" / name, CODES_ARROW, compression="none"))
        parts: dict[int, pq.ParquetWriter] = {}
        for batch in rows:
            if not batch["sketch"].null_count:
                sampled.append(batch.select(SAMPLED_ARROW.names))
                continue
            if not batch["code"].null_count:
                codes.write_batch(batch.select(["doc", "code"]))
                continue
            for row, part in enumerate(batch["part"].to_pylist()):
                if part not in parts:
                    path = folder / BLOCKS / f"part={part}" / name
                    parts[part] = files.enter_context(parquet_file(path, BLOCKS_ARROW, compression="none"))
                # A row group for each block: none is held back until there are more.
                parts[part].write_batch(batch.select(["block"]).slice(row, 1))
    return pa.Table.from_batches(sampled, SAMPLED_ARROW)


def row_group_shares(embeddings: str) -> tuple[list[list[RowGroup]], int]:
    """The row groups of the embeddings, in order, cut where there are docs enough for a task, and the number of docs.

    There is one task at least.
    """
    groups = [
        ((str(path), number), metadata.row_group(number).num_rows)
        for path in sorted(Path(embeddings).glob("*.parquet"))
        for metadata in [pq.read_metadata(path)]
        for number in range(metadata.num_row_groups)
    ]
    num_docs = sum(num_rows for _, num_rows in groups)
    docs_per_share = max(DOCS_PER_BLOCK, -(-num_docs // MAX_TASKS))
    shares: list[list[RowGroup]] = [[]]
    docs_in_last = 0
    for group, num_rows in groups:
        if docs_in_last >= docs_per_share:
            shares.append([])
            docs_in_last = 0
        shares[-1].append(group)
        docs_in_last += num_rows
    return shares, num_docs


def read_row_groups(share: Sequence[RowGroup]) -> Iterator[pa.RecordBatch]:
    """The embeddings of a share, in batches."""
    for path, number in share:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(
                _ROWS_AT_ONCE, row_groups=[number], columns=["doc", "embedding"], use_threads=False
            )


def hash_batches(
    batches: Iterator[pa.RecordBatch], *, params: TermParams, num_parts: int, num_docs: int
) -> Iterator[pa.RecordBatch]:
    """Embedding rows to `HASHED` rows: term blocks, codes and a sample of up to `DOCS_PER_BLOCK` docs at once.

    `num_docs` are all that the step hashes, here and elsewhere; they decide which of them are sampled.
    """
    hasher = hasher_once(params)
    for docs, embeddings in _gathered(batches, dim=params.dim):
        sketches = long_sketches(embeddings, num_words=WORDS_PER_SKETCH, seed=params.seed)
        terms = hasher.terms(embeddings)
        blocks = encode_term_blocks(terms, docs, sketches, num_partitions=num_parts)
        yield _hashed_rows(part=pa.array(range(num_parts), pa.int32()), block=pa.array(blocks, pa.binary()))
        yield _hashed_rows(doc=pa.array(docs.astype(np.int64)), code=binary_rows(quantize(embeddings)))
        sampled = are_sampled(docs, num_docs=num_docs)
        yield _hashed_rows(
            doc=pa.array(docs[sampled].astype(np.int64)),
            sketch=binary_rows(sketches[sampled]),
            signature=binary_rows(terms[sampled]),
        )


@lru_cache(maxsize=1)
def hasher_once(params: TermParams) -> TermHasher:
    return TermHasher(params)


def embedding_rows(column: pa.Array, *, dim: int) -> NDArray[np.float32]:
    """A binary column of embeddings as `(n, dim)` float32."""
    return np.frombuffer(binary_values(column), "<f4").reshape(-1, dim)


def binary_values(column: pa.Array) -> memoryview:
    """The values of a binary column without nulls, one after the other, without a copy or an object for each."""
    if not len(column):
        return memoryview(b"")
    column = column.cast(pa.large_binary())
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, "<i8")[column.offset : column.offset + len(column) + 1]
    return memoryview(data)[int(ends[0]) : int(ends[-1])]


def binary_rows(rows: NDArray[Any]) -> pa.Array:
    """A C-contiguous 2-D array as a binary column, one value for each row, without a copy or an object for each."""
    offsets = np.arange(len(rows) + 1) * (rows.shape[1] * rows.itemsize)
    values = pa.Array.from_buffers(pa.large_binary(), len(rows), [None, pa.py_buffer(offsets), pa.py_buffer(rows)])
    return values.cast(pa.binary())


def _gathered(
    batches: Iterator[pa.RecordBatch], *, dim: int
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.float32]]]:
    """Consecutive batches joined to about `DOCS_PER_BLOCK` rows, docs ascending."""
    docs: list[NDArray[np.uint64]] = []
    embeddings: list[NDArray[np.float32]] = []
    for batch in batches:
        docs.append(batch["doc"].to_numpy().astype(np.uint64))
        embeddings.append(embedding_rows(batch["embedding"], dim=dim))
        if sum(map(len, docs)) >= DOCS_PER_BLOCK:
            yield _by_doc(docs, embeddings)
            docs, embeddings = [], []
    if docs:
        yield _by_doc(docs, embeddings)


def _by_doc(
    docs: list[NDArray[np.uint64]], embeddings: list[NDArray[np.float32]]
) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    all_docs, all_embeddings = np.concatenate(docs), np.concatenate(embeddings)
    if np.all(all_docs[1:] > all_docs[:-1]):
        return all_docs, all_embeddings
    order = np.argsort(all_docs)
    return all_docs[order], all_embeddings[order]


def _hashed_rows(**columns: pa.Array) -> pa.RecordBatch:
    num_rows = len(next(iter(columns.values())))
    return pa.RecordBatch.from_arrays(
        [columns.get(field.name, pa.nulls(num_rows, field.type)) for field in HASHED_ARROW], schema=HASHED_ARROW
    )


if __name__ == "__main__":
    from batch_jobs.submit import main

    main(until=STEP)
