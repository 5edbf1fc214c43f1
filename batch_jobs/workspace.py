"""The workspace: the folder that holds what every step of every run has written.

    workspace/
      workspace.json              what all runs here share: the embedder's digest and the LSH parameters
      steps/<step>-<key>/         one committed step: Parquet tables and commit.json
      runs/<run>/                 what one run hands to people: clusters.csv, clusters.jsonl, report.html, run.json
      decisions.jsonl             what people have decided about clusters
      .leases/run/                who may write here, and until when
      spark.log                   the log of Spark and its workers

A step's key is the digest of its parameters and of the keys of the steps it reads, so a committed step is found again
by any run that needs the same result, and a run that was killed continues where it stopped. A step is written under a
name that starts with a dot, checked, and renamed; a folder without that dot is whole.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq

from batch_jobs.errors import LeaseHeldError, LeaseLostError, WorkspaceError
from batch_jobs.lease import Lease
from batch_jobs.settings import canonical_json, digest

FORMAT_VERSION = 4
KEY_LENGTH = 16
IDENTITY_FILE = "workspace.json"


@dataclass(frozen=True, slots=True)
class StepOutput:
    """One committed step: where its tables are, what it counted, how long it took when it ran."""

    step: str
    key: str
    folder: Path
    num_rows: Mapping[str, int]
    stats: Mapping[str, Any]
    seconds: float
    reused: bool

    def table(self, name: str) -> str:
        """The path of one of its Parquet tables."""
        return str(self.folder / name)


class Workspace:
    """An open workspace, held by a lease. Use it as a context manager; a second one on the same folder is refused.

    `what` tells others who are refused what is going on; `on_step` is told of each step once it is committed.
    """

    def __init__(self, folder: Path, *, what: str = "a run") -> None:
        self.folder = folder
        self.on_step: Callable[[StepOutput], None] = lambda _: None
        self.lease = Lease(lease_folder(folder), what, lock=lock_file(folder))

    def __enter__(self) -> Workspace:
        try:
            self.steps_folder.mkdir(parents=True, exist_ok=True)
            self.runs_folder.mkdir(exist_ok=True)
            self.lease.__enter__()
        except LeaseHeldError as error:
            raise LeaseHeldError(
                f"workspace {self.folder} is in use by {error}; wait for it, or give another --workspace"
            ) from error
        except OSError as error:
            raise workspace_error(self.folder, error) from error
        self._remove_unfinished()
        return self

    def __exit__(self, *_: object) -> None:
        self.lease.__exit__()

    def check_lease(self) -> None:
        """Call before a commit; raises LeaseLostError when another process has taken this workspace over."""
        try:
            self.lease.check()
        except LeaseLostError as error:
            raise LeaseLostError(
                f"workspace {self.folder} was taken over by {error}: this process was not heard of for too long, and "
                "stops; finished steps are kept"
            ) from error

    @property
    def steps_folder(self) -> Path:
        return self.folder / "steps"

    @property
    def runs_folder(self) -> Path:
        return self.folder / "runs"

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the workspace is bound to, nothing before its first run; raises WorkspaceError for another format."""
        path = self.folder / IDENTITY_FILE
        if not path.exists():
            return {}
        found = read_json(path)
        if found.get("format_version") != FORMAT_VERSION:
            raise WorkspaceError(
                f"workspace {self.folder} has format version {found.get('format_version')}, this program writes "
                f"{FORMAT_VERSION}; give another --workspace"
            )
        return found

    def claim(self, wanted: Mapping[str, Any]) -> None:
        """Bind a new workspace to what is `wanted`; refuse an old one that was bound to something else."""
        found = self.identity
        if not found:
            write_json(self.folder / IDENTITY_FILE, {"format_version": FORMAT_VERSION, **wanted})
            return
        changed = [
            f"{key}: {found.get(key)} there, {wanted[key]} now" for key in wanted if found.get(key) != wanted[key]
        ]
        if changed:
            raise WorkspaceError(
                f"workspace {self.folder} was made with other settings ({'; '.join(changed)}); "
                "use the same settings again, or give another --workspace"
            )

    def step(
        self,
        step: str,
        *,
        inputs: Mapping[str, Any],
        write: Callable[[Path], Mapping[str, Any]],
        tables: tuple[str, ...],
    ) -> StepOutput:
        """The committed output of `step` for these inputs; `write(folder)` makes it and returns its stats if need be.

        `write` must create each of `tables` as a folder of files. It sees a fresh folder that nobody else reads.
        """
        key = digest({"step": step, "inputs": inputs})[:KEY_LENGTH]
        target = self.steps_folder / f"{step}-{key}"
        if target.exists():
            committed = self._committed(step, key, target, tables)
            if committed is not None:
                self.on_step(committed)
                return committed
            shutil.rmtree(target)
        # A run that lost its lease may still be writing: it never writes into a folder of ours.
        aside = self.steps_folder / f".{target.name}.{self.lease.number}"
        shutil.rmtree(aside, ignore_errors=True)
        started = time.monotonic()
        try:
            aside.mkdir()
            stats = dict(write(aside))
            commit = {
                "step": step,
                "key": key,
                "inputs": inputs,
                "tables": {name: _table_files(aside / name) for name in tables},
                "stats": stats,
                "seconds": round(time.monotonic() - started, 3),
            }
            write_json(aside / "commit.json", commit)
            _sync_folder(aside)
            self.check_lease()
            aside.rename(target)
            _sync_folder(self.steps_folder)
        except ConnectionError:  # of Spark's Java process, and no fault of the workspace
            raise
        except OSError as error:
            raise workspace_error(self.folder, error) from error
        output = _output(step, key, target, commit, reused=False)
        self.on_step(output)
        return output

    def _committed(self, step: str, key: str, folder: Path, tables: tuple[str, ...]) -> StepOutput | None:
        """A committed step whose files are all there with their recorded sizes; None when it must be made again."""
        try:
            commit = read_json(folder / "commit.json")
            whole = all(
                (folder / name / file).stat().st_size == size_bytes
                for name in tables
                for file, (size_bytes, _) in commit["tables"][name].items()
            )
            return _output(step, key, folder, commit, reused=True) if whole else None
        except (WorkspaceError, OSError, AttributeError, KeyError, TypeError, ValueError):
            return None

    def _remove_unfinished(self) -> None:
        for folder in (self.steps_folder, self.runs_folder):
            for path in folder.glob(".*"):
                shutil.rmtree(path, ignore_errors=True)


