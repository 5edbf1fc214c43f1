"""Rules of decisions by hand: what is split never meets in a cluster, what is merged always does, nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from batch_jobs.cluster_matches import cluster_docs
from batch_jobs.cluster_scope import Edges
from batch_jobs.decisions import (
    DecidedEdges,
    Decision,
    DecisionKind,
    Decisions,
    DocDecisions,
    apply_decisions,
    read_decisions,
    record_decision,
)
from batch_jobs.errors import DecisionError, WorkspaceError

NUM_DOCS = 24


def decided(
    edges: list[tuple[int, int, float]],
    *,
    splits: tuple[dict[int, int], ...] = (),
    merges: tuple[tuple[int, ...], ...] = (),
    original_docs: list[int] | None = None,
    pixels: list[int] | None = None,
) -> DecidedEdges:
    num_docs = len(original_docs or range(6))
    lefts, rights, scores = zip(*edges, strict=True) if edges else ((), (), ())
    return apply_decisions(
        lefts=np.array(lefts, np.int64),
        rights=np.array(rights, np.int64),
        scores=np.array(scores, np.float32),
        original_docs=np.array(original_docs or range(num_docs)),
        pixels=np.array(pixels or [1] * num_docs),
        decided=DocDecisions(splits, merges),
    )


def canonical_of(edges: DecidedEdges, pixels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The canonical of each doc, its own where it is in no cluster."""
    members = cluster_docs(
        Edges(edges.lefts, edges.rights, edges.scores), original_docs=edges.original_docs, pixels=pixels
    ).members
    canonical = np.arange(len(edges.original_docs))
    canonical[members.docs] = members.canonical_docs
    return canonical


def pairs(edges: DecidedEdges) -> list[tuple[int, int]]:
    return sorted(zip(edges.lefts.tolist(), edges.rights.tolist(), strict=True))


def test_without_decisions_the_edges_are_the_matches() -> None:
    """Nothing decided changes nothing."""
    edges = [(0, 1, 0.9), (1, 2, 0.8)]
    assert pairs(decided(edges)) == [(0, 1), (1, 2)]


def test_a_split_pair_does_not_meet_over_a_third_image() -> None:
    """Image 2 matches both; it stays with the one that it matches better."""
    edges = decided([(0, 1, 0.99), (0, 2, 0.9), (1, 2, 0.8)], splits=({0: 0, 1: 1},))
    assert pairs(edges) == [(0, 2)]
    assert edges.num_dropped == 2


def test_images_of_one_group_of_a_split_may_stay_together() -> None:
    """Members taken out of a cluster together keep their matches with one another."""
    edges = decided([(0, 1, 0.9), (0, 2, 0.9), (1, 2, 0.9)], splits=({0: 0, 1: 1, 2: 1},))
    assert pairs(edges) == [(1, 2)]


def test_merged_images_bring_their_clusters_together() -> None:
    """The better image stands for both, takes the other's matches, and the best score of a match stays."""
    edges = decided([(0, 1, 0.9), (2, 3, 0.8), (0, 3, 0.7)], merges=((0, 2),), pixels=[1, 1, 9, 1, 1, 1])
    assert dict(zip(pairs(edges), edges.scores.tolist(), strict=True)) == {
        (1, 2): np.float32(0.9),
        (2, 3): np.float32(0.8),
    }
    assert edges.original_docs.tolist() == [2, 1, 2, 3, 4, 5]


def test_copies_follow_the_merged_image_of_their_original() -> None:
    """Doc 1 has the bytes of doc 0, which is merged with doc 2 by way of that copy."""
    edges = decided([], merges=((1, 2),), original_docs=[0, 0, 2])
    assert edges.original_docs.tolist() == [0, 0, 0]


def test_a_split_of_images_with_equal_bytes_holds() -> None:
    """Whoever splits two images means it, whatever their bytes: the later doc leaves, other copies stay."""
    edges = decided([(0, 3, 0.9)], splits=({0: 0, 1: 1},), original_docs=[0, 0, 0, 3])
    assert edges.original_docs.tolist() == [0, 1, 0, 3]
    assert pairs(edges) == [(0, 3)]


