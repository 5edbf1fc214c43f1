"""Rules of `neardup runs`, `neardup cluster` and `neardup explain` on a workspace of two nights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli import cluster, explain, index, runs
from cli.exit_codes import ExitCode
from cli.main import exit_code_of
from tests.night import clusters_of, family, pets, run_night


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    run_night(tmp_path, pets(), rejects=["torn"])
    run_night(tmp_path, {**pets(), **{f"bird-{place}": row for place, row in enumerate(family(4, 2))}})
    return tmp_path


def neardup(group: Any, *arguments: str | Path, answer: str = "") -> Result:
    return CliRunner().invoke(group, list(map(str, arguments)), input=answer)


def said(group: Any, *arguments: str | Path) -> dict[str, Any]:
    result = neardup(group, *arguments, "--json")
    assert result.exit_code == 0, result.exception or result.output
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def listed(workspace: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = said(runs.command, "list", "--workspace", workspace)["runs"]
    return found


def test_runs_are_listed_newest_first(workspace: Path) -> None:
    """Finished and stopped runs, with their counts or with how far they came."""
    run_night(workspace, pets(), min_score=0.5, until="select")
    found = listed(workspace)
    assert [one["state"] for one in found] == ["unfinished after select", "finished", "finished"]
    assert [one["results"].get("clusters") for one in found] == [None, 3, 2]
    text = neardup(runs.command, "list", "--workspace", workspace).stdout
    assert text.index(found[0]["run_id"]) < text.index(found[1]["run_id"])


def test_show_tells_the_night(workspace: Path) -> None:
    """Counts, stages, skew, changes and drift are in the text, in the JSON and on the page."""
    newest, first = listed(workspace)
    shown = said(runs.command, "show", "--workspace", workspace)
    assert shown["run_id"] == newest["run_id"]
    assert shown["parent"] == first["run_id"]
    assert shown["changes"]["images_added"]["count"] == 2
    assert next(one for one in shown["drift"] if one["figure"] == "coverage")["value"] == 1.0
    text = neardup(runs.command, "show", first["run_id"][:6], "--workspace", workspace).stdout
    for part in ("counts", "stages", "skew", "truncated", "settings", "largest bucket"):
        assert part in text
    page = workspace / "run.html"
    assert neardup(runs.command, "show", "--report", page, "--workspace", workspace).exit_code == 0
    html = page.read_text("utf-8")
    assert newest["run_id"] in html
    assert "Drift against the run before" in html
    assert "<script" not in html


def test_what_a_plan_foretold_stands_beside_what_came(tmp_path: Path) -> None:
    """A run that used a plan shows both, per image."""
    names = ("candidates", "largest_bucket", "term_block_bytes", "pair_block_bytes", "hash_s", "join_s", "verify_s")
    run_night(tmp_path, pets(), prediction=dict.fromkeys(names, 2.0))
    foretold = said(runs.command, "show", "--workspace", tmp_path)["foretold"]
    assert foretold["candidates"] == {"foretold": 2.0, "came": 9 / 8}
    assert foretold["core_s"]["foretold"] == 6.0
    assert "foretold" in neardup(runs.command, "show", "--workspace", tmp_path).stdout


def test_diff_tells_the_newest_from_the_one_before(workspace: Path) -> None:
    """Without names, and by name in the other direction."""
    newest, first = (one["run_id"] for one in listed(workspace))
    forward = said(runs.command, "diff", "--workspace", workspace)
    backward = said(runs.command, "diff", newest, first, "--workspace", workspace)
    assert forward["images_added"] == backward["images_removed"] == {"count": 2, "examples": [["bird-0"], ["bird-1"]]}
    assert "bird-0" in neardup(runs.command, "diff", "--workspace", workspace).stdout


def test_the_first_run_has_nothing_before_it(tmp_path: Path) -> None:
    """A usage error that names the next step."""
    run_night(tmp_path, pets())
    result = neardup(runs.command, "diff", "--workspace", tmp_path)
    assert (result.exit_code, "neardup runs list" in result.output) == (ExitCode.USAGE, True)


def test_gc_asks_before_it_removes(workspace: Path) -> None:
    """A dry run and a no change nothing; a yes removes the older night's tables and leaves its record."""
    newest, first = (one["run_id"] for one in listed(workspace))
    dry = said(runs.command, "gc", "--keep", "1", "--dry-run", "--workspace", workspace)
    assert len(dry["steps"]) == 6
    refused = neardup(runs.command, "gc", "--keep", "1", "--workspace", workspace, answer="n\n")
    assert refused.exit_code != 0
    assert [one["state"] for one in listed(workspace)] == ["finished", "finished"]
    assert neardup(runs.command, "gc", "--keep", "1", "--json", "--workspace", workspace).exit_code == ExitCode.USAGE
    assert neardup(runs.command, "gc", "--keep", "1", "--workspace", workspace, answer="y\n").exit_code == 0
    assert [one["state"] for one in listed(workspace)] == ["finished", "collected"]
    assert "nothing to remove" in neardup(runs.command, "gc", "--keep", "1", "--workspace", workspace).stdout
    assert said(runs.command, "show", "--workspace", workspace)["changes"] is None
    assert [newest, first] == [one["run_id"] for one in listed(workspace)]


def test_resume_refuses_what_it_cannot_go_on_with(workspace: Path) -> None:
    """Nothing stopped, a finished run, or another command's run: each is said."""
    newest = listed(workspace)[0]["run_id"]
    for arguments, message in (((), "no run was stopped"), ((newest,), "is finished")):
        result = neardup(runs.command, "resume", *arguments, "--workspace", workspace)
        assert (result.exit_code, message in result.output) == (ExitCode.USAGE, True)


