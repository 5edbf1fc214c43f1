"""Tests of the workspace: what is committed is whole, what is not is made again."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_jobs.errors import LeaseLostError, WorkspaceError
from batch_jobs.workspace import StepOutput, Workspace, published_file, write_json

INPUTS = {"seed": 1}


class CountingWriter:
    """Writes a table of `num_rows` rows and counts how often it was asked to."""

    def __init__(self, num_rows: int = 3) -> None:
        self.num_rows = num_rows
        self.calls = 0

    def __call__(self, folder: Path) -> Mapping[str, Any]:
        self.calls += 1
        (folder / "numbers").mkdir()
        pq.write_table(pa.table({"n": list(range(self.num_rows))}), folder / "numbers" / "part-0.parquet")
        return {"written": self.num_rows}


def make(workspace: Workspace, writer: CountingWriter, inputs: Mapping[str, Any] = INPUTS) -> StepOutput:
    return workspace.step("numbers", inputs=inputs, write=writer, tables=("numbers",))


def test_a_committed_step_is_reused(tmp_path: Path) -> None:
    """The same inputs find the committed step instead of writing it again."""
    writer = CountingWriter()
    with Workspace(tmp_path) as workspace:
        first, second = make(workspace, writer), make(workspace, writer)
    assert (writer.calls, first.reused, second.reused) == (1, False, True)
    assert second.num_rows == {"numbers": 3}
    assert second.stats == {"written": 3}


def test_other_inputs_make_another_step(tmp_path: Path) -> None:
    """Inputs decide the folder, so results of different inputs never mix."""
    with Workspace(tmp_path) as workspace:
        first = make(workspace, CountingWriter())
        second = make(workspace, CountingWriter(), {"seed": 2})
    assert first.folder != second.folder


def test_a_damaged_step_is_made_again(tmp_path: Path) -> None:
    """A committed file that lost bytes since is not trusted."""
    writer = CountingWriter()
    with Workspace(tmp_path) as workspace:
        output = make(workspace, writer)
        part = output.folder / "numbers" / "part-0.parquet"
        part.write_bytes(part.read_bytes()[:-10])
        again = make(workspace, writer)
    assert (writer.calls, again.reused) == (2, False)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"tables": {"numbers": 1}}', b"\xff"])
def test_a_damaged_commit_is_made_again(tmp_path: Path, content: bytes) -> None:
    """A commit file that does not say what it should is as good as none."""
    writer = CountingWriter()
    with Workspace(tmp_path) as workspace:
        output = make(workspace, writer)
        (output.folder / "commit.json").write_bytes(content)
        make(workspace, writer)
    assert writer.calls == 2


def test_a_failed_step_leaves_nothing_that_is_trusted(tmp_path: Path) -> None:
    """A writer that dies half way leaves no step, and the next open removes its remains."""

    def die(folder: Path) -> Mapping[str, Any]:
        (folder / "numbers").mkdir()
        raise KeyboardInterrupt

    with Workspace(tmp_path) as workspace, pytest.raises(KeyboardInterrupt):
        workspace.step("numbers", inputs=INPUTS, write=die, tables=("numbers",))
    with Workspace(tmp_path) as workspace:
        assert list(workspace.steps_folder.iterdir()) == []


def test_a_step_without_rows_is_committed(tmp_path: Path) -> None:
    """Nothing found is a result like any other."""
    with Workspace(tmp_path) as workspace:
        make(workspace, CountingWriter(0))
        assert make(workspace, CountingWriter(0)).num_rows == {"numbers": 0}


def test_a_second_run_on_a_workspace_is_refused(tmp_path: Path) -> None:
    """Two runs never write one workspace at once."""
    with Workspace(tmp_path), pytest.raises(WorkspaceError, match="in use"), Workspace(tmp_path):
        pass


def test_a_workspace_of_another_embedder_is_refused(tmp_path: Path) -> None:
    """The message names what differs, there and now."""
    with Workspace(tmp_path) as workspace:
        workspace.claim({"embedder": "aaa"})
    with Workspace(tmp_path) as workspace, pytest.raises(WorkspaceError, match="embedder: aaa there, bbb now"):
        workspace.claim({"embedder": "bbb"})


def test_a_workspace_of_another_format_is_refused(tmp_path: Path) -> None:
    """An unknown version is an error that names both versions."""
    write_json(tmp_path / "workspace.json", {"format_version": 99})
    with Workspace(tmp_path) as workspace, pytest.raises(WorkspaceError, match=r"99.*writes 4"):
        workspace.claim({})


def test_an_unreadable_workspace_file_is_refused(tmp_path: Path) -> None:
    """A damaged identity is never taken for a match."""
    (tmp_path / "workspace.json").write_text("{")
    with Workspace(tmp_path) as workspace, pytest.raises(WorkspaceError, match="cannot be read"):
        workspace.claim({})


def test_a_full_disk_is_said_in_plain_words(tmp_path: Path) -> None:
    """The operator reads that the disk is full and that finished steps are kept."""

    def fill(_: Path) -> Mapping[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Workspace(tmp_path) as workspace, pytest.raises(WorkspaceError, match=r"disk .* is full.*steps are kept"):
        workspace.step("numbers", inputs=INPUTS, write=fill, tables=())


def test_a_lost_connection_is_no_fault_of_the_workspace(tmp_path: Path) -> None:
    """When Spark's Java process dies, calling it raises an OSError as well, which the pipeline tells as Spark's."""

    def write(_: Path) -> Mapping[str, Any]:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    with Workspace(tmp_path) as workspace, pytest.raises(ConnectionRefusedError):
        workspace.step("numbers", inputs=INPUTS, write=write, tables=("numbers",))


def test_a_workspace_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """A path that cannot be a folder is an error, not a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError), Workspace(tmp_path / "file"):
        pass


def test_a_published_file_is_whole_or_absent(tmp_path: Path) -> None:
    """An error inside the block leaves the old file and no other."""
    path = tmp_path / "result.json"
    write_json(path, {"version": 1})
    with pytest.raises(TypeError), published_file(path) as file:
        file.write("half")  # type: ignore[call-overload]
    assert json.loads(path.read_text()) == {"version": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_that_lost_its_lease_commits_nothing(tmp_path: Path) -> None:
    """A run that was taken over while it worked stops before its step becomes visible."""
    writer = CountingWriter()

    def lose(folder: Path) -> Mapping[str, Any]:
        held = tmp_path / ".leases" / "run" / "00000001.json"
        held.with_name("00000002.json").write_bytes(held.read_bytes())
        return writer(folder)

    with Workspace(tmp_path) as workspace, pytest.raises(LeaseLostError, match="was taken over"):
        workspace.step("numbers", inputs=INPUTS, write=lose, tables=("numbers",))
    assert writer.calls == 1
    assert [path for path in (tmp_path / "steps").iterdir() if not path.name.startswith(".")] == []
