"""Step 7, index: the tables of the current night, or of a finished run, become a generation, verified and published.

    python -m batch_jobs.build_index --workspace /data/neardup --promote

Embeddings are read batch by batch and hashed in threads; every row has its place by doc, so the bytes do not depend on
partitions, threads or the order of files. Spark would add nothing on one machine: the posting lists of a generation are
made by one counting sort a table.

A generation numbers its images `0..n-1` in the order of their docs in the workspace: images that nights have removed
have no place in it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
from numpy.typing import NDArray

from batch_jobs.assignments import read_members
from batch_jobs.contents import Contents, contents_of
from batch_jobs.embed_views import FIRST_VIEW
from batch_jobs.errors import BatchError, WorkspaceError
from batch_jobs.make_terms import binary_values, embedding_rows
from batch_jobs.nights import Known, Night, current_night, known_of, live_images, night_of_run, read_docs
from batch_jobs.run_records import find_record, list_records, record_path
from batch_jobs.session import num_cores
from batch_jobs.workspace import Workspace, read_json, workspace_error
from embed.pair_scoring import read_pair_scorer, scorer_files
from lsh.codes import unit_rows
from lsh.errors import LshError
from lsh.index.layout import params_for, probes_for
from lsh.index.manifest import Manifest
from lsh.index.publishing import new_generation, promote
from lsh.index.view_similarity import ViewSimilarity
from lsh.index.writing import GenerationSpec, GenerationWriter

STEP = "index"
NUM_TABLES = 16
DOCS_PER_BATCH = 16_384
IN_NIGHTS_ONLY = "is_full"
"""An input of `cluster` steps of nights after the first, whose tables are more than those of one step each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedRun:
    """The committed tables that a generation is made of, and what decided them.

    `scorer` is the folder that keeps the files of what scored the run's pairs, `view_similarity` says how the views of
    a thorough run count.
    """

    whole: Known
    scorer: Path
    embedder_digest: str
    dim: int
    seed: int
    min_score: float
    view_similarity: ViewSimilarity | None = None

    @property
    def num_views(self) -> int:
        """Views of each image."""
        return len(self.view_similarity.margins) if self.view_similarity else 0


def index_folder(workspace: Path) -> Path:
    """Where a workspace keeps its generations."""
    return workspace / "index"


def build_index(
    workspace: Workspace,
    *,
    min_score: float | None = None,
    run_id: str | None = None,
    num_tables: int = NUM_TABLES,
    probes_per_table: int | None = None,
    with_views: bool = True,
) -> Manifest:
    """Write, verify and publish a generation: of the current night or the newest clusters, of `min_score`, or of a run.

    That of a thorough run holds the views of its images, too, unless it is to be without. The workspace is open, so no
    run changes its tables meanwhile. Raises WorkspaceError when nothing is clustered yet.
    """
    run = find_run(workspace, min_score=min_score, run_id=run_id)
    try:
        images = live_images(run.whole, ["doc", "original_doc", "image_id"])
        content_docs = images["original_doc"].to_numpy()
        contents, original_rows = contents_of(content_docs, np.isin(content_docs, read_docs(run.whole.embeddings)))
        if not with_views:
            run = replace(run, view_similarity=None)
        owners = owners_of_views(run, contents)
        num_rows = len(images) + owners.size * run.num_views
        num_probes = num_tables * probes_per_table if probes_per_table else probes_for(num_rows, num_tables=num_tables)
        spec = GenerationSpec(
            num_docs=len(images),
            owners=owners,
            view_similarity=run.view_similarity,
            term_params=params_for(num_rows, dim=run.dim, num_tables=num_tables, seed=run.seed),
            num_probes=num_probes,
            embedder_digest=run.embedder_digest,
            min_score=run.min_score,
            scorer_files=scorer_files(read_pair_scorer(run.scorer, embedder_digest=run.embedder_digest)),
        )
        with new_generation(index_folder(workspace.folder)) as folder:
            manifest = write_generation(folder, run, images, spec, contents=contents, original_rows=original_rows)
        _remember(workspace, run, manifest.generation_id)
        return manifest
    except OSError as error:
        raise workspace_error(workspace.folder, error) from error


def _remember(workspace: Workspace, run: IndexedRun, generation_id: str) -> None:
    """Mark the run that a generation was made of, which is then not removed while the generation is there."""
    for record in list_records(workspace.folder)[0]:
        clustered = record.step("cluster")
        if clustered is not None and clustered.folder_name == Path(run.whole.assignments[-1]).parent.name:
            generation_marker(workspace.folder, record.run_id, generation_id).touch()


