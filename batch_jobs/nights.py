"""Nights: which committed steps make up the whole of a workspace that is fed each night.

    nights/
      <night>.json      one finished night; never changes
      current.json      the name of the night that counts; moving it back undoes later nights

A night's steps write only what is new: its segments. The whole is the segments of all nights up to it, without the docs
that nights have removed. An image is live when it is in the newest source. Distinct bytes are a *content*, known by
the `original_doc` of the images that have them; a content outlives the image that it was embedded for as long as any
live image has its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batch_jobs.errors import WorkspaceError
from batch_jobs.settings import digest
from batch_jobs.workspace import KEY_LENGTH, StepOutput, Workspace, read_json, write_json

FORMAT_VERSION = 2
CURRENT = "current.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class NightCounts:
    """What a night did to images: `known` were there before and stay, `changed` have other bytes than before.

    `removed` are gone or cannot be read any more, `rejected` those that could not be read. `rewritten` files have the
    bytes they had; their images are among the known.
    """

    known: int
    new: int
    changed: int
    removed: int
    rewritten: int
    rejected: int

    @property
    def images(self) -> int:
        """Live images after the night."""
        return self.known + self.new + self.changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """One finished night. `segments` are the keys of the steps that make up the whole, oldest first, by step.

    `settings` is what all nights of a workspace share, `decisions` the digest of those by hand. The run `run_id` has
    made it. New docs start at `next_doc`; terms lie in `num_parts` parts.
    """

    number: int
    previous: str | None
    run_id: str
    source: str
    settings: Mapping[str, Any]
    decisions: str
    num_parts: int
    next_doc: int
    segments: Mapping[str, tuple[str, ...]]
    counts: NightCounts
    format_version: int = FORMAT_VERSION

    @property
    def night_id(self) -> str:
        """The digest of everything that the night holds."""
        return digest(asdict(self))[:KEY_LENGTH]

    def folder_names(self) -> set[str]:
        """Its folders under `steps/`."""
        return {f"{step}-{key}" for step, keys in self.segments.items() for key in keys}

    def tables(self, workspace: Path, step: str, name: str) -> tuple[str, ...]:
        """The paths of a table's segments; raises WorkspaceError where one is missing."""
        folders = [workspace / "steps" / f"{step}-{key}" for key in self.segments.get(step, ())]
        missing = [folder for folder in folders if not folder.is_dir()]
        if missing:
            raise WorkspaceError(
                f"{missing[0]} is missing, and night {self.night_id} needs it; restore it, or give another --workspace"
            )
        return tuple(str(folder / name) for folder in folders)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the steps of a night build on: the tables of the nights before it; nothing on a first night."""

    next_doc: int = 0
    num_parts: int | None = None
    catalogues: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    posting_lists: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    view_posting_lists: tuple[str, ...] = ()
    view_codes: tuple[str, ...] = ()
    edges: tuple[str, ...] = ()
    assignments: tuple[str, ...] = ()
    crowd_edges: tuple[str, ...] = ()

    def with_outputs(self, outputs: Mapping[str, StepOutput]) -> Known:
        """The whole once these steps of a night are committed, all of them before clusters."""

        def extended(tables: tuple[str, ...], step: str, name: str) -> tuple[str, ...]:
            return (*tables, outputs[step].table(name)) if step in outputs else tables

        catalogued = outputs.get("catalogue")
        return replace(
            self,
            next_doc=self.next_doc + (catalogued.num_rows["catalogue"] if catalogued else 0),
            catalogues=extended(self.catalogues, "catalogue", "catalogue"),
            removed=extended(self.removed, "catalogue", "removed"),
            rewritten=extended(self.rewritten, "catalogue", "rewritten"),
            embeddings=extended(self.embeddings, "embed", "embeddings"),
            posting_lists=extended(self.posting_lists, "terms", "posting_lists"),
            codes=extended(self.codes, "terms", "codes"),
            view_posting_lists=extended(self.view_posting_lists, "view_terms", "posting_lists"),
            view_codes=extended(self.view_codes, "view_terms", "codes"),
            edges=extended(extended(self.edges, "select", "edges"), "compare", "view_edges"),
        )


KNOWN_NOTHING = Known()


def known_of(workspace: Path, night: Night | None) -> Known:
    """The tables that make up the whole after `night`."""
    if night is None:
        return KNOWN_NOTHING
    return Known(
        next_doc=night.next_doc,
        num_parts=night.num_parts,
        catalogues=night.tables(workspace, "catalogue", "catalogue"),
        removed=night.tables(workspace, "catalogue", "removed"),
        rewritten=night.tables(workspace, "catalogue", "rewritten"),
        embeddings=night.tables(workspace, "embed", "embeddings"),
        posting_lists=night.tables(workspace, "terms", "posting_lists"),
        codes=night.tables(workspace, "terms", "codes"),
        view_posting_lists=night.tables(workspace, "view_terms", "posting_lists"),
        view_codes=night.tables(workspace, "view_terms", "codes"),
        edges=night.tables(workspace, "select", "edges") + night.tables(workspace, "compare", "view_edges"),
        assignments=night.tables(workspace, "cluster", "assignments"),
        crowd_edges=night.tables(workspace, "cluster", "crowd_edges"),
    )


def nights_folder(workspace: Path) -> Path:
    """Where a workspace keeps its nights."""
    return workspace / "nights"


def current_night(workspace: Path) -> Night | None:
    """The night that counts, None before the first; raises WorkspaceError where it cannot be read."""
    pointer = nights_folder(workspace) / CURRENT
    if not pointer.exists():
        return None
    return read_night(workspace, str(read_json(pointer).get("night_id")))


def read_night(workspace: Path, night_id: str) -> Night:
    """A night by its id; raises WorkspaceError where it is missing or damaged."""
    path = nights_folder(workspace) / f"{night_id}.json"
    value = read_json(path)
    if value.get("format_version") != FORMAT_VERSION:
        raise WorkspaceError(
            f"{path} has format version {value.get('format_version')}, this program reads {FORMAT_VERSION}"
        )
    try:
        value["segments"] = {step: tuple(keys) for step, keys in value["segments"].items()}
        value["counts"] = NightCounts(**value["counts"])
        night = Night(**value)
    except (TypeError, KeyError, AttributeError) as error:
        raise WorkspaceError(f"{path} is no night ({error!r}); restore it from a backup") from error
    if night.night_id != night_id:
        raise WorkspaceError(f"{path} is damaged: its contents are those of {night.night_id}; restore it from a backup")
    return night


def list_nights(workspace: Path) -> list[Night]:
    """All nights of a workspace, oldest first, those that were undone included."""
    paths = nights_folder(workspace).glob("*.json")
    nights = [read_night(workspace, path.stem) for path in paths if path.name != CURRENT]
    return sorted(nights, key=lambda night: (night.number, night.night_id))


def night_of_run(workspace: Path, run: str) -> Night | None:
    """The night that the run whose id starts with `run` has made, None where it made none."""
    return next((night for night in list_nights(workspace) if night.run_id.startswith(run)), None)


def commit_night(workspace: Workspace, night: Night) -> None:
    """Write the night and make it the current one; a reader sees the night before or this one, never a half."""
    folder = nights_folder(workspace.folder)
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{night.night_id}.json", asdict(night))
    write_json(folder / CURRENT, {"night_id": night.night_id})


def restore_night(workspace: Workspace, night: Night) -> None:
    """Make an earlier night the one that counts; the next night builds on it.

    Raises WorkspaceError where one of its tables is gone.
    """
    require_whole(workspace.folder, night)
    workspace.check_lease()
    write_json(nights_folder(workspace.folder) / CURRENT, {"night_id": night.night_id})


def require_whole(workspace: Path, night: Night) -> None:
    """Raises WorkspaceError where a table of a night is gone."""
    for name in sorted(night.folder_names()):
        if not (workspace / "steps" / name).is_dir():
            raise WorkspaceError(
                f"{name} of night {night.night_id} is gone, so that night cannot count again; `neardup runs list` "
                "shows the nights; those that are not collected are whole"
            )


def removed_contents(whole: Known) -> NDArray[np.int64]:
    """The docs of embedded contents that no live image has any more, ascending."""
    if not read_docs(whole.removed).size:
        return np.empty(0, np.int64)
    return np.setdiff1d(read_docs(whole.embeddings), live_images(whole, ["original_doc"])["original_doc"].to_numpy())


def read_columns(tables: tuple[str, ...], columns: Sequence[str], *, where: Any = None) -> pa.Table:
    """Some columns of all segments, one after the other.

    All files are opened as one table: as tables of their own, each with a few rows, they would take four times as long.
    Raises WorkspaceError for a table without files.
    """
    files = [file for table in tables for file in _files_of(table)]
    # Whether fields may be null depends on what wrote a segment, Spark or pyarrow.
    schema = pa.schema([pa.field(field.name, field.type) for field in pq.read_schema(files[0])])
    segments = pyarrow.dataset.dataset(files, schema=schema, format="parquet")
    return segments.to_table(columns=list(columns), filter=where).combine_chunks()


def _files_of(table: str) -> list[str]:
    files = [str(file) for file in sorted(Path(table).rglob("*.parquet")) if not file.name.startswith((".", "_"))]
    if not files:
        raise WorkspaceError(f"table {table} has no files any more; restore it, or give another --workspace")
    return files


def read_docs(tables: tuple[str, ...]) -> NDArray[np.int64]:
    """The column `doc` of all segments, ascending."""
    if not tables:
        return np.empty(0, np.int64)
    docs: NDArray[np.int64] = read_columns(tables, ["doc"])["doc"].to_numpy()
    return np.sort(docs)


def live_images(known: Known, columns: Sequence[str], *, where: Any = None) -> pa.Table:
    """Columns of the catalogue's rows of live images, `doc` among them, by doc; `state` is the newest.

    `where` is a filter on the rows.
    """
    images = read_columns(known.catalogues, [*dict.fromkeys(["doc", *columns])], where=where)
    docs = images["doc"].to_numpy()
    if np.any(docs[1:] <= docs[:-1]):
        images = images.sort_by("doc")
        docs = images["doc"].to_numpy()
    removed = read_docs(known.removed)
    if removed.size:
        images = images.filter(pa.array(~np.isin(docs, removed)))
    if "state" in columns and known.rewritten:
        place = images.schema.get_field_index("state")
        images = images.set_column(place, "state", pa.array(_newest_states(known, images)))
    return images


def _newest_states(known: Known, images: pa.Table) -> NDArray[np.int64]:
    docs = images["doc"].to_numpy()
    states: NDArray[np.int64] = images["state"].to_numpy().copy()
    rewritten = read_columns(known.rewritten, ["doc", "state"])
    rows = np.searchsorted(docs, rewritten["doc"].to_numpy())
    is_live = rows < docs.size
    is_live[is_live] = docs[rows[is_live]] == rewritten["doc"].to_numpy()[is_live]
    # Segments stand oldest first, and the last assignment to a row stays.
    states[rows[is_live]] = rewritten["state"].to_numpy()[is_live]
    return states
