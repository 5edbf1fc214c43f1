"""Rules of the step `index`: the tables of a finished run become a generation, the same for any files and threads."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from batch_jobs import build_index as step
from batch_jobs import schemas
from batch_jobs.build_index import build_index, find_run, index_folder
from batch_jobs.errors import WorkspaceError
from batch_jobs.workspace import Workspace
from lsh.codes import quantize
from lsh.index.generation import Generation, open_generation
from lsh.index.lookup import HashTables
from lsh.index.publishing import current, generation_folder
from lsh.terms import TermParams

DIM = 32
NUM_DOCS = 90
COPY, ORIGINAL, REJECTED = 40, 7, 41


def embeddings() -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(NUM_DOCS // 3, DIM)), 3, axis=0) + 0.2 * rng.normal(size=(NUM_DOCS, DIM))
    unit: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def image_id(doc: int) -> str:
    return f"album/{doc:04d}.jpg"


def write_parts(folder: Path, table: pa.Table, parts: Sequence[Sequence[int]]) -> None:
    folder.mkdir()
    for number, rows in enumerate(parts):
        pq.write_table(table.take(pa.array(rows, pa.int64())), folder / f"part-{number:05d}.parquet")


def commit_run(workspace: Path, *, num_files: int = 1, min_score: float = 0.8) -> None:
    """The committed steps of a run, as the pipeline leaves them; rows in an order that the number of files decides."""
    original_docs = np.arange(NUM_DOCS)
    original_docs[COPY] = ORIGINAL
    docs = np.setdiff1d(np.arange(NUM_DOCS), [COPY, REJECTED])
    images = pa.table(
        {
            "image_id": [image_id(doc) for doc in range(NUM_DOCS)],
            "doc": np.arange(NUM_DOCS),
            "original_doc": original_docs,
        }
    )
    embedded = pa.table(
        {"doc": docs, "embedding": [row.tobytes() for row in embeddings()[docs]]},
        schema=schemas.arrow(schemas.EMBEDDINGS),
    )
    assignments = pa.table(
        [[4, 7, COPY], [3, 8, 8], [0.9, 0.9, 0.8]],
        schema=schemas.arrow(schemas.ASSIGNMENTS),
    )
    with Workspace(workspace) as opened:

        def files(table: pa.Table) -> list[list[int]]:
            rows = np.random.default_rng(num_files).permutation(len(table)) if num_files > 1 else np.arange(len(table))
            return [part.tolist() for part in np.array_split(rows, num_files)]

        def commit(
            step: str, inputs: dict[str, Any], name: str, table: pa.Table, parts: Sequence[Sequence[int]]
        ) -> str:
            def write(folder: Path) -> dict[str, Any]:
                write_parts(folder / name, table, parts)
                return {}

            return opened.step(step, inputs=inputs, write=write, tables=(name,)).key

        none = pa.table({"doc": pa.array([], pa.int64())})
        terms = TermParams(num_tables=24, dim=DIM, polytope_dim=32, seed=5)
        catalogued = commit("catalogue", {"fingerprint": "f"}, "catalogue", images, files(images))
        embed = {"catalogue": catalogued, "embedder": "d" * 64, "dtype": "float32"}
        embed_key = commit("embed", embed, "embeddings", embedded, files(embedded))
        hashed = commit("terms", {"embed": embed_key, "terms": terms.to_json()}, "codes", none, [[]])
        found = commit("candidates", {"terms": hashed, "candidates": {}}, "pair_blocks", none, [[]])
        selected = commit("select", {"candidates": found, "min_score": min_score}, "edges", none, [[]])
        commit("cluster", {"select": selected}, "assignments", assignments, files(assignments))


def built(workspace: Path, **options: Any) -> Generation:
    with Workspace(workspace) as opened:
        manifest = build_index(opened, **options)
    return open_generation(generation_folder(index_folder(workspace), manifest.generation_id))


@pytest.fixture(scope="module")
def generation(tmp_path_factory: pytest.TempPathFactory) -> Generation:
    workspace = tmp_path_factory.mktemp("workspace")
    commit_run(workspace)
    return built(workspace)


def test_the_manifest_says_what_the_run_was_made_with(generation: Generation) -> None:
    """Embedder, threshold, dimension and seed come from the steps behind the clusters."""
    manifest = generation.manifest
    assert manifest.embedder_digest == "d" * 64
    assert manifest.min_score == 0.8
    assert (manifest.num_docs, manifest.num_hashed, manifest.num_clusters) == (NUM_DOCS, NUM_DOCS - 2, 2)
    assert (manifest.dim, manifest.term_params.seed) == (DIM, 5)


def test_every_image_is_found_under_its_own_id(generation: Generation) -> None:
    """An embedding leads to its image, an image id to the code of its embedding; a copy has its original's."""
    rows = embeddings()
    found = HashTables(generation).lookup(rows, k=1, min_similarity=0.9).docs[:, 0]
    docs = np.setdiff1d(np.arange(NUM_DOCS), [COPY, REJECTED])
    assert generation.image_ids(found[docs]) == [image_id(doc) for doc in docs.tolist()]
    assert [generation.doc_of(image_id(doc)) for doc in range(NUM_DOCS)] == list(range(NUM_DOCS))
    expected = quantize(rows)
    expected[COPY], expected[REJECTED] = expected[ORIGINAL], 0
    np.testing.assert_array_equal(generation.codes(np.arange(NUM_DOCS)), expected)


