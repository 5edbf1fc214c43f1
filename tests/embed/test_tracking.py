"""The tracking store: a real MLflow store in a file, and addresses that are none."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Any

import pytest

from embed.errors import TrackingError
from embed.lineage import Lineage, ModelKind
from embed.tracking import TrackedModel, find_models, log_lineage


def lineage(name: str, **changes: Any) -> Lineage:
    """A lineage with a digest of its own."""
    return Lineage(
        **{"kind": ModelKind.EMBEDDER, "digest": hashlib.sha256(f"tracking {name}".encode()).hexdigest(), **changes}
    )


def test_the_store_gives_back_what_it_was_given(tmp_path: Path, tracking_uri: str) -> None:
    """Every field comes back with its type, texts that look like numbers included, with the model's directory."""
    logged = lineage(
        "whole",
        created_at="2026-01-02T03:04:05Z",
        code_version="0.1.0+c1002020a3f1",
        seed=3,
        parents={"start_from": "a" * 64},
        data={"photos": "b" * 64},
        parameters={"epochs": 13, "rate": 1e-5, "dtype": "bfloat16", "frozen": True, "start": None, "text": "13"},
        metrics={"final_loss": 1.25, "recall at 0.99": 0.75},
        note="of two",
    )

    log_lineage(logged, tmp_path / "mine", tracking_uri=tracking_uri)

    assert find_models(tracking_uri=tracking_uri, digest_prefix=logged.digest) == [
        TrackedModel(lineage=logged, directory=str(tmp_path / "mine"))
    ]


def test_as_much_as_a_lineage_may_hold_fits_into_a_run(tmp_path: Path, tracking_uri: str) -> None:
    """The bounds of a lineage are within MLflow's."""
    logged = lineage(
        "largest",
        parents={str(n): "a" * 64 for n in range(40)},
        data={str(n): "a" * 64 for n in range(40)},
        parameters={f"p{n}": "x" * 2000 for n in range(100)},
        metrics={f"m{n}": n for n in range(500)},
        note="x" * 2000,
        created_at="x",
        code_version="x",
        seed=1,
    )
    log_lineage(logged, tmp_path, tracking_uri=tracking_uri)

    assert find_models(tracking_uri=tracking_uri, digest_prefix=logged.digest)[0].lineage == logged


def test_the_latest_model_comes_first_and_a_prefix_finds_its_own(tmp_path: Path, tracking_uri: str) -> None:
    """A prefix of a digest finds the models that it begins, and no others."""
    for name in ("first", "second"):
        log_lineage(lineage(name), tmp_path, tracking_uri=tracking_uri)

    latest = [model.lineage.digest for model in find_models(tracking_uri=tracking_uri)[:2]]
    found = find_models(tracking_uri=tracking_uri, digest_prefix=lineage("first").digest[:12])
    assert latest == [lineage("second").digest, lineage("first").digest]
    assert [model.lineage for model in found] == [lineage("first")]


def test_runs_of_others_are_passed_over(tmp_path: Path, tracking_uri: str) -> None:
    """A run in our experiment that is no lineage, or is not finished, does not hide the models."""
    from mlflow.tracking import MlflowClient

    log_lineage(lineage("ours"), tmp_path, tracking_uri=tracking_uri)
    before = find_models(tracking_uri=tracking_uri)
    client = MlflowClient(tracking_uri=tracking_uri)
    experiment = client.search_experiments(filter_string="name = 'neardup'")[0].experiment_id
    tags = {"neardup.digest": lineage("theirs").digest, "neardup.kind": "network"}
    client.set_terminated(client.create_run(experiment, tags=tags).info.run_id)
    client.create_run(experiment, tags={**tags, "neardup.kind": "embedder"})

    assert find_models(tracking_uri=tracking_uri) == before


def test_a_store_that_does_not_exist_knows_no_model(tmp_path: Path) -> None:
    """Looking makes no file."""
    assert find_models(tracking_uri=f"sqlite:///{tmp_path}/none/mlflow.db") == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["", "mlruns", "/tmp/mlflow.db", "file:///tmp/mlruns", "sqlite://", "ftp://x/y"])  # noqa: S108
def test_an_address_that_is_no_store_is_refused(uri: str) -> None:
    """The error shows what addresses look like."""
    with pytest.raises(TrackingError, match=r"give sqlite:////PATH/mlflow\.db"):
        find_models(tracking_uri=uri)


def test_a_damaged_store_is_an_error_that_names_it(tmp_path: Path) -> None:
    """A file that is no database is said to be none."""
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(TrackingError, match=r"mlflow\.db failed \(.*not a database"):
        find_models(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")


def test_a_server_that_is_down_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address in the error has no password in it, wherever it is quoted."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(TrackingError, match=r"http://ann:\*\*\*@127\.0\.0\.1:\d+ failed") as refused:
        find_models(tracking_uri=f"http://ann:hunter2@127.0.0.1:{port}")
    assert "hunter2" not in str(refused.value)
