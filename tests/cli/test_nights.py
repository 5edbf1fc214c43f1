"""Rules of nights as an operator lives with them: looked at as runs, decided about, undone, stopped and cleaned up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from batch_jobs import select_matches
from batch_jobs.errors import WorkspaceError
from cli import cluster, explain, index, nightly, runs
from cli.exit_codes import ExitCode

DIM = 256
IN_EACH = 3


def write_source(path: Path, kinds: str, *, without: str = "") -> Path:
    """Three near-duplicates of each kind, such as `cat-0`; a kind has the same rows each night."""
    named: dict[str, Any] = {}
    for kind in kinds.split():
        generator = np.random.default_rng(list(kind.encode()))
        center = generator.normal(size=DIM)
        named |= {f"{kind}-{place}": center + 0.1 * generator.normal(size=DIM) for place in range(IN_EACH)}
    named = {image_id: row for image_id, row in named.items() if image_id not in without.split()}
    rows = np.array(list(named.values()), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.savez(path, image_ids=np.array(list(named)), embeddings=rows, digest=np.array("given"))
    return path


def neardup(group: Any, *arguments: str | Path, answer: str = "") -> Result:
    return CliRunner().invoke(group, list(map(str, arguments)), input=answer)


def said(workspace: Path, group: Any, *arguments: str | Path) -> dict[str, Any]:
    result = neardup(group, *arguments, "--workspace", workspace, "--json")
    assert result.exit_code == 0, result.exception or result.output
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def night(workspace: Path, kinds: str, *options: str, without: str = "") -> dict[str, Any]:
    source = write_source(workspace.with_suffix(".npz"), kinds, without=without)
    return said(workspace, nightly.command, source, "--min-score", "0.8", "--partitions", "2", *options)


def states(workspace: Path) -> list[tuple[str, str]]:
    """Run and state of each run, newest first."""
    return [(one["run_id"], one["state"]) for one in said(workspace, runs.command, "list")["runs"]]


def members(workspace: Path, image_id: str) -> list[str]:
    return sorted(one["image_id"] for one in said(workspace, cluster.command, "show", image_id)["members"])


def test_nights_are_compared_decided_about_and_undone(tmp_path: Path) -> None:
    """Two nights, their difference, a split by hand that later nights obey, and back to the second night."""
    workspace = tmp_path / "w"
    first, second = night(workspace, "cat dog"), night(workspace, "cat fox")
    assert [one["night"] for one in said(workspace, runs.command, "list")["runs"]] == [2, 1]
    assert "night 2" in neardup(runs.command, "list", "--workspace", workspace).stdout
    changes = said(workspace, runs.command, "diff")
    assert {name: changes[name]["count"] for name in changes if isinstance(changes[name], dict)} == {
        "images_added": 3,
        "images_removed": 3,
        "clusters_appeared": 1,
        "clusters_vanished": 1,
        "clusters_headed_anew": 0,
        "clusters_changed": 0,
        "pairs_gained": 3,
        "pairs_lost": 3,
    }
    options = ("--reason", "no cat", "--by", "ann")
    foretold = said(workspace, cluster.command, "split", "cat-2", "--dry-run", *options)["changes"]
    assert [(one["before"], one["after"]) for one in foretold] == [(["cat-0", "cat-1", "cat-2"], ["cat-0", "cat-1"])]
    said(workspace, cluster.command, "split", "cat-2", *options)
    third = night(workspace, "cat fox")
    assert (third["is_new"], third["new"], third["previous"]) == (True, 0, second["night_id"])
    fourth = night(workspace, "cat fox owl", "--full")
    assert members(workspace, "cat-0") == ["cat-0", "cat-1"]
    verdict = said(workspace, explain.command, "cat-2", "cat-0")["verdict"]
    assert verdict == "kept apart by hand (decision 1)"

    restore = (runs.command, "restore", second["run_id"], "--workspace", workspace)
    planned = said(workspace, runs.command, "restore", second["run_id"], "--dry-run")
    assert (planned["number"], planned["images_removed"]) == (2, 3)
    assert neardup(*restore, answer="n\n").exit_code != 0
    assert said(workspace, runs.command, "show")["run_id"] == fourth["run_id"]
    assert neardup(*restore, answer="y\n").exit_code == 0
    assert states(workspace) == [
        (fourth["run_id"], "undone"),
        (third["run_id"], "undone"),
        (second["run_id"], "finished"),
        (first["run_id"], "finished"),
    ]
    assert members(workspace, "cat-0") == ["cat-0", "cat-1", "cat-2"]
    assert said(workspace, index.command, "build", "--promote")["images"] == 2 * IN_EACH
    fifth = night(workspace, "cat hen")
    assert (fifth["previous"], fifth["number"], fifth["new"], fifth["removed"]) == (second["night_id"], 3, 3, 3)
    assert said(workspace, runs.command, "show")["parent"] == second["run_id"]
    assert members(workspace, "cat-0") == ["cat-0", "cat-1"]


def test_a_night_is_found_by_its_number(tmp_path: Path) -> None:
    """Where a number was given twice, because a night was undone, it names the one that counts."""
    workspace = tmp_path / "w"
    first, undone = night(workspace, "cat dog"), night(workspace, "cat fox")
    assert said(workspace, runs.command, "show", "2")["run_id"] == undone["run_id"]
    assert neardup(runs.command, "restore", "1", "--yes", "--workspace", workspace).exit_code == 0
    second = night(workspace, "cat hen")
    changes = said(workspace, runs.command, "diff", "1", "2")
    assert (changes["before"], changes["after"]) == (first["run_id"], second["run_id"])
    assert neardup(runs.command, "show", "3", "--workspace", workspace).exit_code != 0


def test_a_merge_by_hand_holds_in_later_nights(tmp_path: Path) -> None:
    """Images that match nobody stay together, whether clusters are updated or cut anew."""
    workspace = tmp_path / "w"
    night(workspace, "cat dog")
    said(workspace, cluster.command, "merge", "cat-1", "dog-1", "--reason", "one animal", "--by", "ann")
    for kinds, options in (("cat dog fox", ()), ("cat dog hen", ("--full",)), ("cat dog hen owl", ())):
        night(workspace, kinds, *options)
        assert {"cat-1", "dog-1"} <= set(members(workspace, "cat-1"))


def test_an_image_is_explained_by_all_nights(tmp_path: Path) -> None:
    """Neighbours of every night are told, removed ones only in the nights that had them."""
    workspace = tmp_path / "w"
    first = night(workspace, "cat", without="cat-2")
    night(workspace, "cat dog", without="cat-1")
    near = {one["image_id"] for one in said(workspace, explain.command, "cat-0")["neighbours"]}
    assert "cat-2" in near
    assert "cat-1" not in near
    found = said(workspace, explain.command, "cat-0", "--run", first["run_id"])
    assert {one["image_id"] for one in found["neighbours"]} == {"cat-1"}
    assert neardup(explain.command, "cat-1", "--workspace", workspace).exit_code != 0
    pair = said(workspace, explain.command, "cat-0", "cat-2")
    assert pair["verdict"] == "one cluster: they match, and one of them is its canonical"


def test_a_stopped_night_is_resumed_with_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is listed with its last step; resumed it is the night that it would have been."""
    for name in ("whole", "stopped"):
        night(tmp_path / name, "cat dog")
    source = write_source(tmp_path / "new.npz", "fox")
    arguments = (source, "--min-score", "0.8", "--partitions", "2", "--keep-missing", "--full")
    whole = said(tmp_path / "whole", nightly.command, *arguments)
    workspace = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(select_matches, "select_matches", stop)
        assert isinstance(
            neardup(nightly.command, *arguments, "--workspace", workspace).exception, KeyboardInterrupt | SystemExit
        )
    (stopped, state), _ = states(workspace)
    assert state == "unfinished after candidates"
    assert neardup(explain.command, "fox-0", "--run", stopped, "--workspace", workspace).exit_code != 0
    resumed = said(workspace, runs.command, "resume")
    assert (resumed["run_id"], resumed["images"], resumed["removed"]) == (stopped, 3 * IN_EACH, 0)
    assert [one for _, one in states(workspace)] == ["finished", "finished"]
    assert resumed["number"] == whole["number"]
    assert members(workspace, "fox-2") == members(tmp_path / "whole", "fox-2")


def stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_night_without_changes_leaves_no_record(tmp_path: Path) -> None:
    """The list of runs has the nights that are there, and no more."""
    workspace = tmp_path / "w"
    first = night(workspace, "cat")
    assert night(workspace, "cat")["is_new"] is False
    assert states(workspace) == [(first["run_id"], "finished")]


def test_garbage_collection_keeps_the_night_that_counts(tmp_path: Path) -> None:
    """After going back, the old night is whole however few runs are kept, and the next night builds on it."""
    workspace = tmp_path / "w"
    first, _ = night(workspace, "cat dog"), night(workspace, "cat fox")
    night(workspace, "cat fox owl")
    for _ in range(2):
        said(workspace, runs.command, "restore", "--yes")
    said(workspace, runs.command, "gc", "--keep", "1", "--yes")
    assert members(workspace, "dog-1") == ["dog-0", "dog-1", "dog-2"]
    assert night(workspace, "cat dog hen")["previous"] == first["night_id"]
    assert members(workspace, "hen-1") == ["hen-0", "hen-1", "hen-2"]


def test_nights_that_were_undone_are_garbage(tmp_path: Path) -> None:
    """Once another night is the newest, they cannot count again."""
    workspace = tmp_path / "w"
    night(workspace, "cat dog")
    second = night(workspace, "cat fox")
    said(workspace, runs.command, "restore", "--yes")
    night(workspace, "cat dog hen")
    gone = said(workspace, runs.command, "gc", "--keep", "1", "--yes")
    assert any(name.startswith("cluster-") for name in gone["steps"])
    refused = neardup(runs.command, "restore", second["run_id"], "--workspace", workspace, "--yes")
    assert isinstance(refused.exception, WorkspaceError)
    assert "cannot count again" in str(refused.exception)


def test_only_another_night_can_be_restored(tmp_path: Path) -> None:
    """The night that counts, and runs that are no nights, are wrong arguments."""
    workspace = tmp_path / "w"
    first = night(workspace, "cat")
    result = neardup(runs.command, "restore", first["run_id"], "--workspace", workspace, "--yes")
    assert (result.exit_code, "counts already" in result.output) == (ExitCode.USAGE, True)


def test_drift_is_told_of_what_a_night_has_looked_at(tmp_path: Path) -> None:
    """A night with nothing but one new kind covers all of it, whatever is known."""
    workspace = tmp_path / "w"
    night(workspace, "cat dog")
    night(workspace, "cat dog fox")
    shown = said(workspace, runs.command, "show")
    drift = {one["figure"]: one["value"] for one in shown["drift"]}
    assert drift["coverage"] == 1.0
    assert drift["matches per image"] == 1.0
    assert drift["duplicates per image"] == pytest.approx(2 / 3)
    assert shown["changes"]["images_added"]["count"] == IN_EACH
