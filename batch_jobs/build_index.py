"""Step 7, index: the tables of a finished run become a generation, verified and published.

    python -m batch_jobs.build_index --workspace /data/neardup --promote

Embeddings are read batch by batch and hashed in threads; every row has its place by doc, so the bytes do not depend on
partitions, threads or the order of files. Spark would add nothing on one machine: the posting lists of a generation are
made by one counting sort a table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batch_jobs.errors import BatchError, WorkspaceError
from batch_jobs.make_terms import embedding_rows
from batch_jobs.session import num_cores
from batch_jobs.workspace import Workspace, read_json, workspace_error
from embed.pair_scoring import read_pair_scorer, scorer_files
from lsh.errors import LshError
from lsh.index.layout import params_for
from lsh.index.manifest import Manifest
from lsh.index.publishing import new_generation, promote
from lsh.index.writing import GenerationSpec, GenerationWriter

STEP = "index"
NUM_TABLES = 16
PROBES_PER_TABLE = 12
DOCS_PER_BATCH = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedRun:
    """The committed tables that a generation is made of, and what decided them.

    `scorer` is the folder that keeps the files of what scored the run's pairs.
    """

    catalogue: Path
    embeddings: Path
    clusters: Path
    scorer: Path
    embedder_digest: str
    dim: int
    seed: int
    min_score: float


def index_folder(workspace: Path) -> Path:
    """Where a workspace keeps its generations."""
    return workspace / "index"


def build_index(
    workspace: Workspace,
    *,
    min_score: float | None = None,
    num_tables: int = NUM_TABLES,
    probes_per_table: int = PROBES_PER_TABLE,
) -> Manifest:
    """Write, verify and publish a generation of the workspace's newest clusters, or of those of `min_score`.

    The workspace is open, so no run changes its tables meanwhile. Raises WorkspaceError when nothing is clustered yet.
    """
    run = find_run(workspace, min_score=min_score)
    try:
        num_docs = pyarrow.dataset.dataset(run.catalogue, format="parquet").count_rows()
        spec = GenerationSpec(
            num_docs=num_docs,
            term_params=params_for(num_docs, dim=run.dim, num_tables=num_tables, seed=run.seed),
            num_probes=num_tables * probes_per_table,
            embedder_digest=run.embedder_digest,
            min_score=run.min_score,
            scorer_files=scorer_files(read_pair_scorer(run.scorer, embedder_digest=run.embedder_digest)),
        )
        with new_generation(index_folder(workspace.folder)) as folder:
            return write_generation(folder, run, spec)
    except OSError as error:
        raise workspace_error(workspace.folder, error) from error


def find_run(workspace: Workspace, *, min_score: float | None) -> IndexedRun:
    """The tables behind the newest committed `cluster` step (of this `min_score`), by way of each step's inputs."""
    committed = sorted(workspace.steps_folder.glob("cluster-*/commit.json"), key=lambda path: path.stat().st_mtime_ns)
    for commit in reversed(committed):
        selected = _inputs(workspace, "select", _step_inputs(commit)["select"])
        if min_score is not None and selected["min_score"] != min_score:
            continue
        hashed = _inputs(workspace, "terms", _inputs(workspace, "candidates", selected["candidates"])["terms"])
        embedded = _inputs(workspace, "embed", hashed["embed"])
        return IndexedRun(
            catalogue=workspace.steps_folder / f"catalogue-{embedded['catalogue']}" / "catalogue",
            embeddings=workspace.steps_folder / f"embed-{hashed['embed']}" / "embeddings",
            clusters=commit.parent / "clusters",
            scorer=workspace.steps_folder / f"select-{_step_inputs(commit)['select']}",
            embedder_digest=embedded["embedder"],
            dim=hashed["terms"]["dim"],
            seed=hashed["terms"]["seed"],
            min_score=selected["min_score"],
        )
    asked = "" if min_score is None else f" with min_score={min_score}"
    raise WorkspaceError(
        f"workspace {workspace.folder} holds no finished run{asked}; run `neardup dedup` with this --workspace first"
    )


def write_generation(folder: Path, run: IndexedRun, spec: GenerationSpec) -> Manifest:
    """Write the generation of `run` into `folder`."""
    writer = GenerationWriter(folder, spec)
    images = pq.read_table(run.catalogue, columns=["doc", "original_doc", "image_id"]).sort_by("doc")
    docs = images["doc"].to_numpy()
    if not np.array_equal(docs, np.arange(docs.size)):
        raise WorkspaceError(f"docs of {run.catalogue} are not 0..{docs.size - 1}; remove that step and run again")
    is_embedded = _add_embeddings(writer, run, docs.size)
    original_docs = images["original_doc"].to_numpy()
    copies = np.flatnonzero((original_docs != docs) & is_embedded[original_docs])
    writer.share_codes(copies, original_docs[copies])
    writer.write_image_ids(image_id for chunk in images["image_id"].chunks for image_id in _texts(chunk))
    clusters = pq.read_table(run.clusters, columns=["image_id", "canonical_id"])
    image_ids = images["image_id"].combine_chunks()
    members, canonicals = (
        pc.index_in(clusters[column], value_set=image_ids).to_numpy().astype(np.int64)
        for column in ("image_id", "canonical_id")
    )
    writer.write_clusters(members, canonicals)
    return writer.finish()


def _add_embeddings(writer: GenerationWriter, run: IndexedRun, num_docs: int) -> NDArray[np.bool_]:
    """Hash all embeddings in threads, a bounded number of batches at a time; returns which docs have one."""
    is_embedded = np.zeros(num_docs, dtype=np.bool_)
    num_threads = num_cores()
    pending: deque[Future[None]] = deque()

    def add(batch: pa.RecordBatch) -> None:
        writer.add_embeddings(batch["doc"].to_numpy(), embedding_rows(batch["embedding"], dim=run.dim))

    table = pyarrow.dataset.dataset(run.embeddings, format="parquet")
    with ThreadPoolExecutor(num_threads) as pool:
        for batch in table.to_batches(columns=["doc", "embedding"], batch_size=DOCS_PER_BATCH):
            is_embedded[batch["doc"].to_numpy()] = True
            pending.append(pool.submit(add, batch))
            if len(pending) > 2 * num_threads:
                pending.popleft().result()
        for future in pending:
            future.result()
    return is_embedded


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
    parser.add_argument("--promote", action="store_true", help="make the new generation the current one")
    arguments = parser.parse_args()
    try:
        with Workspace(arguments.workspace) as workspace:
            manifest = build_index(workspace, min_score=arguments.min_score)
            if arguments.promote:
                promote(index_folder(workspace.folder), manifest.generation_id, is_verified=True)
    except (BatchError, LshError) as error:
        sys.exit(f"neardup: error: {error}")
    sys.stdout.write(json.dumps({"step": STEP, "generation_id": manifest.generation_id}) + "\n")


if __name__ == "__main__":
    main()
