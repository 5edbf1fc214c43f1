"""Which runs and steps nobody needs any more, and their removal.

Kept are the newest finished runs, the night that counts, runs that were stopped since and may be resumed, and runs that
a generation of the index was made of; of steps, those that a kept run names and those that these were made of, and all
that make up a kept night. The records of the last thirty finished runs stay without their tables, for drift.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch_jobs.build_index import generation_marker, index_folder
from batch_jobs.errors import WorkspaceError
from batch_jobs.nights import current_night, list_nights
from batch_jobs.run_records import RECORD, RunRecord, list_records, record_path, remove_record
from batch_jobs.workspace import KEY_LENGTH, Workspace, read_json
from lsh.index.publishing import list_generations

NUM_DRIFT_RUNS = 30
_KEY = re.compile(rf"[0-9a-f]{{{KEY_LENGTH}}}")


@dataclass(frozen=True, slots=True)
class Garbage:
    """What may go: whole runs, the files of runs whose record stays, and steps; `size_bytes` is what it frees."""

    runs: tuple[str, ...]
    trimmed_runs: tuple[str, ...]
    steps: tuple[str, ...]
    size_bytes: int


def find_garbage(workspace: Workspace, *, keep: int) -> Garbage:
    """What no kept run needs; `keep` is the number of finished runs to keep, 1 or more.

    Raises WorkspaceError when a record or a commit cannot be read, because what it needs is not known.
    """
    if keep < 1:
        raise WorkspaceError(f"keep={keep} is out of range; the newest finished run is always kept")
    records, damaged = list_records(workspace.folder)
    if damaged:
        raise WorkspaceError(f"{damaged[0].problem}; or remove its folder, then what is left is known to be needed")
    current = current_night(workspace.folder)
    kept = {record.run_id for record in _kept(workspace, records, keep)} | ({current.run_id} if current else set())
    needed = {step.folder_name for record in records if record.run_id in kept for step in record.steps}
    of_nights = {
        name for night in list_nights(workspace.folder) if night.run_id in kept for name in night.folder_names()
    }
    steps = sorted(path.name for path in workspace.steps_folder.glob("[!.]*"))
    garbage = sorted(set(steps) - _with_inputs(workspace, needed, steps) - of_nights)
    finished = [record.run_id for record in records if record.is_finished][:NUM_DRIFT_RUNS]
    others = [record.run_id for record in records if record.run_id not in kept]
    runs = tuple(run_id for run_id in others if run_id not in finished)
    trimmed = tuple(run_id for run_id in others if run_id in finished and any(_files(workspace, run_id)))
    size_bytes = (
        sum(_bytes(workspace.steps_folder / name) for name in garbage)
        + sum(_bytes(record_path(workspace.folder, run_id).parent) for run_id in runs)
        + sum(path.stat().st_size for run_id in trimmed for path in _files(workspace, run_id))
    )
    return Garbage(runs, trimmed, tuple(garbage), size_bytes)


def collect_garbage(workspace: Workspace, garbage: Garbage) -> None:
    """Remove it: runs before the steps they name, each folder first renamed, so that no half of it is ever found."""
    for run_id in garbage.runs:
        remove_record(workspace, run_id)
    for run_id in garbage.trimmed_runs:
        for path in _files(workspace, run_id):
            path.unlink()
    for name in garbage.steps:
        workspace.check_lease()
        doomed = workspace.steps_folder / f".{name}.gone"
        (workspace.steps_folder / name).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _kept(workspace: Workspace, records: list[RunRecord], keep: int) -> Iterator[RunRecord]:
    generations = [one.generation_id for one in list_generations(index_folder(workspace.folder))]
    num_finished = 0
    for record in records:
        num_finished += record.is_finished
        is_recent = num_finished <= keep if record.is_finished else num_finished == 0
        if is_recent or any(generation_marker(workspace.folder, record.run_id, one).exists() for one in generations):
            yield record


def _with_inputs(workspace: Workspace, needed: set[str], steps: list[str]) -> set[str]:
    """`needed` and every step that one of them names among its inputs, however deep."""
    by_key = {name.rpartition("-")[2]: name for name in steps}
    found: set[str] = set()
    waiting = [name for name in needed if name in steps]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        inputs = read_json(workspace.steps_folder / name / "commit.json").get("inputs")
        waiting.extend(by_key[key] for key in _keys(inputs) if key in by_key)
    return found


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if _KEY.fullmatch(value):
            yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _keys(one)
    elif isinstance(value, list):
        for one in value:
            yield from _keys(one)


def _files(workspace: Workspace, run_id: str) -> list[Path]:
    """The files of a run beside its record."""
    folder = record_path(workspace.folder, run_id).parent
    return [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != RECORD]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
