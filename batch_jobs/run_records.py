"""What is remembered of each run: `runs/<run>/run.json`, written when a run starts, after each step, and at its end.

A record without `finished_at` is that of a run that is under way or was stopped. A finished record is never written
again: the same command on the same source is the same run. Records are small and outlive the steps they name, so that
drift is told against nights whose tables are long gone.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from batch_jobs.errors import WorkspaceError
from batch_jobs.lease import current_holder
from batch_jobs.nights import current_night
from batch_jobs.settings import RunSettings
from batch_jobs.workspace import StepOutput, Workspace, lease_folder, lock_file, read_json, write_json

RECORD = "run.json"
RECORD_VERSION = 1
NIGHTLY = "nightly"
"""The command of runs that are nights."""
MIN_PREFIX = 4


def release() -> str:
    """The installed version of neardup."""
    try:
        return version("neardup")
    except PackageNotFoundError:
        return "from source"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """A committed step as its run found or made it. `seconds` is the time that making it took, in this run or before.

    `num_rows` and `size_bytes` are by table.
    """

    step: str
    key: str
    seconds: float
    reused: bool
    num_rows: Mapping[str, int]
    size_bytes: Mapping[str, int]
    stats: Mapping[str, Any]

    @property
    def folder_name(self) -> str:
        """Its folder under `steps/`."""
        return f"{self.step}-{self.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run. Times are ISO 8601 in UTC; `results` are the counts that `neardup dedup --json` prints, empty before.

    `settings` are those of `RunSettings.to_json`, `options` what else the command was given. `parent` is the run that
    it builds on or, where it builds on none, the newest finished one of the time; `seconds` the wall time of each stage
    of the execution that finished the run.
    """

    run_id: str
    command: str
    source: str
    fingerprint: str
    settings: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    embedder_digest: str
    scorer_digest: str
    min_score: float
    decisions_digest: str
    num_decisions: int
    parent: str | None
    started_at: str
    finished_at: str | None = None
    host: str = field(default_factory=socket.gethostname)
    num_cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    release: str = field(default_factory=release)
    steps: tuple[StepRecord, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        return self.finished_at is not None

    def step(self, name: str) -> StepRecord | None:
        """The record of a step, None when the run did not come that far."""
        return next((one for one in self.steps if one.step == name), None)

    def stat(self, step: str, name: str) -> Any:
        """A figure that a step counted, None when it did not."""
        found = self.step(step)
        return None if found is None else found.stats.get(name)

    def table(self, workspace: Path, step: str, name: str) -> Path:
        """The path of a table; raises WorkspaceError when the run did not make it or it was removed since."""
        found = self.step(step)
        if found is None:
            raise WorkspaceError(
                f"run {self.run_id} was stopped before the step {step}; `neardup runs resume {self.run_id}` goes on"
            )
        path = workspace / "steps" / found.folder_name / name
        if not path.is_dir():
            raise WorkspaceError(
                f"the table {name} of run {self.run_id} is gone; `neardup dedup` with the run's settings makes it again"
            )
        return path

    def to_json(self) -> dict[str, Any]:
        """Every field by its name, as JSON types; `from_json` is its inverse."""
        return {"record_version": RECORD_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunRecord:
        """The record that `to_json` wrote; raises ValueError for anything else."""
        if value.get("record_version") != RECORD_VERSION:
            raise ValueError(f"record version {value.get('record_version')}, this program reads {RECORD_VERSION}")
        try:
            known = {one.name for one in fields(cls)}
            steps = tuple(StepRecord(**one) for one in value["steps"])
            return cls(**{**{name: value[name] for name in known}, "steps": steps})
        except (KeyError, TypeError) as error:
            raise ValueError(f"it is no record of a run ({error})") from error


def now() -> str:
    """The time as records write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def begin_record(workspace: Workspace, record: RunRecord) -> None:
    """Write the record of a run that starts, and add to it each step that the workspace commits from now on."""
    path = record_path(workspace.folder, record.run_id)
    workspace.lease.describe(f"run {record.run_id} of {record.source}")
    workspace.on_step = lambda output: _add_step(workspace, record.run_id, output)
    if path.exists() and read_record(workspace.folder, record.run_id).is_finished:
        return
    path.parent.mkdir(exist_ok=True)
    write_json(path, record.to_json())


def _add_step(workspace: Workspace, run_id: str, output: StepOutput) -> None:
    record = read_record(workspace.folder, run_id)
    if record.is_finished:
        return
    step = StepRecord(
        step=output.step,
        key=output.key,
        seconds=output.seconds,
        reused=output.reused,
        num_rows=output.num_rows,
        size_bytes={name: table_bytes(output.folder / name) for name in output.num_rows},
        stats=output.stats,
    )
    others = tuple(one for one in record.steps if one.folder_name != step.folder_name)
    write_json(record_path(workspace.folder, run_id), replace(record, steps=(*others, step)).to_json())


def finish_record(
    workspace: Workspace, run_id: str, *, seconds: Mapping[str, float], results: Mapping[str, Any]
) -> RunRecord:
    """Mark a run as complete; one that was complete already stays as it is."""
    record = read_record(workspace.folder, run_id)
    if record.is_finished:
        return record
    workspace.check_lease()
    record = replace(record, seconds=seconds, results=results, finished_at=now())
    write_json(record_path(workspace.folder, run_id), record.to_json())
    return record


def remove_record(workspace: Workspace, run_id: str) -> None:
    """Remove a run's folder: its record first aside, so that no half of it is ever seen."""
    folder = record_path(workspace.folder, run_id).parent
    doomed = folder.with_name(f".{folder.name}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def table_bytes(folder: Path) -> int:
    """The bytes of all files of a table."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def record_path(workspace: Path, run_id: str) -> Path:
    return workspace / "runs" / run_id / RECORD


def read_record(workspace: Path, run_id: str) -> RunRecord:
    """The record of a run; raises WorkspaceError when it is not there, damaged or of another version."""
    path = record_path(workspace, run_id)
    try:
        return RunRecord.from_json(read_json(path))
    except ValueError as error:
        raise WorkspaceError(f"{path} cannot be read: {error}; run `neardup dedup` again to write it anew") from error


@dataclass(frozen=True, slots=True)
class DamagedRecord:
    """A run whose record cannot be read, and why."""

    run_id: str
    problem: str


def list_records(workspace: Path) -> tuple[list[RunRecord], list[DamagedRecord]]:
    """All runs, newest first, and those whose records cannot be read."""
    records: list[RunRecord] = []
    damaged: list[DamagedRecord] = []
    for path in sorted((workspace / "runs").glob(f"[!.]*/{RECORD}")):
        try:
            records.append(read_record(workspace, path.parent.name))
        except WorkspaceError as error:
            damaged.append(DamagedRecord(path.parent.name, str(error)))
    return sorted(records, key=lambda one: (one.started_at, one.run_id), reverse=True), damaged


def finished_runs(workspace: Path, *, before: RunRecord | None = None) -> Iterator[RunRecord]:
    """Finished runs, newest first, without undone nights; only those started before `before` when that is given."""
    records = list_records(workspace)[0]
    undone = undone_runs(workspace, records)
    for record in records:
        is_earlier = before is None or record.started_at < before.started_at
        if record.is_finished and record.run_id not in undone and is_earlier:
            yield record


def undone_runs(workspace: Path, records: Iterable[RunRecord]) -> set[str]:
    """The runs of nights that the night which counts does not build on: it was moved back, or took another way."""
    current = current_night(workspace)
    if current is None:
        return set()
    nights = {one.results["night_id"]: one for one in records if one.command == NIGHTLY and "night_id" in one.results}
    counting, number, previous = {current.night_id}, current.number, current.previous
    # Where garbage collection has taken a record the nights before it are not known, and are left alone.
    while previous is not None and previous in nights:
        counting.add(previous)
        number, previous = nights[previous].results["number"], nights[previous].results["previous"]
    return {
        one.run_id for night_id, one in nights.items() if night_id not in counting and one.results["number"] >= number
    }


def find_record(workspace: Path, run: str | None) -> RunRecord:
    """The run whose id starts with `run`, or the night with that number; the newest finished one without.

    Of nights with one number it is the one that counts, not one that was undone. Raises WorkspaceError.
    """
    if run is None:
        newest = next(finished_runs(workspace), None)
        if newest is None:
            raise WorkspaceError(f"workspace {workspace} holds no finished run; `neardup dedup` makes one")
        return newest
    if record_path(workspace, run).exists():
        return read_record(workspace, run)
    records, _ = list_records(workspace)
    undone = undone_runs(workspace, records)
    found = [one for one in records if str(one.results.get("number")) == run and one.run_id not in undone]
    if not found and len(run) >= MIN_PREFIX:
        found = [one for one in records if one.run_id.startswith(run)]
    if len(found) != 1:
        said = f"{len(found)} runs start with {run}" if found else f"there is no run or night {run}"
        raise WorkspaceError(f"{said} in workspace {workspace}; `neardup runs list` shows what there is")
    return found[0]


def is_running(workspace: Path, record: RunRecord) -> bool:
    """Whether the holder of the workspace's lease works on this run."""
    holder = current_holder(lease_folder(workspace), lock=lock_file(workspace))
    return holder is not None and holder.what.startswith(f"run {record.run_id} ")


def settings_of(record: RunRecord) -> RunSettings:
    """The settings that the run was started with; raises WorkspaceError when this program cannot use them."""
    try:
        return RunSettings.from_json(record.settings)
    except (KeyError, TypeError, ValueError) as error:
        raise WorkspaceError(
            f"the settings of run {record.run_id} are those of another version ({error}); start a new run"
        ) from error
