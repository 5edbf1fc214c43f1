"""Rules of garbage collection: it frees what no kept run needs, and nothing that one needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from batch_jobs.build_index import build_index
from batch_jobs.errors import WorkspaceError
from batch_jobs.run_gc import Garbage, collect_garbage, find_garbage
from batch_jobs.run_records import find_record, list_records, record_path
from batch_jobs.workspace import Workspace
from tests.night import clusters_of, pets, run_night


def collect(workspace: Path, *, keep: int) -> Garbage:
    with Workspace(workspace) as opened:
        garbage = find_garbage(opened, keep=keep)
        collect_garbage(opened, garbage)
    return garbage


def test_the_newest_runs_keep_all_their_tables(tmp_path: Path) -> None:
    """Of three nights the first goes; steps that it shares with a kept night stay."""
    first, second, third = (run_night(tmp_path, pets(), min_score=score) for score in (0.7, 0.8, 0.9))
    (record_path(tmp_path, first.run_id).parent / "clusters.csv").write_text("big")
    garbage = collect(tmp_path, keep=2)
    assert garbage.trimmed_runs == (first.run_id,)
    assert garbage.steps == tuple(sorted(first.steps[place].folder_name for place in (4, 5)))
    assert garbage.size_bytes > 0
    assert clusters_of(tmp_path, second) == clusters_of(tmp_path, third)
    assert not (record_path(tmp_path, first.run_id).parent / "clusters.csv").exists()


def test_a_record_outlives_its_tables(tmp_path: Path) -> None:
    """Drift still knows the night; whoever asks for its tables is told that they are gone."""
    first = run_night(tmp_path, pets(), min_score=0.7)
    run_night(tmp_path, pets())
    collect(tmp_path, keep=1)
    assert find_record(tmp_path, first.run_id) == first
    with pytest.raises(WorkspaceError, match=f"table clusters of run {first.run_id} is gone"):
        clusters_of(tmp_path, first)


def test_a_run_behind_a_generation_stays(tmp_path: Path) -> None:
    """As long as a generation of the index is there, so are the tables that it was made of."""
    first = run_night(tmp_path, pets(), min_score=0.7)
    with Workspace(tmp_path) as opened:
        build_index(opened, run_id=first.run_id)
    run_night(tmp_path, pets())
    assert collect(tmp_path, keep=1) == Garbage((), (), (), 0)
    assert len(clusters_of(tmp_path, first)) == 2


def test_a_stopped_run_newer_than_all_finished_ones_stays(tmp_path: Path) -> None:
    """It may be resumed; once a later run is finished it goes, record and all."""
    run_night(tmp_path, pets())
    stopped = run_night(tmp_path, pets(), min_score=0.7, until="select")
    assert collect(tmp_path, keep=1).runs == ()
    run_night(tmp_path, pets(), min_score=0.9)
    assert collect(tmp_path, keep=2).runs == (stopped.run_id,)
    assert stopped.run_id not in [one.run_id for one in list_records(tmp_path)[0]]


def test_steps_of_no_run_are_removed_but_not_the_inputs_of_one(tmp_path: Path) -> None:
    """A step that a needed step was made of is needed, even if no record names it."""
    record = run_night(tmp_path, pets())

    def commit(inputs: dict[str, str]) -> str:
        with Workspace(tmp_path) as opened:
            return opened.step("extra", inputs=inputs, write=lambda _: {}, tables=()).folder.name

    orphan, input_of_needed = commit({"a": "1"}), commit({"a": "2"})
    commit_file = tmp_path / "steps" / record.steps[0].folder_name / "commit.json"
    commit_file.write_text(
        commit_file.read_text().replace('"inputs": {', f'"inputs": {{"x": ["{input_of_needed.rpartition("-")[2]}"],', 1)
    )
    assert collect(tmp_path, keep=1).steps == (orphan,)
    assert (tmp_path / "steps" / input_of_needed).is_dir()


def test_nothing_goes_while_a_record_cannot_be_read(tmp_path: Path) -> None:
    """What a damaged record needs is not known."""
    record_path(tmp_path, "0" * 16).parent.mkdir(parents=True)
    record_path(tmp_path, "0" * 16).write_text("{")
    with Workspace(tmp_path) as opened, pytest.raises(WorkspaceError, match="cannot be read"):
        find_garbage(opened, keep=1)


def test_the_newest_run_is_always_kept(tmp_path: Path) -> None:
    """Keeping none is refused."""
    with Workspace(tmp_path) as opened, pytest.raises(WorkspaceError, match="keep=0 is out of range"):
        find_garbage(opened, keep=0)
