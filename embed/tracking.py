"""The tracking store: lineages as MLflow runs, on this machine or on a server.

MLflow is imported by the two functions that use it, for it takes seconds. Each model is one finished run of the
experiment `neardup`: its parameters and metrics are MLflow's own, everything else is a tag, so that other tools can
read the runs too. Nothing is uploaded but these values.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from embed.errors import LineageError, TrackingError
from embed.lineage import Lineage, ModelKind, Scalar

EXPERIMENT: Final = "neardup"
MAX_RUNS: Final = 1000
_SCHEMES: Final = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
_TAG: Final = "neardup."
# Unless told otherwise MLflow reports its use to its makers, prints links to standard output, and waits minutes for a
# server that is down.
_QUIET: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedModel:
    """A lineage as the store knows it; `directory` is where the model lay when it was logged."""

    lineage: Lineage
    directory: str


def default_tracking_uri() -> str:
    """The store on this machine: an SQLite file in the user's data directory."""
    from platformdirs import user_data_path  # noqa: PLC0415 - only commands that use the store need it

    return f"sqlite:///{user_data_path('neardup') / 'mlflow.db'}"


def log_lineage(lineage: Lineage, directory: Path, *, tracking_uri: str) -> None:
    """Add a finished run for the model in `directory`; raises TrackingError."""
    file = sqlite_file(tracking_uri)
    try:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        client = _client(tracking_uri)
        from mlflow.entities import Metric, Param, RunTag  # noqa: PLC0415

        run = client.create_run(_experiment_id(client), run_name=directory.resolve().name)
        client.log_batch(
            run.info.run_id,
            metrics=[Metric(name, value, run.info.start_time, 0) for name, value in lineage.metrics.items()],
            params=[Param(name, _param_text(value)) for name, value in lineage.parameters.items()],
            tags=[RunTag(name, value) for name, value in _tags(lineage, directory).items()],
        )
        client.set_terminated(run.info.run_id)
    except TrackingError:
        raise
    except Exception as error:
        raise _failure(tracking_uri, error) from error


def find_models(*, tracking_uri: str, digest_prefix: str = "") -> list[TrackedModel]:
    """The store's models, latest first, at most the latest 1,000; raises TrackingError.

    `digest_prefix` is lower-case hex. Runs that `log_lineage` did not write are passed over.
    """
    file = sqlite_file(tracking_uri)
    if file is not None and not file.exists():
        return []
    wanted = f" and tags.`{_TAG}digest` LIKE '{digest_prefix}%'" if digest_prefix else ""
    try:
        client = _client(tracking_uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return []
        runs = client.search_runs(
            [experiment.experiment_id],
            filter_string=f"attributes.status = 'FINISHED'{wanted}",
            max_results=MAX_RUNS,
            order_by=["attributes.start_time DESC"],
        )
    except TrackingError:
        raise
    except Exception as error:
        raise _failure(tracking_uri, error) from error
    return [model for model in map(_tracked_model, runs) if model is not None]


def _client(tracking_uri: str) -> Any:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient  # noqa: PLC0415

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=tracking_uri)


def _experiment_id(client: Any) -> str:
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    if (found := client.get_experiment_by_name(EXPERIMENT)) is None:
        try:
            return str(client.create_experiment(EXPERIMENT))
        except MlflowException:
            # Another process may have been faster.
            if (found := client.get_experiment_by_name(EXPERIMENT)) is None:
                raise
    return str(found.experiment_id)


def sqlite_file(tracking_uri: str) -> Path | None:
    """The file of an SQLite store, None for a server; raises TrackingError for what is neither."""
    scheme = urlsplit(tracking_uri).scheme.partition("+")[0]
    if scheme not in _SCHEMES and tracking_uri != "databricks":
        raise TrackingError(
            f"{shown(tracking_uri)!r} is no tracking store; give sqlite:////PATH/mlflow.db, http(s)://SERVER "
            f"or the address of another database"
        )
    if scheme != "sqlite":
        return None
    path = tracking_uri.partition(":///")[2].partition("?")[0]
    if not path:
        raise TrackingError(f"{shown(tracking_uri)!r} names no file; give sqlite:////PATH/mlflow.db")
    return Path(path)


def shown(tracking_uri: str) -> str:
    """The address without its password.

    >>> shown("https://ann:secret@models.example.org/mlflow")
    'https://ann:***@models.example.org/mlflow'
    """
    return re.sub(r"(://[^/@:]*):[^@]*@", r"\1:***@", tracking_uri)


def _failure(tracking_uri: str, error: Exception) -> TrackingError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    return TrackingError(
        f"the tracking store {shown(tracking_uri)} failed ({shown(reason)}); "
        f"look after it, or give another by --tracking-uri or NEARDUP_TRACKING_URI"
    )


def _param_text(value: Scalar) -> str:
    """Texts as they are, everything else as JSON; a text that would read as JSON is quoted.

    >>> _param_text("bfloat16"), _param_text(13), _param_text(True), _param_text("13")
    ('bfloat16', '13', 'true', '"13"')
    """
    return value if isinstance(value, str) and _param_value(value) == value else json.dumps(value)


def _param_value(text: str) -> Scalar:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if value is None or isinstance(value, str | int | float | bool) else text


def _tags(lineage: Lineage, directory: Path) -> dict[str, str]:
    plain: dict[str, Any] = {
        "kind": lineage.kind.value,
        "digest": lineage.digest,
        "created_at": lineage.created_at,
        "code_version": lineage.code_version,
        "seed": lineage.seed,
        "note": lineage.note or None,
        "directory": str(directory.resolve()),
    }
    tags = {f"{_TAG}{name}": str(value) for name, value in plain.items() if value is not None}
    for group in ("parents", "data"):
        tags |= {f"{_TAG}{group}.{name}": value for name, value in getattr(lineage, group).items()}
    return tags


def _tracked_model(run: Any) -> TrackedModel | None:
    tags = {name.removeprefix(_TAG): value for name, value in run.data.tags.items() if name.startswith(_TAG)}
    try:
        lineage = Lineage(
            kind=ModelKind(tags["kind"]),
            digest=tags["digest"],
            created_at=tags.get("created_at"),
            code_version=tags.get("code_version"),
            seed=int(tags["seed"]) if "seed" in tags else None,
            parents=_group(tags, "parents."),
            data=_group(tags, "data."),
            parameters={name: _param_value(text) for name, text in run.data.params.items()},
            metrics=dict(run.data.metrics),
            note=tags.get("note", ""),
        )
    except (KeyError, ValueError, LineageError):
        return None
    return TrackedModel(lineage=lineage, directory=tags.get("directory", ""))


def _group(tags: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): value for name, value in tags.items() if name.startswith(prefix)}
