"""Tests of the whole pipeline on Spark: right, the same for every partitioning, and safe to stop anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from batch_jobs import find_candidates, select_matches
from batch_jobs.cluster_matches import cluster_docs
from batch_jobs.cluster_scope import Edges
from batch_jobs.errors import SourceError, WorkspaceError
from batch_jobs.pipeline import STEPS, Run, run_pipeline
from batch_jobs.settings import RunSettings
from batch_jobs.workspace import Workspace
from lsh import pair_tally
from lsh.codes import pair_cosines, quantize
from lsh.terms import TermParams

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

DIM = 32
MIN_SCORE = 0.8
PARAMS = TermParams(num_tables=24, dim=DIM, num_polytopes=1, polytope_dim=32)


def families(num_families: int = 60, *, seed: int = 0) -> NDArray[np.float32]:
    """Unit rows in families of 1 to 8 whose members lie at cosines of about 0.7 to 1 from one another."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(num_families):
        center = generator.normal(size=DIM)
        spread = generator.uniform(0.0, 0.6)
        for _ in range(int(generator.integers(1, 9))):
            rows.append(center + spread * generator.normal(size=DIM))
    embeddings = np.array(rows, np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings


def write_embeddings(path: Path, embeddings: NDArray[np.float32]) -> Path:
    image_ids = np.array([f"image-{row:05d}" for row in range(len(embeddings))])
    np.savez(path, image_ids=image_ids, embeddings=embeddings, digest=np.array("given"))
    return path


def settings(source: Path, workspace: Path, **changes: Any) -> RunSettings:
    """Settings that ask for Spark by a master."""
    given = {"source": str(source), "workspace": workspace, "min_score": MIN_SCORE, "terms": PARAMS}
    return RunSettings(**{**given, "master": "local[2]", **changes})


def table(run: Run, step: str, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(run.steps[step].table(name)).to_pylist()
    return rows


def sorted_edges(run: Run) -> list[tuple[Any, ...]]:
    return sorted(tuple(edge.values()) for edge in table(run, "select", "edges"))


@pytest.fixture(scope="module")
def embeddings_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embeddings(tmp_path_factory.mktemp("given") / "given.npz", families())


@pytest.fixture(scope="module")
def given_run(spark: SparkSession, embeddings_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_pipeline(settings(embeddings_file, tmp_path_factory.mktemp("workspace"), num_partitions=4))


def test_edges_are_those_of_all_pairs(given_run: Run) -> None:
    """LSH finds what comparing all pairs finds, and nothing else: here its tables are many enough to miss nothing."""
    codes = quantize(families())
    lefts, rights = np.triu_indices(len(codes), 1)
    cosines = pair_cosines(codes, codes, lefts, rights)
    expected = {
        (int(left), int(right)): cosine
        for left, right, cosine in zip(lefts, rights, cosines, strict=True)
        if cosine >= np.float32(MIN_SCORE)
    }
    found = {(row["left_doc"], row["right_doc"]): row["similarity"] for row in table(given_run, "select", "edges")}
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected)


def test_clusters_are_the_greedy_cut_of_the_edges(given_run: Run) -> None:
    """The table holds exactly the kernel's members, largest cluster first, canonical first in each."""
    edges = table(given_run, "select", "edges")
    num_docs = given_run.num_catalogued
    members = cluster_docs(
        Edges(
            np.array([edge["left_doc"] for edge in edges]),
            np.array([edge["right_doc"] for edge in edges]),
            np.array([edge["score"] for edge in edges], np.float32),
        ),
        original_docs=np.arange(num_docs),
        pixels=np.zeros(num_docs, np.int64),
    ).members
    rows = table(given_run, "cluster", "clusters")
    assert {(row["image_id"], row["canonical_id"]) for row in rows} == {
        (f"image-{doc:05d}", f"image-{canonical:05d}")
        for doc, canonical in zip(members.docs, members.canonical_docs, strict=True)
    }
    order = [(-row["size"], row["canonical_id"], not row["is_canonical"], -row["score"]) for row in rows]
    assert order == sorted(order)


def test_cluster_sizes_count_their_members(given_run: Run) -> None:
    """`size` is the number of rows with the same canonical."""
    rows = table(given_run, "cluster", "clusters")
    for row in rows:
        assert row["size"] == sum(other["canonical_id"] == row["canonical_id"] for other in rows)


@pytest.mark.parametrize("num_partitions", [1, 2, 7, 16])
def test_partitions_do_not_change_the_result(
    given_run: Run, embeddings_file: Path, tmp_path: Path, num_partitions: int
) -> None:
    """Edges and clusters are the same rows for any number of partitions."""
    run = run_pipeline(settings(embeddings_file, tmp_path, num_partitions=num_partitions))
    assert sorted_edges(run) == sorted_edges(given_run)
    assert table(run, "cluster", "clusters") == table(given_run, "cluster", "clusters")
    assert run.steps["select"].stats == given_run.steps["select"].stats


def test_candidates_that_are_too_many_at_once_give_the_same_result(
    given_run: Run, embeddings_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spilled by the join, in blocks of a few, and verified strip by strip: edges and clusters are the same rows."""
    monkeypatch.setattr(pair_tally, "MAX_TALLIED", 50)
    monkeypatch.setattr(find_candidates, "PAIRS_PER_BLOCK", 7)
    monkeypatch.setattr(select_matches, "PAIRS_AT_ONCE", 60)
    run = run_pipeline(settings(embeddings_file, tmp_path, num_partitions=2, master=None))

    blocks = pq.read_table(run.steps["candidates"].table("pair_blocks"))["num_pairs"].drop_null()
    assert len(blocks) > 20
    assert max(blocks.to_pylist()) == 7
    assert sum(blocks.to_pylist()) == run.steps["candidates"].stats["num_pairs"]
    assert table(run, "select", "edges") == sorted(
        table(given_run, "select", "edges"), key=lambda edge: (edge["left_doc"], edge["right_doc"])
    )
    assert table(run, "cluster", "clusters") == table(given_run, "cluster", "clusters")
    assert run.steps["select"].stats == given_run.steps["select"].stats


def test_the_histogram_counts_every_candidate(given_run: Run) -> None:
    """Each distinct candidate lies in one bin; those above the threshold are the edges."""
    histogram = given_run.steps["select"].stats["score_histogram"]
    assert sum(histogram) == given_run.steps["select"].stats["num_distinct_pairs"]
    assert sum(histogram[90:]) == len(table(given_run, "select", "edges"))


@pytest.mark.parametrize("step", STEPS)
def test_a_run_stopped_in_a_step_goes_on_to_the_same_result(
    given_run: Run, embeddings_file: Path, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies at the end of any step, its tables written but not committed, finishes when run again."""
    commit = Workspace.step

    def die_in_step(workspace: Workspace, name: str, **arguments: Any) -> Any:
        if name != step:
            return commit(workspace, name, **arguments)
        write = arguments["write"]

        def write_and_die(folder: Path) -> Mapping[str, Any]:
            write(folder)
            raise KeyboardInterrupt

        return commit(workspace, name, **{**arguments, "write": write_and_die})

    monkeypatch.setattr(Workspace, "step", die_in_step)
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(settings(embeddings_file, tmp_path))
    monkeypatch.undo()
    run = run_pipeline(settings(embeddings_file, tmp_path))
    assert [name for name in STEPS if run.steps[name].reused] == list(STEPS[: STEPS.index(step)])
    assert table(run, "cluster", "clusters") == table(given_run, "cluster", "clusters")


def test_a_new_threshold_reuses_the_earlier_steps(given_run: Run, embeddings_file: Path) -> None:
    """Only what depends on the threshold runs again: how near the sketches of candidates are does, too."""
    workspace = given_run.settings.workspace
    run = run_pipeline(settings(embeddings_file, workspace, min_score=0.95, num_partitions=4))
    assert [name for name in STEPS if not run.steps[name].reused] == ["candidates", "select", "cluster"]
    assert run.run_id != given_run.run_id


def test_other_parameters_are_refused(given_run: Run, embeddings_file: Path) -> None:
    """A workspace holds the terms of one set of parameters."""
    other = TermParams(num_tables=8, dim=DIM, num_polytopes=1, polytope_dim=32)
    with pytest.raises(WorkspaceError, match="other settings"):
        run_pipeline(settings(embeddings_file, given_run.settings.workspace, terms=other))


def test_embeddings_of_an_unknown_embedder_need_a_threshold(
    spark: SparkSession, tiny_embedder: str, embeddings_file: Path, tmp_path: Path
) -> None:
    """No threshold is guessed for a scale that is not known."""
    with pytest.raises(SourceError, match="--min-score"):
        run_pipeline(settings(embeddings_file, tmp_path, min_score=None, embedder=tiny_embedder))


def test_repeated_ids_of_embeddings_are_named(spark: SparkSession, tmp_path: Path) -> None:
    """The message shows which ids occur twice."""
    path = tmp_path / "twice.npz"
    embeddings = families(2)[:3]
    np.savez(path, image_ids=np.array(["a", "b", "a"]), embeddings=embeddings, digest=np.array("given"))
    with pytest.raises(SourceError, match=r"more than once, such as a;"):
        run_pipeline(settings(path, tmp_path / "workspace"))