def test_a_split_overrules_a_merge() -> None:
    """Where copies make a split and a merge contradict each other, the split holds and it is counted."""
    edges = decided([], splits=({0: 0, 2: 1},), merges=((1, 2),), original_docs=[0, 0, 2])
    assert edges.original_docs.tolist() == [0, 0, 2]
    assert edges.num_overruled == 1


@pytest.mark.parametrize("seed", range(60))
def test_random_decisions_hold_in_the_clusters(seed: int) -> None:
    """On random matches, copies, splits and merges: split pairs never meet, merged ones do unless forbidden."""
    rng = np.random.default_rng(seed)
    original_docs = np.arange(NUM_DOCS)
    original_docs[rng.choice(NUM_DOCS, 4, replace=False)] = rng.integers(0, 4, 4)
    original_docs = np.minimum(original_docs, np.arange(NUM_DOCS))
    original_docs = original_docs[original_docs]
    originals = np.unique(original_docs).tolist()
    edges = [pair for pair in combinations(originals, 2) if rng.random() < 0.25]
    pixels = rng.integers(1, 4, NUM_DOCS)[original_docs]
    splits = tuple(
        {int(doc): int(rng.integers(0, 2)) for doc in rng.choice(NUM_DOCS, 4, replace=False)} for _ in range(3)
    )
    merges = tuple(tuple(rng.choice(NUM_DOCS, 2, replace=False).tolist()) for _ in range(3))
    result = apply_decisions(
        lefts=np.array([left for left, _ in edges], np.int64),
        rights=np.array([right for _, right in edges], np.int64),
        scores=rng.choice(np.array([0.8, 0.9, 1.0], np.float32), len(edges)),
        original_docs=original_docs,
        pixels=pixels,
        decided=DocDecisions(splits, merges),
    )
    canonical = canonical_of(result, pixels)
    for labels in splits:
        for left, right in combinations(labels, 2):
            assert labels[left] == labels[right] or canonical[left] != canonical[right]
    apart = sum(canonical[left] != canonical[right] for left, right in merges)
    assert apart <= result.num_overruled
    assert set(pairs(result)) <= {
        (min(ends), max(ends))
        for left, right in edges
        for ends in [(int(result.original_docs[left]), int(result.original_docs[right]))]
    }


def split(*groups: tuple[str, ...]) -> Decision:
    return Decision(kind=DecisionKind.SPLIT, groups=groups, by="ann", reason="a cat and a dog")


def merge(*image_ids: str) -> Decision:
    return Decision(kind=DecisionKind.MERGE, groups=(image_ids,), by="ann", reason="the same cat")


def forget(number: int) -> Decision:
    return Decision(kind=DecisionKind.FORGET, forgets=number, by="bob", reason="it was the same dog")


def test_the_log_keeps_every_decision(tmp_path: Path) -> None:
    """Decisions are numbered, dated and kept; one that was taken back stays in the log and no longer holds."""
    first = record_decision(tmp_path, split(("a",), ("b",)))
    record_decision(tmp_path, merge("c", "d"))
    record_decision(tmp_path, forget(first.number))
    decisions = read_decisions(tmp_path)
    assert [one.number for one in decisions.log] == [1, 2, 3]
    assert [one.kind for one in decisions.active] == [DecisionKind.MERGE]
    assert [one.number for one in decisions.about(["d"])] == [2]
    assert "the same cat" in decisions.log[1].describe()
    assert len((tmp_path / "decisions.jsonl").read_text("utf-8").splitlines()) == 3


def test_the_digest_is_that_of_what_holds(tmp_path: Path) -> None:
    """Who, when and why change nothing, and a decision that was taken back leaves no trace in later runs' inputs."""
    assert read_decisions(tmp_path).digest == Decisions().digest
    record_decision(tmp_path, split(("a",), ("b",)))
    decided_once = read_decisions(tmp_path)
    assert decided_once.digest != Decisions().digest
    renamed = Decisions(tuple(replace(one, by="eve", decided_at="now") for one in decided_once.log))
    assert renamed.digest == decided_once.digest
    record_decision(tmp_path, forget(1))
    assert read_decisions(tmp_path).digest == Decisions().digest


