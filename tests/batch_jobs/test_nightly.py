"""Rules of nights: after any sequence of them the matches are those of one run over the same images."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_jobs import nightly
from batch_jobs.assignments import read_clusters
from batch_jobs.decisions import Decision, DecisionKind, record_decision
from batch_jobs.errors import BatchError, SourceError, WorkspaceError
from batch_jobs.nightly import NightOptions, NightResults, plan_night, run_nightly
from batch_jobs.nights import current_night, known_of, live_images, nights_folder, read_columns
from batch_jobs.pipeline import STEPS, run_pipeline
from batch_jobs.run_diff import diff_runs
from batch_jobs.run_gc import collect_garbage, find_garbage
from batch_jobs.run_records import list_records
from batch_jobs.settings import RunSettings
from batch_jobs.workspace import Workspace
from lsh.candidates import CandidateParams
from lsh.codes import pair_cosines, quantize
from lsh.terms import TermParams

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pyspark.sql import SparkSession

DIM = 32
MIN_SCORE = 0.8
PARAMS = TermParams(num_tables=24, dim=DIM, num_polytopes=1, polytope_dim=32)
PLAIN = NightOptions()

Pairs = set[tuple[str, str]]


@dataclass
class Corpus:
    """Images by id, drawn around few centres, that lose, gain and change some at random."""

    seed: int
    rows: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.centers = self.rng.normal(size=(12, DIM))
        self.num_made = 0

    def draw(self) -> NDArray[np.float32]:
        row = self.centers[self.rng.integers(12)] + self.rng.uniform(0, 0.6) * self.rng.normal(size=DIM)
        unit: NDArray[np.float32] = (row / np.linalg.norm(row)).astype(np.float32)
        return unit

    def add(self, count: int) -> None:
        for _ in range(count):
            # Ids in any order, so that new docs are not in the order of ids.
            self.rows[f"{self.rng.integers(10**6):06d}-{self.num_made}"] = self.draw()
            self.num_made += 1

    def night(self) -> None:
        """Some images go, some get other bytes, some come."""
        for image_id in self.rng.permutation(sorted(self.rows)).tolist()[: int(self.rng.integers(0, 9))]:
            del self.rows[image_id]
        for image_id in self.rng.permutation(sorted(self.rows)).tolist()[: int(self.rng.integers(0, 5))]:
            self.rows[image_id] = self.draw()
        self.add(int(self.rng.integers(0, 15)))

    def write(self, path: Path) -> Path:
        image_ids = self.rng.permutation(sorted(self.rows))
        embeddings = np.stack([self.rows[image_id] for image_id in image_ids])
        np.savez(path, image_ids=image_ids, embeddings=embeddings, digest=np.array("given"))
        return path

    def matching_pairs(self) -> Pairs:
        """The pairs that comparing all with all finds."""
        image_ids = sorted(self.rows)
        codes = quantize(np.stack([self.rows[image_id] for image_id in image_ids]))
        lefts, rights = np.triu_indices(len(codes), 1)
        near = pair_cosines(codes, codes, lefts, rights) >= np.float32(MIN_SCORE)
        return {(image_ids[a], image_ids[b]) for a, b in zip(lefts[near], rights[near], strict=True)}


def settings(source: Path, workspace: Path, **changes: Any) -> RunSettings:
    """Settings whose sketches lose no match."""
    return RunSettings(
        **{
            "source": str(source),
            "workspace": workspace,
            "min_score": MIN_SCORE,
            "terms": PARAMS,
            "candidates": CandidateParams(),
            "num_partitions": 3,
            **changes,
        }
    )


def night_of(corpus: Corpus, workspace: Path, options: NightOptions = PLAIN, **changes: Any) -> NightResults:
    source = corpus.write(workspace.with_suffix(".npz"))
    return run_nightly(settings(source, workspace, **changes), options)


def live_pairs(workspace: Path) -> Pairs:
    """The matches of live images, by image id."""
    known = known_of(workspace, current_night(workspace))
    images = live_images(known, ["doc", "image_id"])
    id_of = dict(zip(images["doc"].to_pylist(), images["image_id"].to_pylist(), strict=True))
    edges = [tuple(edge.values()) for edge in read_columns(known.edges, ["left_doc", "right_doc"]).to_pylist()]
    assert len(set(edges)) == len(edges)
    pairs = [tuple(sorted((id_of[left], id_of[right]))) for left, right in edges if {left, right} <= id_of.keys()]
    return {(left, right) for left, right in pairs}


def canonicals(workspace: Path) -> dict[str, str]:
    """The canonical of every live image, itself for one that is in no cluster."""
    night = current_night(workspace)
    assert night is not None
    images = live_images(known_of(workspace, night), ["image_id"])["image_id"].to_pylist()
    rows = read_clusters(known_of(workspace, night)).to_pylist()
    return {**{image_id: image_id for image_id in images}, **{row["image_id"]: row["canonical_id"] for row in rows}}


def tables_of(workspace: Path) -> dict[str, Any]:
    """The rows of every table of every step, and the bytes of posting lists, by their paths."""
    paths = sorted({file.parent for file in (workspace / "steps").rglob("*.parquet")})
    lists = sorted((workspace / "steps").rglob("*.lists"))
    return {str(path.relative_to(workspace)): path.read_bytes() for path in lists} | {
        str(path.relative_to(workspace)): [
            row for file in sorted(path.glob("*.parquet")) for row in pq.read_table(file, partitioning=None).to_pylist()
        ]
        for path in paths
    }


@pytest.mark.parametrize("seed", range(20))
def test_matches_are_those_of_all_images_after_any_nights(tmp_path: Path, seed: int) -> None:
    """Images come, go and change; after each night the matches are what comparing all with all finds.

    Canonicals that are still there stay, every image has one that it matches, and that is canonical itself.
    """
    corpus = Corpus(seed)
    corpus.add(int(corpus.rng.integers(1, 90)))
    workspace = tmp_path / "nights"
    before: dict[str, str] = {}
    unchanged: dict[str, NDArray[np.float32]] = {}
    for _ in range(4):
        night_of(corpus, workspace, num_partitions=int(corpus.rng.integers(1, 8)))
        pairs, canonical_of = corpus.matching_pairs(), canonicals(workspace)
        assert live_pairs(workspace) == pairs
        assert canonical_of.keys() == corpus.rows.keys()
        for image_id, canonical in canonical_of.items():
            assert canonical_of[canonical] == canonical
            assert image_id == canonical or tuple(sorted((image_id, canonical))) in pairs
            is_same = unchanged.get(image_id) is corpus.rows[image_id]
            if is_same and before[image_id] == image_id:
                assert canonical == image_id
            if is_same and unchanged.get(before[image_id]) is corpus.rows.get(before[image_id]):
                assert canonical == before[image_id]
        before, unchanged = canonical_of, dict(corpus.rows)
        corpus.night()


def test_the_first_night_is_a_run(tmp_path: Path) -> None:
    """A first night has the steps of `dedup`, and reuses those that are there, under a record of its own."""
    corpus = Corpus(1)
    corpus.add(60)
    run = run_pipeline(settings(corpus.write(tmp_path / "nights.npz"), tmp_path / "nights"))
    run_nightly(run.settings, PLAIN)
    night = current_night(tmp_path / "nights")
    assert night is not None
    assert night.segments["cluster"] == (run.steps["cluster"].key,)
    numbers = {one.command: one.results.get("number") for one in list_records(tmp_path / "nights")[0]}
    assert (numbers["nightly"], night.run_id != run.run_id) == (1, True)
    assert len(list((tmp_path / "nights" / "steps").iterdir())) == len(STEPS)


@pytest.mark.spark
def test_a_night_of_spark_is_that_of_the_driver(spark: SparkSession, tmp_path: Path) -> None:
    """Two nights on Spark, which a master asks for, write the rows that two nights in the driver's process write."""
    for workspace, master in ((tmp_path / "spark", "local[2]"), (tmp_path / "driver", None)):
        corpus = Corpus(2)
        corpus.add(70)
        for _ in range(2):
            source = corpus.write(tmp_path / "same.npz")
            os.utime(source, (corpus.num_made, corpus.num_made))
            run_nightly(settings(source, workspace, master=master), PLAIN)
            corpus.night()
    by_spark, by_driver = (sorted_tables(tmp_path / name) for name in ("spark", "driver"))
    assert by_spark.keys() == by_driver.keys()
    for table, rows in by_driver.items():
        assert by_spark[table] == rows, table


