"""Rules of the difference of two runs: each kind is counted, against sets of image ids in plain Python."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from batch_jobs.decisions import Decision, DecisionKind, record_decision
from batch_jobs.run_diff import diff_runs
from tests.night import family, pets, run_night


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    """Nothing is new, nothing is gone."""
    run = run_night(tmp_path, pets())
    assert set(diff_runs(tmp_path, run, run).counts().values()) == {0}


def test_every_kind_of_difference_is_found(tmp_path: Path) -> None:
    """A cat and all dogs leave, birds come, the fish is split from nobody: each is counted, with examples."""
    images = pets()
    before = run_night(tmp_path, images)
    birds = {f"bird-{place}": row for place, row in enumerate(family(4, 2))}
    left = {image_id: row for image_id, row in images.items() if image_id != "cat-3" and "dog" not in image_id}
    found = diff_runs(tmp_path, before, run_night(tmp_path, {**left, **birds}))
    assert found.counts() == {
        "images_added": 2,
        "images_removed": 4,
        "clusters_appeared": 1,
        "clusters_vanished": 1,
        "clusters_headed_anew": 0,
        "clusters_changed": 1,
        "pairs_gained": 1,
        "pairs_lost": 6,
    }
    assert found.images_added.examples == (("bird-0",), ("bird-1",))
    assert found.pairs_gained.examples == (("bird-0", "bird-1"),)
    assert ("cat-0", "cat-3") in found.pairs_lost.examples
    assert found.clusters_vanished.examples == (("dog-0",),)


def test_a_cluster_with_another_canonical_is_headed_anew(tmp_path: Path) -> None:
    """When the canonical is taken out by hand and the others stay together, their cluster has a new head."""
    before = run_night(tmp_path, pets())
    others = ("cat-1", "cat-2", "cat-3")
    record_decision(tmp_path, Decision(kind=DecisionKind.SPLIT, groups=(("cat-0",), others), by="ann", reason="no cat"))
    found = diff_runs(tmp_path, before, run_night(tmp_path, pets()))
    assert found.clusters_headed_anew.examples == (("cat-0", "cat-1"),)
    assert found.counts()["clusters_changed"] == found.counts()["pairs_lost"] == 0


def test_examples_are_as_many_as_asked_for(tmp_path: Path) -> None:
    """Counts are whole, examples are few."""
    before = run_night(tmp_path, pets())
    after = run_night(tmp_path, {**pets(), **{f"new-{place}": row for place, row in enumerate(family(9, 5))}})
    found = diff_runs(tmp_path, before, after, num_examples=2)
    assert (found.images_added.count, len(found.images_added.examples)) == (5, 2)
    assert (found.pairs_gained.count, len(found.pairs_gained.examples)) == (10, 2)


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_those_of_plain_sets(tmp_path: Path, seed: int) -> None:
    """On random parts of a crowd: gained and lost pairs are the differences of the sets of matching ids."""
    rng = np.random.default_rng(seed)
    crowd = {f"i{place:02d}": row for place, row in enumerate(np.concatenate([family(s, 6) for s in range(4)]))}
    parts = [{name: crowd[name] for name in crowd if rng.random() < 0.7} for _ in range(2)]
    before, after = (run_night(tmp_path, part) for part in parts)
    found = diff_runs(tmp_path, before, after, num_examples=1000)
    old, new = (matching(part) for part in parts)
    assert {tuple(sorted(pair)) for pair in found.pairs_gained.examples} == new - old
    assert {tuple(sorted(pair)) for pair in found.pairs_lost.examples} == old - new


def matching(images: dict[str, NDArray[np.float32]]) -> set[tuple[str, str]]:
    """Pairs within a family: the tables are many enough to find them all."""
    return {
        (left, right) for left, right in combinations(sorted(images), 2) if int(left[1:]) // 6 == int(right[1:]) // 6
    }