def test_an_equal_decision_is_kept_once(tmp_path: Path) -> None:
    """Saying the same twice returns the first."""
    first = record_decision(tmp_path, merge("a", "b"))
    assert record_decision(tmp_path, merge("a", "b")) == first


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ([split(("a",), ("b",))], merge("a", "b")),
        ([merge("a", "b")], split(("a",), ("b",))),
        ([merge("a", "b"), merge("b", "c")], split(("a",), ("c",))),
        ([merge("a", "b"), split(("a",), ("c",))], merge("b", "c")),
    ],
)
def test_a_contradiction_is_refused_with_the_way_out(tmp_path: Path, earlier: list[Decision], later: Decision) -> None:
    """The message names the decision that stands in the way; once that is forgotten the new one is taken."""
    for decision in earlier:
        record_decision(tmp_path, decision)
    with pytest.raises(DecisionError, match=r"`neardup cluster forget (\d)`") as refused:
        record_decision(tmp_path, later)
    record_decision(tmp_path, forget(int(str(refused.value).rpartition("forget ")[2][0])))
    record_decision(tmp_path, later)


@pytest.mark.parametrize("number", [0, 2])
def test_only_a_decision_that_holds_can_be_forgotten(tmp_path: Path, number: int) -> None:
    """An unknown number changes nothing."""
    record_decision(tmp_path, merge("a", "b"))
    with pytest.raises(DecisionError, match=f"no decision {number}"):
        record_decision(tmp_path, forget(number))


def test_malformed_decisions_are_refused() -> None:
    """One image, one group or an image named twice is no decision."""
    for kind, groups in (
        (DecisionKind.MERGE, (("a",),)),
        (DecisionKind.SPLIT, (("a", "b"),)),
        (DecisionKind.SPLIT, (("a",), ("a",))),
        (DecisionKind.MERGE, (("a",), ("b",))),
    ):
        with pytest.raises(DecisionError):
            Decision(kind=kind, groups=groups, by="ann", reason="")


@pytest.mark.parametrize("line", ["", "{", "[]", '{"kind": "burn", "groups": []}', '{"kind": "merge"}'])
def test_a_damaged_log_is_refused(tmp_path: Path, line: str) -> None:
    """Decisions are never guessed or silently dropped."""
    record_decision(tmp_path, merge("a", "b"))
    with (tmp_path / "decisions.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(WorkspaceError, match="line 2"):
        read_decisions(tmp_path)


def test_images_that_are_gone_are_left_out() -> None:
    """A decision about images that a run does not have, or that have no embedding, waits for them."""
    decisions = Decisions((replace(split(("a",), ("b",), ("c",)), number=1), replace(merge("d", "gone"), number=2)))
    image_ids = pa.chunked_array([["a", "b"], ["c", "d"]])
    known = decisions.on_docs(image_ids, np.array([True, False, True, True]))
    assert known == DocDecisions(({0: 0, 2: 2},), ())


def test_processes_that_decide_at_once_lose_nothing(tmp_path: Path) -> None:
    """Eight processes append at the same time; every decision is in the log, numbered without gaps."""
    program = """
import sys
from pathlib import Path
from batch_jobs.decisions import Decision, DecisionKind, record_decision

groups = ((sys.argv[2], sys.argv[2] + "-copy"),)
record_decision(Path(sys.argv[1]), Decision(kind=DecisionKind.MERGE, groups=groups, by="x", reason=""))
"""
    processes = [subprocess.Popen([sys.executable, "-c", program, tmp_path, f"image-{i}"]) for i in range(8)]
    assert [process.wait() for process in processes] == [0] * 8
    assert [one.number for one in read_decisions(tmp_path).active] == list(range(1, 9))
    json.loads((tmp_path / "decisions.jsonl").read_text("utf-8").splitlines()[-1])