def required_folder(workspace: Path) -> Path:
    """The absolute path of a workspace that must be there; raises WorkspaceError, and makes none of a mistyped path."""
    if not workspace.is_dir():
        raise WorkspaceError(f"workspace {workspace} does not exist; `neardup dedup` makes one")
    return workspace.resolve()


def lock_file(workspace: Path) -> Path:
    """The file that the holder of the lease keeps locked, where the file system has locks."""
    return workspace / ".lock"


def lease_folder(workspace: Path) -> Path:
    """Where the lease of a workspace is kept."""
    return workspace / ".leases" / "run"


def _output(step: str, key: str, folder: Path, commit: Mapping[str, Any], *, reused: bool) -> StepOutput:
    num_rows = {name: sum(rows for _, rows in files.values()) for name, files in commit["tables"].items()}
    return StepOutput(step, key, folder, num_rows, commit["stats"], commit["seconds"], reused)


def _table_files(table: Path) -> dict[str, tuple[int, int]]:
    """Each file of a table with its size in bytes and, of a Parquet file, rows, its footer read back from disk."""
    return {
        str(path.relative_to(table)): (
            path.stat().st_size,
            pq.read_metadata(path).num_rows if path.suffix == ".parquet" else 0,
        )
        for path in sorted(table.rglob("*"))
        if path.is_file() and not path.name.startswith((".", "_"))
    }


def write_json(path: Path, value: Any) -> None:
    """Write aside, sync, rename: the file at `path` is always whole."""
    with published_file(path) as file:
        file.write((json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise WorkspaceError(f"{path} cannot be read ({error}); remove it or give another --workspace") from error
    if not isinstance(value, dict):
        raise WorkspaceError(f"{path} holds {canonical_json(value)[:40]}, not an object; remove it")
    return value


@contextmanager
def published_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path`, whole and on disk, when the block ends without an error."""
    path = path.resolve()
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def workspace_error(folder: Path, error: OSError) -> WorkspaceError:
    """An operating system error while writing, in an operator's words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WorkspaceError(disk_full(folder))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return WorkspaceError(f"workspace {folder} cannot be written ({error.strerror}); give another --workspace")
    return WorkspaceError(f"workspace {folder}: {error}")


def disk_full(folder: Path) -> str:
    return (
        f"the disk of workspace {folder} is full; free some space and run the same command again: "
        "finished steps are kept"
    )
