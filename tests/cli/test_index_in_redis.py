"""Rules of `neardup index` on a store in Redis: the operator's flow, its outputs and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.exit_codes import ExitCode
from cli.index import command
from cli.main import exit_code_of
from cli.nightly import command as nightly
from lsh.errors import StoreError
from lsh.index.generation import file_sha256
from lsh.index.publishing import generation_folder
from tests.batch_jobs.test_pipeline import families, write_embeddings
from tests.redis_servers import RedisServer, redis_server
from tests.service.corpora import add_current_generation


def neardup_index(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)))


def answer(*arguments: str | Path) -> dict[str, Any]:
    result = neardup_index(*arguments, "--json")
    assert result.exit_code == 0, result.exception
    value: dict[str, Any] = json.loads(result.stdout)
    return value


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis", "--requirepass", "hunter2") as server:
        yield server


def test_export_promote_roll_back_import(server: RedisServer, tmp_path: Path) -> None:
    """Every verb that a workspace knows, on a store; the password is in no output."""
    store = f"redis://:hunter2@127.0.0.1:{server.port}"
    first = add_current_generation(tmp_path / "one" / "index")
    second = add_current_generation(tmp_path / "one" / "index", num_images=150, seed=3)

    exported = answer("export", "--workspace", tmp_path / "one", "--to", store, "--generation", first, "--promote")
    assert (exported["generation_id"], exported["images"], exported["is_new"]) == (first, 200, True)
    said = neardup_index("export", "--workspace", tmp_path / "one", "--to", store)
    assert said.output.startswith(f"{second} in redis://***@127.0.0.1:{server.port}")
    assert not answer("export", "--workspace", tmp_path / "one", "--to", store)["is_new"]
    assert "hunter2" not in said.output

    listed = answer("list", "--store", store)["generations"]
    assert {one["generation_id"]: one["is_current"] for one in listed} == {first: True, second: False}
    assert answer("promote", second, "--store", store) == {"current": second}
    assert answer("verify", "--store", store) == {"generation_id": second, "is_whole": True}
    assert answer("rollback", "--store", store) == {"current": first}
    assert answer("replicas", "--store", store) == {"replicas": {}}

    imported = answer("import", "--workspace", tmp_path / "two", "--from", store, "--promote")
    assert imported["generation_id"] == first
    folders = [generation_folder(tmp_path / name / "index", first) for name in ("one", "two")]
    names = sorted(path.name for path in folders[0].iterdir())
    assert [file_sha256(folders[1] / name) for name in names] == [file_sha256(folders[0] / name) for name in names]
    answer("promote", second, "--store", store)
    assert answer("gc", "--store", store, "--keep", "0") == {"removed": [first]}


def test_a_night_is_indexed_exported_and_promoted(server: RedisServer, tmp_path: Path) -> None:
    """One command brings the night to servers on files and on Redis; its output has no password."""
    store = f"redis://:hunter2@127.0.0.1:{server.port}"
    source = write_embeddings(tmp_path / "given.npz", families())
    options = ["--workspace", str(tmp_path / "one"), "--min-score", "0.8", "--promote", "--export-to", store]
    night = CliRunner().invoke(nightly, [str(source), *options, "--json"])
    assert night.exit_code == 0, night.exception
    generation_id = json.loads(night.stdout)["generation_id"]
    assert "hunter2" not in night.output
    for where in (["--store", store], ["--workspace", tmp_path / "one"]):
        listed = answer("list", *where)["generations"]
        assert [(one["generation_id"], one["is_current"]) for one in listed] == [(generation_id, True)]
    assert answer("verify", "--store", store) == {"generation_id": generation_id, "is_whole": True}


def test_a_store_that_is_away_has_its_own_exit_code(tmp_path: Path) -> None:
    """The message names the store, without its password."""
    result = neardup_index("list", "--store", "redis://:hunter2@127.0.0.1:1")
    assert isinstance(result.exception, StoreError)
    assert exit_code_of(result.exception) == ExitCode.STORE
    assert "127.0.0.1:1" in str(result.exception)
    assert "hunter2" not in str(result.exception)
