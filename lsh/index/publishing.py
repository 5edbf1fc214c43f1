"""Which generation is served: a folder of generations and one small file that names the current one.

    index/
      generations/<id>/     one generation; a folder without a leading dot is whole
      current               JSON: the current generation and those that were current before it, oldest first

A generation is written under a dotted name and renamed; `current` is replaced in one step, so a reader sees the old
generation or the new one, never half of either.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsh.errors import GenerationError
from lsh.index.generation import read_manifest, verify_generation
from lsh.index.manifest import Manifest

_GENERATIONS = "generations"
_CURRENT = "current"
_LOCK = ".lock"
GENERATION_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedGeneration:
    """One generation of an index: its manifest, or the `problem` that keeps it from being read."""

    generation_id: str
    is_current: bool
    manifest: Manifest | None
    problem: str | None

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together, as the manifest says."""
        return sum(entry.size_bytes for entry in self.manifest.files.values()) if self.manifest else 0


@dataclass(frozen=True, slots=True)
class Pointer:
    """The current generation and those that were current before it, oldest first."""

    current: str | None
    previous: tuple[str, ...]

    def promoted(self, generation_id: str) -> Pointer:
        """With another current generation."""
        if self.current == generation_id:
            return self
        return Pointer(generation_id, (*self.previous, self.current) if self.current else ())

    def rolled_back(self, generation_id: str) -> Pointer:
        """With the one before; raises GenerationError if that is not `generation_id` any more."""
        if not self.previous or self.previous[-1] != generation_id:
            raise GenerationError(
                f"the pointer was changed meanwhile, {self.current} is current; see `neardup index list`"
            )
        return Pointer(generation_id, self.previous[:-1])

    def without(self, removed: Collection[str]) -> Pointer:
        """Without generations that can be rolled back to no more."""
        return Pointer(self.current, tuple(one for one in self.previous if one not in removed))

    def to_json(self) -> dict[str, Any]:
        return {"current": self.current, "previous": list(self.previous)}

    @classmethod
    def from_json(cls, value: Any) -> Pointer:
        """Raises ValueError, KeyError or TypeError for what `to_json` did not give."""
        ids = [value["current"], *value["previous"]]
        if not all(isinstance(one, str) and GENERATION_ID.fullmatch(one) for one in ids):
            raise ValueError("an id is not 16 hex digits")
        return cls(ids[0], tuple(ids[1:]))


def generation_folder(index: Path, generation_id: str) -> Path:
    """The folder of a generation; raises GenerationError for an id that is none or is not there."""
    folder = index / _GENERATIONS / generation_id
    if not GENERATION_ID.fullmatch(generation_id):
        raise GenerationError(f"generation {generation_id!r} is not 16 hex digits; see `neardup index list`")
    if not folder.is_dir():
        raise GenerationError(f"generation {generation_id} is not in {index}; see `neardup index list`")
    return folder


def list_generations(index: Path) -> list[ListedGeneration]:
    """All generations, oldest first; those that cannot be read come last."""
    served = current(index)
    folders = [path for path in (index / _GENERATIONS).glob("*") if GENERATION_ID.fullmatch(path.name)]
    listed = [_listed(folder, served) for folder in folders]
    return sorted(
        listed,
        key=lambda one: (one.manifest is None, one.manifest.created_at if one.manifest else "", one.generation_id),
    )


def current(index: Path) -> str | None:
    """The id of the current generation, None before the first promotion; raises GenerationError."""
    return _read_pointer(index).current


def previous(index: Path) -> str | None:
    """The id of the generation that `rollback` goes back to, None if there is none; raises GenerationError."""
    before = _read_pointer(index).previous
    return before[-1] if before else None


@contextmanager
def new_generation(index: Path) -> Iterator[Path]:
    """A fresh folder to write a generation into; it is verified and takes its place when the block ends well."""
    aside = index / _GENERATIONS / f".new-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        verify_generation(aside)
        target = index / _GENERATIONS / read_manifest(aside).generation_id
        if not target.exists():
            _sync(aside)
            aside.rename(target)
            _sync(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def promote(index: Path, generation_id: str) -> None:
    """Verify a generation and make it current; raises GenerationError and changes nothing if it is not whole."""
    with _locked(index):
        verify_generation(generation_folder(index, generation_id))
        pointer = _read_pointer(index)
        if pointer.current != generation_id:
            _write_pointer(index, pointer.promoted(generation_id))


def rollback(index: Path) -> str:
    """Make the generation before the current one current again; returns its id, raises GenerationError."""
    with _locked(index):
        pointer = _read_pointer(index)
        if not pointer.previous:
            raise GenerationError(
                f"{index} has no generation before {pointer.current}; there is nothing to roll back to"
            )
        generation_id = pointer.previous[-1]
        verify_generation(generation_folder(index, generation_id))
        _write_pointer(index, pointer.rolled_back(generation_id))
        return generation_id


def collect_garbage(index: Path, keep: int) -> list[str]:
    """Remove generations older than the current one, but the last `keep` that were current; returns the ids removed."""
    if keep < 0:
        raise GenerationError(f"keep={keep} is out of range; keep 0 or more generations to roll back to")
    with _locked(index):
        pointer = _read_pointer(index)
        if pointer.current is None:
            return []
        kept = {pointer.current, *pointer.previous[max(0, len(pointer.previous) - keep) :]}
        removed = _older(index, pointer.current) - kept
        _write_pointer(index, pointer.without(removed))
        for generation_id in removed:
            folder = index / _GENERATIONS / generation_id
            doomed = folder.with_name(f".old-{generation_id}")
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        return sorted(removed)


def _older(index: Path, generation_id: str) -> set[str]:
    """The generations that were made no later than `generation_id`, and those that cannot be read."""
    made_at = {one.generation_id: one.manifest.created_at if one.manifest else "" for one in list_generations(index)}
    return {one for one in made_at if made_at[one] <= made_at.get(generation_id, "")}


@contextmanager
def _locked(index: Path) -> Iterator[None]:
    """One change of the pointer at a time, over all processes; raises GenerationError where there is no index."""
    if not index.is_dir():
        raise GenerationError(f"there is no index in {index}; `neardup index build` makes one")
    with (index / _LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _listed(folder: Path, served: str | None) -> ListedGeneration:
    manifest, problem = None, None
    try:
        manifest = read_manifest(folder)
        if manifest.generation_id != folder.name:
            problem = f"{folder} holds generation {manifest.generation_id}; rename it or build the index again"
    except GenerationError as error:
        problem = str(error)
    return ListedGeneration(
        generation_id=folder.name, is_current=folder.name == served, manifest=manifest, problem=problem
    )


def _read_pointer(index: Path) -> Pointer:
    path = index / _CURRENT
    try:
        return Pointer.from_json(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return Pointer(None, ())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GenerationError(f"{path} cannot be read ({error}); remove it and promote a generation again") from error


def _write_pointer(index: Path, pointer: Pointer) -> None:
    aside = index / f".{_CURRENT}.{os.getpid()}"
    try:
        with aside.open("w", encoding="utf-8") as file:
            json.dump(pointer.to_json(), file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(index / _CURRENT)
        _sync(index)
    finally:
        aside.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