def generation_marker(workspace: Path, run_id: str, generation_id: str) -> Path:
    """The empty file that says that a generation was made of a run."""
    return record_path(workspace, run_id).with_name(f"generation-{generation_id}")


def find_run(workspace: Workspace, *, min_score: float | None, run_id: str | None = None) -> IndexedRun:
    """The tables of the current night, or of the run `run_id`.

    Without nights (of this `min_score`) those behind the newest committed `cluster` step, found by way of each step's
    inputs. Raises WorkspaceError where there is none, or its tables are gone.
    """
    night = current_night(workspace.folder) if run_id is None else night_of_run(workspace.folder, run_id)
    if night is not None and min_score in (None, night.settings["min_score"]):
        return _night_run(workspace, night)
    if run_id is None:
        committed = sorted(
            workspace.steps_folder.glob("cluster-*/commit.json"), key=lambda path: path.stat().st_mtime_ns
        )
    else:
        assignments = find_record(workspace.folder, run_id).table(workspace.folder, "cluster", "assignments")
        committed = [assignments.parent / "commit.json"]
    for commit in reversed(committed):
        clustered = _step_inputs(commit)
        if IN_NIGHTS_ONLY in clustered:
            continue
        selected = _inputs(workspace, "select", clustered["select"])
        if min_score is not None and selected["min_score"] != min_score:
            continue
        hashed = _inputs(workspace, "terms", _inputs(workspace, "candidates", selected["candidates"])["terms"])
        embedded = _inputs(workspace, "embed", hashed["embed"])
        compared = _inputs(workspace, "compare", clustered["compare"]) if "compare" in clustered else None
        return IndexedRun(
            whole=Known(
                catalogues=(str(workspace.steps_folder / f"catalogue-{embedded['catalogue']}" / "catalogue"),),
                embeddings=(str(workspace.steps_folder / f"embed-{hashed['embed']}" / "embeddings"),),
                view_codes=(str(workspace.steps_folder / f"view_terms-{compared['view_terms']}" / "codes"),)
                if compared
                else (),
                assignments=(str(commit.parent / "assignments"),),
            ),
            scorer=workspace.steps_folder / f"select-{clustered['select']}",
            embedder_digest=embedded["embedder"],
            dim=hashed["terms"]["dim"],
            seed=hashed["terms"]["seed"],
            min_score=selected["min_score"],
            view_similarity=_view_similarity(workspace, compared) if compared else None,
        )
    asked = "" if min_score is None else f" with min_score={min_score}"
    raise WorkspaceError(
        f"workspace {workspace.folder} holds no finished run{asked}; run `neardup dedup` with this --workspace first"
    )


def _night_run(workspace: Workspace, night: Night) -> IndexedRun:
    compared = night.segments.get("compare")
    return IndexedRun(
        whole=known_of(workspace.folder, night),
        scorer=workspace.steps_folder / f"select-{night.segments['select'][-1]}",
        embedder_digest=night.settings["embedder"],
        dim=night.settings["terms"]["dim"],
        seed=night.settings["terms"]["seed"],
        min_score=night.settings["min_score"],
        view_similarity=_view_similarity(workspace, _inputs(workspace, "compare", compared[-1])) if compared else None,
    )


def _view_similarity(workspace: Workspace, compared: Mapping[str, Any]) -> ViewSimilarity:
    """How the views of a run count, by the inputs of its step `compare`; raises WorkspaceError."""
    try:
        return ViewSimilarity.from_json(compared["view_similarity"])
    except KeyError as error:
        raise WorkspaceError(
            f"the views in workspace {workspace.folder} were compared by an earlier version, which does not say how "
            "they count; make the run again, or start over with another --workspace"
        ) from error