def sorted_tables(workspace: Path) -> dict[str, list[str]]:
    """All tables, rows in an order of their own; counts of a part are not rows of anything."""
    return {table: sorted(str(row) for row in rows) for table, rows in tables_of(workspace).items() if rows}


@pytest.mark.parametrize("num_partitions", [1, 2, 7])
def test_partitions_do_not_change_a_night(tmp_path: Path, num_partitions: int) -> None:
    """Matches and clusters are the same for any number of partitions, other ones each night included."""
    found = []
    for partitions in ((3, 3), (num_partitions, 8 - num_partitions)):
        corpus = Corpus(3)
        corpus.add(70)
        workspace = tmp_path / str(partitions)
        night_of(corpus, workspace, num_partitions=partitions[0])
        corpus.night()
        night_of(corpus, workspace, num_partitions=partitions[1])
        known = known_of(workspace, current_night(workspace))
        edges = sorted(
            map(str, read_columns(known.edges, ["left_doc", "right_doc", "score", "shared_terms"]).to_pylist())
        )
        found.append((edges, canonicals(workspace)))
    assert found[0] == found[1]


@pytest.mark.parametrize("step", ["catalogue", "embed", "terms", "candidates", "select", "cluster", "commit"])
def test_a_night_that_died_goes_on_to_the_same_tables(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night that dies at the end of any step, or before its commit, has the same tables and id when run again."""
    corpus = Corpus(4)
    corpus.add(70)
    first = corpus.write(tmp_path / "first.npz")
    corpus.night()
    second = corpus.write(tmp_path / "second.npz")
    results = {}
    for name in ("whole", "died"):
        workspace = tmp_path / name
        before = run_nightly(settings(first, workspace), PLAIN).night
        if name == "died":
            with monkeypatch.context() as patch:
                die_in(step, patch)
                with pytest.raises(KeyboardInterrupt):
                    run_nightly(settings(second, workspace), PLAIN)
            assert current_night(workspace) == before
        results[name] = run_nightly(settings(second, workspace), PLAIN)
    assert results["whole"].night == results["died"].night
    assert tables_of(tmp_path / "whole") == tables_of(tmp_path / "died")


def die_in(step: str, patch: pytest.MonkeyPatch) -> None:
    commit = Workspace.step

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    def die_in_step(workspace: Workspace, name: str, **arguments: Any) -> Any:
        write = arguments["write"]

        def write_and_die(folder: Path) -> Mapping[str, Any]:
            write(folder)
            raise KeyboardInterrupt

        return commit(workspace, name, **(arguments | {"write": write_and_die} if name == step else arguments))

    if step == "commit":
        patch.setattr(nightly, "commit_night", die)
    patch.setattr(Workspace, "step", die_in_step)


def test_a_night_without_changes_adds_none(tmp_path: Path) -> None:
    """The same source again is no night; the last one still counts."""
    corpus = Corpus(5)
    corpus.add(20)
    first = night_of(corpus, tmp_path / "nights")
    again = night_of(corpus, tmp_path / "nights")
    assert (first.is_new, again.is_new) == (True, False)
    assert again.night == first.night
    assert again.as_json()["clusters"] == first.as_json()["clusters"]


def test_docs_are_kept_and_never_given_twice(tmp_path: Path) -> None:
    """A known image keeps its doc; one that changed or came back has a number above all before."""
    corpus = Corpus(6)
    corpus.add(10)
    workspace = tmp_path / "nights"
    night_of(corpus, workspace)
    changed, away, *others = sorted(corpus.rows)
    first = docs_of(workspace)
    kept = corpus.rows.pop(away)
    corpus.rows[changed] = corpus.draw()
    night_of(corpus, workspace)
    corpus.rows[away] = kept
    night_of(corpus, workspace)
    assert docs_of(workspace) == {**{image_id: first[image_id] for image_id in others}, changed: 10, away: 11}


def docs_of(workspace: Path) -> dict[str, int]:
    images = live_images(known_of(workspace, current_night(workspace)), ["image_id", "doc"])
    return dict(zip(images["image_id"].to_pylist(), images["doc"].to_pylist(), strict=True))


def test_an_addition_removes_nothing(tmp_path: Path) -> None:
    """With `keeps_missing` a source of the new images alone gives the matches of all."""
    corpus, day = Corpus(7), Corpus(8)
    corpus.add(50)
    day.centers, day.num_made = corpus.centers, corpus.num_made
    day.add(20)
    workspace = tmp_path / "nights"
    night_of(corpus, workspace)
    results = night_of(day, workspace, NightOptions(keeps_missing=True))
    corpus.rows |= day.rows
    assert (results.night.counts.new, results.night.counts.removed) == (20, 0)
    assert live_pairs(workspace) == corpus.matching_pairs()


def test_members_of_a_removed_canonical_are_led_by_one_of_them(tmp_path: Path) -> None:
    """A new image that matches all of them joins the heir, though it would be the better canonical of a cut."""
    corpus = Corpus(17)
    center, spread = corpus.centers[0], np.eye(DIM)
    for number, name in enumerate("abcd"):
        row = center + 0.3 * np.linalg.norm(center) * spread[number]
        corpus.rows[name] = (row / np.linalg.norm(row)).astype(np.float32)
    workspace = tmp_path / "nights"
    night_of(corpus, workspace)
    (leader,) = set(canonicals(workspace).values())
    del corpus.rows[leader]
    corpus.rows["0"] = (center / np.linalg.norm(center)).astype(np.float32)
    night_of(corpus, workspace)
    (heir,) = set(canonicals(workspace).values())
    assert heir in set("abcd") - {leader}


def test_decisions_by_hand_hold_in_nights(tmp_path: Path) -> None:
    """A split makes a night of its own and stays in later ones; forgotten, the images meet again."""
    corpus = Corpus(18)
    corpus.rows = {name: (corpus.centers[0] / np.linalg.norm(corpus.centers[0])).astype(np.float32) for name in "ab"}
    workspace = tmp_path / "nights"
    night_of(corpus, workspace)
    assert canonicals(workspace) == {"a": "a", "b": "a"}
    split = Decision(kind=DecisionKind.SPLIT, groups=(("a",), ("b",)), by="me", reason="not the same")
    number = record_decision(workspace, split).number
    source = workspace.with_suffix(".npz")
    assert run_nightly(settings(source, workspace), PLAIN).is_new
    corpus.rows["c"] = corpus.draw()
    night_of(corpus, workspace)
    assert canonicals(workspace)["b"] == "b"
    record_decision(workspace, Decision(kind=DecisionKind.FORGET, forgets=number, by="me", reason="it was"))
    assert run_nightly(settings(source, workspace), NightOptions(is_full=True)).is_new
    assert canonicals(workspace)["b"] == "a"


def test_segments_of_the_current_night_are_no_garbage(tmp_path: Path) -> None:
    """Removing all but the newest run leaves the tables that its night is made of, and the next night goes on."""
    corpus = Corpus(19)
    corpus.add(40)
    workspace = tmp_path / "nights"
    for _ in range(3):
        night_of(corpus, workspace)
        corpus.night()
    with Workspace(workspace) as opened:
        garbage = find_garbage(opened, keep=1)
        collect_garbage(opened, garbage)
    assert {step.partition("-")[0] for step in garbage.steps} == {"candidates"}
    night_of(corpus, workspace)
    assert live_pairs(workspace) == corpus.matching_pairs()


def test_nights_are_compared_as_wholes(tmp_path: Path) -> None:
    """The difference of two nights counts what came and went, not what their segments hold."""
    corpus = Corpus(20)
    corpus.add(50)
    workspace = tmp_path / "nights"
    night_of(corpus, workspace)
    before, pairs = set(corpus.rows), corpus.matching_pairs()
    for image_id in sorted(corpus.rows)[:4]:
        del corpus.rows[image_id]
    corpus.add(7)
    night_of(corpus, workspace)
    newest, first = list_records(workspace)[0]
    counts = diff_runs(workspace, first, newest).counts()
    assert counts["images_added"] == len(corpus.rows.keys() - before) == 7
    assert counts["images_removed"] == 4
    assert counts["pairs_gained"] == len(corpus.matching_pairs() - pairs)
    assert counts["pairs_lost"] == len(pairs - corpus.matching_pairs())


def test_a_full_night_cuts_all_clusters_anew(tmp_path: Path) -> None:
    """`is_full` gives the clusters that one run over the same matches gives, docs in the order in which images came."""
    workspace = tmp_path / "nights"
    corpus = Corpus(9)
    corpus.add(60)
    night_of(corpus, workspace)
    corpus.night()
    night_of(corpus, workspace)
    night_of(corpus, workspace, NightOptions(is_full=True))
    docs = docs_of(workspace)
    renamed = Corpus(9)
    renamed.rows = {f"{doc:06d}": corpus.rows[image_id] for image_id, doc in docs.items()}
    night_of(renamed, tmp_path / "scratch")
    assert {f"{docs[image_id]:06d}": f"{docs[other]:06d}" for image_id, other in canonicals(workspace).items()} == (
        canonicals(tmp_path / "scratch")
    )


def test_only_redoes_the_named_images(tmp_path: Path) -> None:
    """They get new docs and the matches that they had; what else has changed waits."""
    corpus = Corpus(10)
    corpus.add(40)
    workspace = tmp_path / "nights"
    night_of(corpus, workspace)
    first, pairs = docs_of(workspace), live_pairs(workspace)
    named = sorted(corpus.rows)[:3]
    corpus.add(5)
    results = night_of(corpus, workspace, NightOptions(only=tuple(named)))
    assert docs_of(workspace) == {**first, **{image_id: 40 + rank for rank, image_id in enumerate(named)}}
    assert live_pairs(workspace) == pairs
    assert (results.night.counts.changed, results.night.counts.new) == (3, 0)
    night_of(corpus, workspace)
    assert live_pairs(workspace) == corpus.matching_pairs()


def test_unknown_images_cannot_be_redone(tmp_path: Path) -> None:
    """The message names them; on a first night there is nothing to redo."""
    corpus = Corpus(11)
    corpus.add(5)
    with pytest.raises(BatchError, match="has none"):
        night_of(corpus, tmp_path / "nights", NightOptions(only=("x",)))
    night_of(corpus, tmp_path / "nights")
    with pytest.raises(SourceError, match="no image is called x:"):
        night_of(corpus, tmp_path / "nights", NightOptions(only=("x",)))


def test_other_settings_are_refused(tmp_path: Path) -> None:
    """Matches of known pairs stay, so another threshold needs another workspace; the message names the setting."""
    corpus = Corpus(12)
    corpus.add(5)
    night_of(corpus, tmp_path / "nights")
    with pytest.raises(WorkspaceError, match=r"min_score: 0\.8 there, 0\.9 now"):
        night_of(corpus, tmp_path / "nights", min_score=0.9)


def test_a_plan_counts_and_writes_nothing(tmp_path: Path) -> None:
    """A plan says what a night would do, and leaves every file as it is."""
    corpus = Corpus(13)
    corpus.add(30)
    workspace = tmp_path / "nights"
    source = corpus.write(tmp_path / "nights.npz")
    assert plan_night(settings(source, workspace), PLAIN).num_new == 30
    assert not workspace.exists()
    night_of(corpus, workspace)
    gone, changed, *_ = sorted(corpus.rows)
    del corpus.rows[gone]
    corpus.rows[changed] = corpus.draw()
    corpus.add(4)
    corpus.write(source)
    files = {path: path.stat().st_mtime_ns for path in workspace.rglob("*")}
    plan = plan_night(settings(source, workspace), PLAIN)
    assert (plan.num_known, plan.num_new, plan.num_touched, plan.num_removed) == (28, 4, 1, 1)
    assert {path: path.stat().st_mtime_ns for path in workspace.rglob("*")} == files


def test_ids_that_occur_twice_are_named(tmp_path: Path) -> None:
    """Two rows of one id are refused, whether it is known or new."""
    corpus = Corpus(14)
    corpus.add(3)
    night_of(corpus, tmp_path / "nights")
    image_id, row = next(iter(corpus.rows.items()))
    source = tmp_path / "twice.npz"
    for name in (image_id, "new"):
        np.savez(source, image_ids=np.array([name, name]), embeddings=np.stack([row, row]), digest=np.array("given"))
        with pytest.raises(SourceError, match=f"more than once, such as {name};"):
            run_nightly(settings(source, tmp_path / "nights"), PLAIN)


def test_a_lost_segment_is_named(tmp_path: Path) -> None:
    """A night whose tables somebody has deleted is refused, and says which."""
    corpus = Corpus(15)
    corpus.add(5)
    workspace = tmp_path / "nights"
    results = night_of(corpus, workspace)
    shutil.rmtree(workspace / "steps" / f"terms-{results.night.segments['terms'][0]}")
    corpus.add(1)
    with pytest.raises(WorkspaceError, match=r"terms-[0-9a-f]+ is missing"):
        night_of(corpus, workspace)


def test_a_damaged_night_is_refused(tmp_path: Path) -> None:
    """A night's file that does not hold what its name says is refused."""
    corpus = Corpus(16)
    corpus.add(5)
    results = night_of(corpus, tmp_path / "nights")
    path = nights_folder(tmp_path / "nights") / f"{results.night.night_id}.json"
    path.write_text(path.read_text().replace('"next_doc": 5', '"next_doc": 4'))
    with pytest.raises(WorkspaceError, match="is damaged"):
        current_night(tmp_path / "nights")
    path.write_text(json.dumps({"format_version": 1}))
    with pytest.raises(WorkspaceError, match="format version 1, this program reads 2"):
        current_night(tmp_path / "nights")


def test_segments_may_be_written_by_spark_and_by_pyarrow(tmp_path: Path) -> None:
    """Spark marks columns that are never null, pyarrow does not; both are segments of one table."""
    for name, nullable in (("a", False), ("b", True)):
        (tmp_path / name).mkdir()
        schema = pa.schema([pa.field("doc", pa.int64(), nullable)])
        pq.write_table(pa.table({"doc": [1]}, schema=schema), tmp_path / name / "part.parquet")
    whole = read_columns((str(tmp_path / "a"), str(tmp_path / "b")), ["doc"])
    assert whole["doc"].to_pylist() == [1, 1]


def test_a_segment_without_files_is_named(tmp_path: Path) -> None:
    """A table that somebody has emptied is no table without rows."""
    for name in "ab":
        (tmp_path / name).mkdir()
    pq.write_table(pa.table({"doc": [1]}), tmp_path / "a" / "part.parquet")
    with pytest.raises(WorkspaceError, match=r"table .*b has no files"):
        read_columns((str(tmp_path / "a"), str(tmp_path / "b")), ["doc"])


def test_nights_go_on_with_what_the_first_one_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms and candidates that nobody gave stay those of the first night, whatever a later one would choose."""
    corpus = Corpus(4)
    corpus.add(30)
    open_ended: dict[str, Any] = {"terms": None, "candidates": None}
    first = night_of(corpus, tmp_path / "workspace", **open_ended).night
    corpus.add(5)
    monkeypatch.setattr("batch_jobs.model.terms_for", lambda _: PARAMS)
    monkeypatch.setattr("lsh.candidates.CandidateParams.for_similarity", lambda _: CandidateParams(crowd_size=7))
    assert night_of(corpus, tmp_path / "workspace", **open_ended).night.settings == first.settings


def test_a_workspace_goes_on_with_its_terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run over more images hashes by the terms of the first, where none are given."""
    corpus = Corpus(5)
    corpus.add(30)
    workspace = tmp_path / "workspace"
    first = run_pipeline(settings(corpus.write(tmp_path / "given.npz"), workspace, terms=None))
    corpus.add(5)
    monkeypatch.setattr("batch_jobs.model.terms_for", lambda _: PARAMS)
    second = run_pipeline(settings(corpus.write(tmp_path / "given.npz"), workspace, terms=None))
    assert first.settings.terms == second.settings.terms != PARAMS


def test_a_run_in_a_workspace_of_another_format_is_refused(tmp_path: Path) -> None:
    """By the name of the format, whatever terms that other version has written."""
    corpus = Corpus(6)
    corpus.add(5)
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / "workspace.json").write_text(json.dumps({"format_version": 1, "terms": {"tables": 3}}))
    with pytest.raises(WorkspaceError, match="format version 1, this program writes 4"):
        run_pipeline(settings(corpus.write(tmp_path / "given.npz"), tmp_path / "workspace", terms=None))
