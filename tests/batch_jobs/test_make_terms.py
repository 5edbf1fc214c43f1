"""Rules of the term step's own kernels and files: binary columns, batches gathered for a block, shares of tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from batch_jobs.errors import WorkspaceError
from batch_jobs.make_terms import (
    DOCS_PER_BLOCK,
    binary_rows,
    binary_values,
    embedding_rows,
    hash_batches,
    make_folders,
    merge_part,
    read_lists,
    read_row_groups,
    row_group_shares,
    write_hashed,
)
from lsh.blocks import decode_term_blocks
from lsh.terms import TermHasher, TermParams

ROWS = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)


def test_rows_survive_a_binary_column() -> None:
    """A column made of rows holds the bytes of each row, and gives the rows back, sliced or not."""
    column = binary_rows(ROWS)

    assert column.type == pa.binary()
    assert column.to_pylist() == [row.tobytes() for row in ROWS]
    np.testing.assert_array_equal(embedding_rows(column, dim=4), ROWS)
    np.testing.assert_array_equal(embedding_rows(column.slice(2, 5), dim=4), ROWS[2:7])


def test_an_empty_column_has_no_values() -> None:
    """No rows are no bytes."""
    assert bytes(binary_values(pa.array([], pa.binary()))) == b""
    assert binary_rows(ROWS[:0]).to_pylist() == []


def test_batches_become_blocks_and_codes_of_the_same_docs() -> None:
    """Docs in any order and any number of batches give the postings of hashing all rows at once."""
    params = TermParams(num_tables=3, dim=4, num_polytopes=1, polytope_dim=4)
    docs = np.array([5, 1, 7, 0, 2, 9, 3, 8, 4])
    batches = [
        pa.record_batch({"doc": docs[rows], "embedding": binary_rows(np.ascontiguousarray(ROWS[rows]))})
        for rows in (slice(0, 4), slice(4, 9))
    ]
    table = pa.Table.from_batches(list(hash_batches(iter(batches), params=params, num_parts=2, num_docs=9)))
    blocks = [block for block in table["block"].to_pylist() if block is not None]
    postings = decode_term_blocks(blocks)
    terms = TermHasher(params).terms(ROWS)
    expected = sorted((term, doc) for doc, row in zip(docs.tolist(), terms.tolist(), strict=True) for term in row)

    assert list(zip(postings.terms.tolist(), postings.docs[postings.doc_rows].tolist(), strict=True)) == expected
    assert table.filter(pc.is_valid(table["code"]))["doc"].to_pylist() == sorted(docs.tolist())


def write_embeddings(folder: Path, *, rows_of_files: list[int], row_group_size: int) -> Path:
    folder.mkdir()
    first = 0
    for number, num_rows in enumerate(rows_of_files):
        rows = np.random.default_rng(number).standard_normal((num_rows, 4)).astype(np.float32)
        table = pa.table({"doc": np.arange(first, first + num_rows), "embedding": binary_rows(rows)})
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=row_group_size)
        first += num_rows
    return folder


def test_tasks_take_whole_row_groups_in_order(tmp_path: Path) -> None:
    """Every row group is in one share, in the order of files, and a share ends once it has docs for a block."""
    rows = DOCS_PER_BLOCK + 1
    folder = write_embeddings(tmp_path / "embeddings", rows_of_files=[rows, 3], row_group_size=DOCS_PER_BLOCK // 2)
    names = [str(folder / f"part-{number}.parquet") for number in range(2)]

    shares, num_docs = row_group_shares(str(folder))

    assert shares == [[(names[0], 0), (names[0], 1)], [(names[0], 2), (names[1], 0)]]
    assert num_docs == rows + 3


def test_no_embeddings_are_one_share(tmp_path: Path) -> None:
    """The codes are a table, whose columns can be read, even where every image was rejected."""
    folder = write_embeddings(tmp_path / "embeddings", rows_of_files=[0], row_group_size=1)
    make_folders(tmp_path, num_parts=2)
    (share,), _ = row_group_shares(str(folder))
    params = TermParams(num_tables=3, dim=4, num_polytopes=1, polytope_dim=4)
    write_hashed(hash_batches(read_row_groups(share), params=params, num_parts=2, num_docs=9), tmp_path, number=0)

    assert pq.read_table(tmp_path / "codes").column_names == ["doc", "code"]
    assert list((tmp_path / "term_blocks").rglob("*.parquet")) == []


def test_a_share_that_is_hashed_again_makes_the_same_files(tmp_path: Path) -> None:
    """A task that Spark runs twice, or at once, leaves the files of one."""
    folder = write_embeddings(tmp_path / "embeddings", rows_of_files=[9], row_group_size=4)
    params = TermParams(num_tables=3, dim=4, num_polytopes=1, polytope_dim=4)
    make_folders(tmp_path, num_parts=2)
    contents = []
    for _ in range(2):
        (share,), _ = row_group_shares(str(folder))
        write_hashed(hash_batches(read_row_groups(share), params=params, num_parts=2, num_docs=9), tmp_path, number=0)
        contents.append({path: path.read_bytes() for path in tmp_path.rglob("*.parquet")})

    assert contents[0] == contents[1]
    assert len(contents[0]) == 1 + 1 + 2


def test_the_blocks_of_a_part_become_its_lists(tmp_path: Path) -> None:
    """The lists hold the postings of all blocks of the part; a part that no image has a term of has empty ones."""
    folder = write_embeddings(tmp_path / "embeddings", rows_of_files=[9], row_group_size=3)
    params = TermParams(num_tables=3, dim=4, num_polytopes=1, polytope_dim=4)
    make_folders(tmp_path, num_parts=3)
    (tmp_path / "posting_lists").mkdir()
    (share,), _ = row_group_shares(str(folder))
    rows = list(hash_batches(read_row_groups(share), params=params, num_parts=2, num_docs=9))
    for number in range(2):
        write_hashed(iter(rows), tmp_path, number=number)
    merged = [merge_part(part, folder=tmp_path).to_pylist()[0] for part in range(3)]
    blocks = [block for row in rows for block in row["block"].to_pylist() if block is not None]

    for part in range(2):
        assert merged[part] == {"part": part, "block_bytes": 2 * len(blocks[part])}
        expected, postings = (
            decode_term_blocks([blocks[part]]),
            read_lists(str(tmp_path / "posting_lists"), part).buckets().postings(),
        )
        for name in ("terms", "doc_rows", "docs", "sketches"):
            np.testing.assert_array_equal(getattr(postings, name), getattr(expected, name))
    assert merged[2]["block_bytes"] == 0
    assert read_lists(str(tmp_path / "posting_lists"), 2, is_verified=False).terms.size == 0


def test_a_file_of_lists_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    """The operator reads which file it is and what to do; a flipped bit is seen where the checksum is read."""
    with pytest.raises(WorkspaceError, match=r"part-00000\.lists cannot be read .*restore it"):
        read_lists(str(tmp_path), 0)
    make_folders(tmp_path, num_parts=1)
    (tmp_path / "posting_lists").mkdir()
    merge_part(0, folder=tmp_path)
    path = tmp_path / "posting_lists" / "part-00000.lists"
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(content)
        with pytest.raises(WorkspaceError, match=r"part-00000\.lists cannot be read .*restore it"):
            read_lists(str(tmp_path / "posting_lists"), 0, is_verified=False)