def test_clusters_keep_their_order(generation: Generation) -> None:
    """Members stand as in the table, the canonical first."""
    assert generation.members(8, offset=0, limit=10).tolist() == [8, 7, COPY]
    assert generation.canonicals(np.array([3, 4, 5, 7, COPY])).tolist() == [3, 3, 5, 8, 8]


@pytest.mark.parametrize("num_files", [2, 7, 30])
def test_files_of_the_tables_do_not_change_the_generation(
    generation: Generation, tmp_path: Path, num_files: int
) -> None:
    """However rows are spread over files and in whatever order, the generation has the same id."""
    commit_run(tmp_path, num_files=num_files)
    assert built(tmp_path).manifest.generation_id == generation.manifest.generation_id


def test_batches_and_threads_do_not_change_the_generation(
    generation: Generation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread with large batches and eight with small ones give the same id."""
    monkeypatch.setattr(step, "DOCS_PER_BATCH", 5)
    monkeypatch.setattr(step, "num_cores", lambda: 8)
    commit_run(tmp_path)
    assert built(tmp_path).manifest.generation_id == generation.manifest.generation_id


def test_the_newest_run_is_indexed_unless_a_threshold_is_asked_for(tmp_path: Path) -> None:
    """Two runs of different thresholds: the later one by default, each by its `min_score`, a third is refused."""
    commit_run(tmp_path, min_score=0.9)
    commit_run(tmp_path, min_score=0.8)
    with Workspace(tmp_path) as workspace:
        assert find_run(workspace, min_score=None).min_score == 0.8
        assert find_run(workspace, min_score=0.9).min_score == 0.9
        with pytest.raises(WorkspaceError, match=r"no finished run with min_score=0\.7"):
            find_run(workspace, min_score=0.7)


def test_a_workspace_without_clusters_is_refused(tmp_path: Path) -> None:
    """The message says what to run first."""
    with Workspace(tmp_path) as workspace, pytest.raises(WorkspaceError, match="run `neardup dedup`"):
        build_index(workspace)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Space is claimed before anything is mapped, so a full disk is an operator's error; what was begun is removed."""

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    commit_run(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with Workspace(tmp_path) as workspace, pytest.raises(WorkspaceError, match=r"the disk .* is full"):
        build_index(workspace)
    assert list((index_folder(tmp_path) / "generations").iterdir()) == []


def test_the_module_is_a_door_of_its_own(generation: Generation, tmp_path: Path) -> None:
    """`python -m batch_jobs.build_index --promote` publishes the same generation and prints its id."""
    commit_run(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "batch_jobs.build_index", "--workspace", str(tmp_path), "--promote"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    said = json.loads(done.stdout)
    assert said == {"step": "index", "generation_id": generation.manifest.generation_id}
    assert current(index_folder(tmp_path)) == generation.manifest.generation_id
