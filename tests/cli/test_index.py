"""Rules of `neardup index`: the operator's view of generations, its outputs and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.exit_codes import ExitCode
from cli.index import command
from cli.main import exit_code_of
from lsh.errors import GenerationError
from lsh.index import layout
from tests.batch_jobs.test_build_index import NUM_DOCS, commit_run


def neardup_index(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)))


def answer(*arguments: str | Path) -> dict[str, Any]:
    result = neardup_index(*arguments, "--json")
    assert result.exit_code == 0, result.exception
    value: dict[str, Any] = json.loads(result.stdout)
    return value


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    commit_run(tmp_path, min_score=0.9)
    commit_run(tmp_path, min_score=0.8)
    return tmp_path


def build(workspace: Path, *options: str) -> str:
    generation_id: str = answer("build", "--workspace", workspace, *options)["generation_id"]
    return generation_id


def test_a_built_generation_is_listed_but_not_current(workspace: Path) -> None:
    """Building says what it made; only promoting makes it current."""
    said = answer("build", "--workspace", workspace)
    listed = answer("list", "--workspace", workspace)["generations"]
    assert said["images"] == NUM_DOCS
    assert said["is_current"] is False
    assert [one["generation_id"] for one in listed] == [said["generation_id"]]
    assert listed[0]["is_current"] is False
    assert listed[0]["size_bytes"] == said["size_bytes"]


def test_promote_and_roll_back(workspace: Path) -> None:
    """The operator's flow: build and promote, build another, promote it, go back."""
    first = build(workspace, "--promote")
    second = build(workspace, "--min-score", "0.9")
    assert answer("promote", second, "--workspace", workspace) == {"current": second}
    assert answer("rollback", "--workspace", workspace) == {"current": first}
    assert answer("verify", "--workspace", workspace) == {"generation_id": first, "is_whole": True}
    text = neardup_index("list", "--workspace", workspace).stdout
    assert f"* {first}" in text
    assert f"  {second}" in text


def test_tables_and_probes_can_be_chosen(workspace: Path) -> None:
    """More tables take more bytes and make another generation."""
    few, many = (
        answer("build", "--workspace", workspace, "--tables", tables, "--probes", "2") for tables in ("4", "32")
    )
    assert few["size_bytes"] < many["size_bytes"]
    assert few["generation_id"] != many["generation_id"]


def test_gc_removes_what_no_rollback_needs(workspace: Path) -> None:
    """Generations that were current before go, except the last `--keep`."""
    first = build(workspace, "--promote")
    second = build(workspace, "--min-score", "0.9", "--promote")
    assert answer("gc", "--workspace", workspace) == {"removed": []}
    assert answer("gc", "--workspace", workspace, "--keep", "0") == {"removed": [first]}
    assert [one["generation_id"] for one in answer("list", "--workspace", workspace)["generations"]] == [second]


def test_a_damaged_generation_is_named_and_has_an_exit_code(workspace: Path) -> None:
    """Verify and promote name the file; the exit code is that of a damaged workspace."""
    generation_id = build(workspace)
    codes = workspace / "index" / "generations" / generation_id / layout.CODES
    codes.write_bytes(bytes(codes.stat().st_size))
    for name in ("verify", "promote"):
        error = neardup_index(name, generation_id, "--workspace", workspace).exception
        assert isinstance(error, GenerationError)
        assert layout.CODES in str(error)
        assert exit_code_of(error) is ExitCode.WORKSPACE


@pytest.mark.parametrize("name", ["build", "list", "verify", "promote", "rollback", "gc"])
def test_a_workspace_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    """No command makes a workspace out of a mistyped path."""
    error = neardup_index(name, "--workspace", tmp_path / "none").exception
    assert error is not None
    assert exit_code_of(error) is ExitCode.WORKSPACE  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["verify", "promote"])
def test_an_empty_index_says_what_to_do(workspace: Path, name: str) -> None:
    """Without a generation there is nothing to check or promote; the message names the next command."""
    result = neardup_index(name, "--workspace", workspace)
    assert result.exit_code == ExitCode.USAGE
    assert "neardup index" in result.output
    assert "no generations" in neardup_index("list", "--workspace", workspace).stdout
