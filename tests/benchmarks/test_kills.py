"""Rules of what counts as the same tables after a kill."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.kills import table_digests


def write_table(workspace: Path, name: str, docs: list[int], *, files: int = 1) -> Path:
    folder = workspace / "steps" / "step-0" / name
    folder.mkdir(parents=True)
    for number in range(files):
        pq.write_table(pa.table({"doc": docs[number::files]}), folder / f"part-{number}.parquet")
    return workspace


def test_rows_count_and_not_the_files_that_spark_puts_them_in(tmp_path: Path) -> None:
    """The same rows in another order and other files are the same table; one more row is not."""
    one = table_digests(write_table(tmp_path / "a", "edges", [1, 2, 3]))
    assert table_digests(write_table(tmp_path / "b", "edges", [3, 1, 2], files=2)) == one
    assert table_digests(write_table(tmp_path / "c", "edges", [1, 2, 3, 3])) != one


def test_clusters_are_compared_byte_by_byte(tmp_path: Path) -> None:
    """The order of their rows is part of what is promised."""
    one = table_digests(write_table(tmp_path / "a", "clusters", [1, 2]))
    assert table_digests(write_table(tmp_path / "b", "clusters", [2, 1])) != one


def test_a_table_that_is_missing_is_a_difference(tmp_path: Path) -> None:
    """A run that stopped early has not the same tables."""
    assert table_digests(write_table(tmp_path / "a", "edges", [1])) != table_digests(tmp_path / "b")