def owners_of_views(run: IndexedRun, contents: Contents) -> NDArray[np.int64]:
    """The rows, ascending, of the live images that have views; each has all of them."""
    if not run.num_views:
        return np.empty(0, np.int64)
    content_docs = np.unique((read_docs(run.whole.view_codes) - FIRST_VIEW) // run.num_views)
    rows = contents.rows_of(content_docs)
    return np.sort(rows[rows >= 0])


def write_generation(
    folder: Path,
    run: IndexedRun,
    images: pa.Table,
    spec: GenerationSpec,
    *,
    contents: Contents,
    original_rows: NDArray[np.int64],
) -> Manifest:
    """Write the generation of `run` into `folder`; `images` are its live ones, `doc`, `original_doc`, `image_id`."""
    writer = GenerationWriter(folder, spec)
    docs = images["doc"].to_numpy()
    if np.any(docs[1:] == docs[:-1]):
        raise WorkspaceError(f"docs of {', '.join(run.whole.catalogues)} occur twice; give another --workspace")
    _add_embeddings(writer, run, contents)
    copies = np.flatnonzero(original_rows != np.arange(docs.size))
    writer.share_codes(copies, original_rows[copies])
    writer.write_image_ids(image_id for chunk in images["image_id"].chunks for image_id in _texts(chunk))
    members = read_members(run.whole, docs).arranged
    writer.write_clusters(members.docs, members.canonical_docs)
    return writer.finish()


def _add_embeddings(writer: GenerationWriter, run: IndexedRun, contents: Contents) -> None:
    """Hash the embeddings of live images, and of their views, in threads, a bounded number of batches at a time."""
    num_threads = num_cores()
    pending: deque[Future[None]] = deque()

    def add_images(batch: pa.RecordBatch) -> None:
        rows = contents.rows_of(batch["doc"].to_numpy())
        writer.add_embeddings(rows[rows >= 0], embedding_rows(batch["embedding"], dim=run.dim)[rows >= 0])

    def add_views(batch: pa.RecordBatch) -> None:
        content_docs, views = np.divmod(batch["doc"].to_numpy() - FIRST_VIEW, run.num_views)
        image_rows = contents.rows_of(content_docs)
        rows = writer.spec.view_rows(image_rows[image_rows >= 0], views[image_rows >= 0])
        codes = np.frombuffer(binary_values(batch["code"]), np.int8).reshape(-1, run.dim)
        writer.add_embeddings(rows, unit_rows(codes[image_rows >= 0]))

    with ThreadPoolExecutor(num_threads) as pool:
        for add, batch in chain(
            zip(repeat(add_images), _batches(run.whole.embeddings, ["doc", "embedding"])),
            zip(repeat(add_views), _batches(run.whole.view_codes if run.num_views else (), ["doc", "code"])),
        ):
            pending.append(pool.submit(add, batch))
            if len(pending) > 2 * num_threads:
                pending.popleft().result()
        for future in pending:
            future.result()


def _batches(tables: tuple[str, ...], columns: list[str]) -> Iterator[pa.RecordBatch]:
    for table in tables:
        segment = pyarrow.dataset.dataset(table, format="parquet")
        yield from segment.to_batches(columns=columns, batch_size=DOCS_PER_BATCH)


def _texts(chunk: pa.Array) -> Iterator[str]:
    for start in range(0, len(chunk), DOCS_PER_BATCH):
        yield from chunk.slice(start, DOCS_PER_BATCH).to_pylist()


def _inputs(workspace: Workspace, step: str, key: str) -> dict[str, Any]:
    return _step_inputs(workspace.steps_folder / f"{step}-{key}" / "commit.json")


def _step_inputs(commit: Path) -> dict[str, Any]:
    inputs: dict[str, Any] = read_json(commit)["inputs"]
    return inputs


def main() -> None:
    """The door for `spark-submit` and `python -m`: build, and promote when asked."""
    parser = argparse.ArgumentParser(description="Make an index generation of a workspace's newest clusters.")
    parser.add_argument("--workspace", required=True, type=Path)
    parser.add_argument("--min-score", type=float, help="index the run of this threshold; the newest by default")
    parser.add_argument("--run", dest="run_id", help="index this run; the newest by default")
    parser.add_argument("--without-views", action="store_true", help="index whole images alone, also of a thorough run")
    parser.add_argument("--promote", action="store_true", help="make the new generation the current one")
    arguments = parser.parse_args()
    try:
        with Workspace(arguments.workspace, what="an index build") as workspace:
            manifest = build_index(
                workspace,
                min_score=arguments.min_score,
                run_id=arguments.run_id,
                with_views=not arguments.without_views,
            )
            if arguments.promote:
                promote(index_folder(workspace.folder), manifest.generation_id, is_verified=True)
    except (BatchError, LshError) as error:
        sys.exit(f"neardup: error: {error}")
    sys.stdout.write(json.dumps({"step": STEP, "generation_id": manifest.generation_id}) + "\n")


if __name__ == "__main__":
    main()
