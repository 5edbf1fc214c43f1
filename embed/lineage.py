"""Where a model comes from: what it was trained on, by which code, with which settings, and how good it was.

`record` is called once a model is on disk. It writes `lineage.json` into the model's directory, which answers without
any store, and a run into an MLflow tracking store, which answers for all models at once. One directory may hold an
embedder together with a classifier and a calibration made for it, so the file has one entry per kind. The file takes no
part in a model's digest.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from embed.errors import LineageError, TrackingError

LINEAGE_FILE: Final = "lineage.json"
FORMAT_VERSION: Final = 1
MAX_FILE_BYTES: Final = 1 << 18
MAX_TEXT: Final = 2000
# One call takes them all: MLflow logs at most 100 parameters, 100 tags and 1,000 values at once.
_MAX_ENTRIES: Final = {"parents": 40, "data": 40, "parameters": 100, "metrics": 500}
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,99}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_CHECKOUT: Final = Path(__file__).resolve().parents[1]

Scalar = str | int | float | bool | None


class ModelKind(StrEnum):
    """What a model is for; the values are stable and stored."""

    EMBEDDER = "embedder"
    CLASSIFIER = "classifier"
    CALIBRATION = "calibration"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """One model's origin; raises LineageError when a value cannot be stored.

    `digest` is the model's own. `parents` are the digests of the models it was made from or for, `data` the SHA-256 of
    what it was trained on, both by name. `created_at` is ISO 8601 in UTC. What is not known is None or absent; `note`
    is for what fits nowhere else.
    """

    kind: ModelKind
    digest: str
    created_at: str | None = None
    code_version: str | None = None
    seed: int | None = None
    parents: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in tuple(ModelKind):
            raise LineageError(f"kind={self.kind!r} is unknown; choose {', '.join(ModelKind)}")
        _check("digest", self.digest, _is_sha256, "64 lower-case hex digits")
        for name in ("created_at", "code_version"):
            _check(name, getattr(self, name), lambda value: value is None or _is_text(value), f"up to {MAX_TEXT} chars")
        _check("seed", self.seed, lambda value: value is None or type(value) is int, "an integer or null")
        _check("note", self.note, _is_text, f"a text of up to {MAX_TEXT} characters")
        for name in ("parents", "data"):
            _check_entries(name, getattr(self, name), _is_sha256, "64 lower-case hex digits")
        _check_entries("parameters", self.parameters, _is_scalar, f"a number or a text of up to {MAX_TEXT} characters")
        _check_entries("metrics", self.metrics, _is_finite, "a finite number")
        object.__setattr__(self, "kind", ModelKind(self.kind))
        object.__setattr__(self, "metrics", {name: float(value) for name, value in self.metrics.items()})

    def as_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self) | {"kind": self.kind.value}


def _check(name: str, value: object, is_valid: Any, expected: str) -> None:
    if not is_valid(value):
        raise LineageError(f"{name}={str(value)[:80]!r} cannot be recorded; expected {expected}")


def _check_entries(name: str, entries: object, is_valid: Any, expected: str) -> None:
    if not isinstance(entries, Mapping) or len(entries) > _MAX_ENTRIES[name]:
        raise LineageError(f"{name} is no mapping of at most {_MAX_ENTRIES[name]} entries")
    for key, value in entries.items():
        if not isinstance(key, str) or not _NAME.fullmatch(key):
            raise LineageError(f"{name} has the name {str(key)[:80]!r}; use letters, digits, spaces and _ . - only")
        _check(f"{name}.{key}", value, is_valid, expected)


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and abs(value) <= sys.float_info.max


def _is_scalar(value: object) -> bool:
    return value is None or type(value) is bool or _is_text(value) or _is_finite(value)


def record(
    directory: Path,
    *,
    kind: ModelKind,
    digest: str,
    tracking_uri: str | None,
    seed: int | None = None,
    parents: Mapping[str, str] | None = None,
    data: Mapping[str, str] | None = None,
    parameters: Mapping[str, Scalar] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Lineage:
    """Write the lineage of the finished model in `directory`, made now by this code, and log it to the tracking store.

    `tracking_uri` None logs nothing. A store that fails is a warning in the log, for the model and its lineage are
    safe; raises LineageError when `lineage.json` cannot be written.
    """
    lineage = Lineage(
        kind=kind,
        digest=digest,
        created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        code_version=code_version(),
        seed=seed,
        parents=dict(parents or {}),
        data=dict(data or {}),
        parameters=dict(parameters or {}),
        metrics=dict(metrics or {}),
    )
    write_lineage(directory, lineage)
    if tracking_uri is not None:
        from embed.tracking import log_lineage  # noqa: PLC0415 - MLflow takes seconds to import

        try:
            log_lineage(lineage, directory, tracking_uri=tracking_uri)
        except TrackingError as error:
            logging.getLogger(__name__).warning(
                "%s. The model in %s and its %s are safe: log it later with `neardup models record %s`",
                error,
                directory,
                LINEAGE_FILE,
                directory,
            )
    return lineage


def write_lineage(directory: Path, lineage: Lineage) -> None:
    """Put `lineage` into the directory's `lineage.json`, in place of the entry of its kind; the file is always whole.

    The same lineages give the same bytes: sorted names, two spaces, ASCII.
    """
    entries = {**read_lineages(directory), lineage.kind: lineage}
    models = {kind.value: {k: v for k, v in entry.as_json().items() if k != "kind"} for kind, entry in entries.items()}
    text = json.dumps({"format_version": FORMAT_VERSION, "models": models}, indent=2, sort_keys=True) + "\n"
    path = directory / LINEAGE_FILE
    try:
        with tempfile.TemporaryDirectory(dir=directory, prefix=f".{LINEAGE_FILE}-") as folder:
            aside = Path(folder) / LINEAGE_FILE
            aside.write_text(text, "ascii")
            aside.replace(path)
    except OSError as error:
        raise LineageError(f"{path} cannot be written ({error}); the model beside it is whole") from error


def read_lineages(directory: Path) -> dict[ModelKind, Lineage]:
    """The entries of a directory's `lineage.json`; none where there is no such file. Raises LineageError."""
    path = directory / LINEAGE_FILE
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise LineageError(f"{path} cannot be read ({error.strerror})") from error
    if len(content) > MAX_FILE_BYTES:
        raise LineageError(f"{path} has more than {MAX_FILE_BYTES:,} bytes, so it is no lineage; remove it")
    try:
        given = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LineageError(f"{path} is damaged ({error}); restore it, or remove it: no embedding needs it") from error
    found = given.get("format_version") if isinstance(given, dict) else None
    if found != FORMAT_VERSION:
        raise LineageError(f"{path} has format_version {str(found)[:20]!r}; this release reads {FORMAT_VERSION}")
    models = given.get("models")
    if not isinstance(models, dict):
        raise LineageError(f"{path} is damaged (it has no models); restore it, or remove it: no embedding needs it")
    return {lineage.kind: lineage for lineage in (_entry(path, kind, fields) for kind, fields in models.items())}


def _entry(path: Path, kind: str, given: object) -> Lineage:
    if not isinstance(given, dict) or not given.keys() <= _FIELDS or "digest" not in given:
        raise LineageError(f"{path} is damaged (its {kind[:40]!r} has other fields than {', '.join(sorted(_FIELDS))})")
    try:
        return Lineage(kind=kind, **given)  # type: ignore[arg-type]  # checked on construction
    except LineageError as error:
        raise LineageError(f"{path}: {error}") from error


_FIELDS: Final = frozenset(each.name for each in fields(Lineage)) - {"kind"}


def code_version() -> str:
    """The package's version, and in a checkout its commit: `0.1.0+c1002020a3f1`, with `.dirty` for changed files."""
    try:
        release = version("neardup")
    except PackageNotFoundError:
        release = "unreleased"
    git = shutil.which("git")
    if git is None or not (_CHECKOUT / ".git").exists():
        return release
    describe = [git, "-C", os.fspath(_CHECKOUT), "describe", "--always", "--dirty=.dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603 - ours
    except (OSError, subprocess.SubprocessError):
        return release
    return f"{release}+{found.stdout.strip()}"
