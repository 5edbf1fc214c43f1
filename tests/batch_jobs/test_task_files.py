"""Rules of tables whose files tasks write themselves."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_jobs.errors import WorkspaceError
from batch_jobs.task_files import allow_open_files, parquet_file

SCHEMA = pa.schema([("part", pa.int32()), ("block", pa.binary())])
ROWS = pa.table([[1, 2], [b"one", b"two"]], schema=SCHEMA)


def test_a_file_appears_when_its_block_ends(tmp_path: Path) -> None:
    """Until then a reader of the table sees nothing, and afterwards the whole."""
    with parquet_file(tmp_path / "part-0.parquet", SCHEMA) as file:
        file.write_table(ROWS)
        assert list(tmp_path.glob("*.parquet")) == []
    assert [path.name for path in tmp_path.iterdir()] == ["part-0.parquet"]
    assert pq.read_table(tmp_path / "part-0.parquet").equals(ROWS)


def test_a_task_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Its file is neither there nor aside, and one of an attempt before it stays."""
    with parquet_file(tmp_path / "part-0.parquet", SCHEMA) as file:
        file.write_table(ROWS)
    for name in ("part-0.parquet", "part-1.parquet"):
        with pytest.raises(ValueError, match="schema"), parquet_file(tmp_path / name, SCHEMA) as file:
            file.write_table(ROWS.append_column("other", [[1, 2]]))
    assert [path.name for path in tmp_path.iterdir()] == ["part-0.parquet"]
    assert pq.read_table(tmp_path / "part-0.parquet").equals(ROWS)


def test_the_same_rows_make_the_same_bytes(tmp_path: Path) -> None:
    """A task that is run again replaces its file by an equal one."""
    contents = []
    for _ in range(2):
        with parquet_file(tmp_path / "part-0.parquet", SCHEMA, compression="none") as file:
            file.write_table(ROWS, row_group_size=1)
        contents.append((tmp_path / "part-0.parquet").read_bytes())
    assert contents[0] == contents[1]


def test_blocks_stay_out_of_the_footer(tmp_path: Path) -> None:
    """Integers have statistics, by which readers choose row groups; blocks would be stored in theirs twice more."""
    with parquet_file(tmp_path / "part-0.parquet", SCHEMA) as file:
        file.write_table(ROWS)
    group = pq.read_metadata(tmp_path / "part-0.parquet").row_group(0)
    assert (group.column(0).statistics.min, group.column(0).statistics.max) == (1, 2)
    assert group.column(1).statistics is None


@pytest.fixture
def few_open_files() -> Iterator[int]:
    """A soft limit as on most machines, put back afterwards; the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_task_of_many_parts_may_open_as_many_files(few_open_files: int) -> None:
    """The limit that a process may raise itself is raised as far as the parts need, and never lowered."""
    allow_open_files(2000)
    assert 2000 <= resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= few_open_files
    allow_open_files(10)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 2000


def test_more_files_than_the_machine_allows_are_refused_by_number(few_open_files: int) -> None:
    """Before a file is written, with the way out."""
    with pytest.raises(WorkspaceError, match=f"{few_open_files:,} in all; raise `ulimit -Hn`"):
        allow_open_files(few_open_files)