def test_going_back_to_an_earlier_night(workspace: Path) -> None:
    """The index of an earlier run is built and promoted as if it were the newest."""
    first = listed(workspace)[1]["run_id"]
    newest = said(index.command, "build", "--promote", "--workspace", workspace)
    back = said(index.command, "build", "--run", first, "--promote", "--workspace", workspace)
    assert (newest["images"], newest["clusters"]) == (10, 3)
    assert (back["images"], back["clusters"]) == (8, 2)
    current = [one["is_current"] for one in said(index.command, "list", "--workspace", workspace)["generations"]]
    assert sorted(current) == [False, True]
    result = neardup(index.command, "build", "--run", first, "--min-score", "0.8", "--workspace", workspace)
    assert result.exit_code == ExitCode.USAGE


def test_a_cluster_is_shown_with_reasons(workspace: Path) -> None:
    """Members, scores and why; in JSON and as a table."""
    found = said(cluster.command, "show", "cat-2", "--workspace", workspace)
    assert found["canonical_id"] == "cat-0"
    assert [one["why"] for one in found["members"]] == ["canonical"] + ["matches the canonical"] * 3
    assert "matches the canonical" in neardup(cluster.command, "show", "cat-2", "--workspace", workspace).stdout


@pytest.mark.parametrize(
    ("arguments", "cats"),
    [
        (("split", "cat-3"), [{"cat-0", "cat-1", "cat-2"}]),
        (("split", "cat-0", "--all"), []),
        (("merge", "cat-1", "fish"), [{"cat-0", "cat-1", "cat-2", "cat-3", "fish"}]),
    ],
)
def test_decisions_are_shown_before_and_obeyed_after(
    workspace: Path, arguments: tuple[str, ...], cats: list[set[str]]
) -> None:
    """A dry run foretells the clusters and records nothing; the decision holds in the next run."""
    options = ("--reason", "seen", "--by", "ann", "--workspace", workspace)
    dry = said(cluster.command, *arguments, "--dry-run", *options)
    assert [set(one["after"]) for one in dry["changes"] if len(one["after"])] == cats
    assert said(cluster.command, "decisions", "--workspace", workspace)["decisions"] == []
    assert said(cluster.command, *arguments, *options)["decision"]["number"] == 1
    found = clusters_of(workspace, run_night(workspace, pets()))
    assert [one for one in found if "dog-0" not in one] == cats
    assert said(cluster.command, "forget", "1", *options)["decision"]["forgets"] == 1
    assert {"cat-0", "cat-1", "cat-2", "cat-3"} in clusters_of(workspace, run_night(workspace, pets()))
    assert len(said(cluster.command, "decisions", "--log", "--workspace", workspace)["decisions"]) == 2


def test_unknown_images_are_refused(workspace: Path) -> None:
    """No decision is recorded about an image that the newest run does not have."""
    result = neardup(cluster.command, "merge", "cat-0", "cow", "--reason", "x", "--workspace", workspace)
    assert isinstance(result.exception, Exception)
    assert exit_code_of(result.exception) is ExitCode.SOURCE
    assert "cow" in str(result.exception)
    assert neardup(cluster.command, "split", "fish", "--reason", "x", "--workspace", workspace).exit_code == 2


def test_explain_takes_image_ids(workspace: Path) -> None:
    """One id or two; the note tells that decisions have changed since the run."""
    alone = said(explain.command, "cat-1", "--workspace", workspace)
    assert alone["verdict"].startswith("in the cluster of cat-0")
    pair = said(explain.command, "cat-1", "fish", "--workspace", workspace)
    assert pair["in_one_cluster"] is False
    neardup(cluster.command, "merge", "cat-1", "fish", "--reason", "x", "--workspace", workspace)
    text = neardup(explain.command, "cat-1", "fish", "--workspace", workspace).stdout
    assert "decisions by hand have changed since this run" in text
    assert "score" in text
    text = neardup(explain.command, "cat-1", "--neighbours", "2", "--workspace", workspace).stdout
    assert "its neighbours, 2 of" in text
    assert (
        "rejected by catalogue"
        in neardup(explain.command, "torn", "--run", listed(workspace)[1]["run_id"], "--workspace", workspace).stdout
    )


@pytest.mark.parametrize(
    ("group", "arguments"),
    [
        (runs.command, ("list",)),
        (runs.command, ("show",)),
        (runs.command, ("diff",)),
        (runs.command, ("resume",)),
        (runs.command, ("gc", "--dry-run")),
        (cluster.command, ("show", "a")),
        (cluster.command, ("decisions",)),
        (explain.command, ("a",)),
    ],
)
def test_a_workspace_that_is_not_there_is_named(tmp_path: Path, group: Any, arguments: tuple[str, ...]) -> None:
    """No command makes a workspace out of a mistyped path."""
    error = neardup(group, *arguments, "--workspace", tmp_path / "none").exception
    assert isinstance(error, Exception)
    assert exit_code_of(error) is ExitCode.WORKSPACE
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0,
    reason="a small disk needs `unshare -rm`, which this machine does not allow",
)
def test_a_full_disk_can_be_freed(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where not a byte can be written, `gc` still takes the lease, removes an older night, and gives the lease back."""
    disk = tmp_path_factory.mktemp("disk")
    gc = f"{sys.executable} -m cli runs gc --keep 1 --yes --workspace {disk}/ws --json"
    script = f"""
        mount -t tmpfs -o size=2m tmpfs {disk}
        cp -r {workspace} {disk}/ws
        dd if=/dev/zero of={disk}/ballast bs=4k status=none 2>/dev/null
        {gc} && {gc}
    """
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.OK, done.stderr
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert len(first["steps"]) == 6
    assert second["steps"] == []
