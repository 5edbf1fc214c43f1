"""Rules of run records: written as a run goes on, never again once it is finished, found by their first digits."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batch_jobs.errors import BatchError, WorkspaceError
from batch_jobs.pipeline import STEPS
from batch_jobs.run_records import (
    RunRecord,
    find_record,
    finished_runs,
    is_running,
    list_records,
    read_record,
    record_path,
    remove_record,
    settings_of,
)
from batch_jobs.settings import RunSettings
from batch_jobs.workspace import Workspace
from tests.night import clusters_of, pets, run_night


def test_a_finished_run_is_recorded(tmp_path: Path) -> None:
    """The record names each step by its key, with rows, bytes and what it counted, and the settings."""
    record = run_night(tmp_path, pets())
    assert record.is_finished
    assert [step.step for step in record.steps] == list(STEPS)
    assert record.stat("cluster", "num_clusters") == record.results["clusters"] == 2
    assert dict(record.steps[4].num_rows) == {"edges": 9}
    assert all(size > 0 for step in record.steps for size in step.size_bytes.values())
    assert settings_of(record).min_score == 0.8
    assert RunRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_a_stopped_run_says_how_far_it_came(tmp_path: Path) -> None:
    """The record of a run that was stopped names the steps that are committed, and what comes next is said."""
    record = run_night(tmp_path, pets(), until="terms")
    assert not record.is_finished
    assert [step.step for step in record.steps] == ["catalogue", "embed", "terms"]
    with pytest.raises(WorkspaceError, match=rf"stopped before the step cluster; `neardup runs resume {record.run_id}"):
        record.table(tmp_path, "cluster", "clusters")


def test_the_same_night_again_is_the_same_run(tmp_path: Path) -> None:
    """A finished record is not written again; a stopped one goes on under its own name."""
    stopped = run_night(tmp_path, pets(), until="select")
    finished = run_night(tmp_path, pets())
    content = record_path(tmp_path, finished.run_id).read_bytes()
    run_night(tmp_path, pets())
    assert stopped.run_id == finished.run_id
    assert record_path(tmp_path, finished.run_id).read_bytes() == content
    assert [step.reused for step in finished.steps] == [True] * 5 + [False]


def test_a_run_knows_the_run_before(tmp_path: Path) -> None:
    """The parent is the newest finished run; stopped ones are no parents."""
    first = run_night(tmp_path, pets())
    run_night(tmp_path, pets(), min_score=0.7, until="terms")
    third = run_night(tmp_path, pets(), min_score=0.9)
    assert third.parent == first.run_id
    assert [one.run_id for one in finished_runs(tmp_path)] == [third.run_id, first.run_id]
    assert [one.run_id for one in finished_runs(tmp_path, before=third)] == [first.run_id]


def test_runs_are_found_by_their_first_digits(tmp_path: Path) -> None:
    """Four digits are enough if they are one run's; without any the newest finished run is meant."""
    record = run_night(tmp_path, pets())
    assert find_record(tmp_path, None) == find_record(tmp_path, record.run_id[:4]) == record
    for unknown in ("ffff" if record.run_id[:4] != "ffff" else "eeee", record.run_id[:3], "../x"):
        with pytest.raises(WorkspaceError, match="neardup runs list"):
            find_record(tmp_path, unknown)


def test_a_workspace_without_runs_says_what_makes_one(tmp_path: Path) -> None:
    """No run is an error that names the next step."""
    with pytest.raises(WorkspaceError, match="`neardup dedup` makes one"):
        find_record(tmp_path, None)


@pytest.mark.parametrize("content", ["{", "{}", '{"record_version": 9}', '{"record_version": 1, "steps": []}'])
def test_a_damaged_record_is_told_apart(tmp_path: Path, content: str) -> None:
    """A record that cannot be read is listed with its problem and hides no other run."""
    record = run_night(tmp_path, pets())
    damaged = record_path(tmp_path, "0" * 16)
    damaged.parent.mkdir()
    damaged.write_text(content)
    records, problems = list_records(tmp_path)
    assert [one.run_id for one in records] == [record.run_id]
    assert [one.run_id for one in problems] == ["0" * 16]
    assert str(damaged) in problems[0].problem


def test_a_run_under_way_is_told_from_one_that_was_stopped(tmp_path: Path) -> None:
    """Only the run that the holder of the lease works on is running."""
    record = run_night(tmp_path, pets(), until="terms")
    assert not is_running(tmp_path, record)
    with Workspace(tmp_path) as workspace:
        assert not is_running(tmp_path, record)
        workspace.lease.describe(f"run {record.run_id} of given.npz")
        assert is_running(tmp_path, record)


def test_a_removed_run_is_gone_as_a_whole(tmp_path: Path) -> None:
    """Its folder vanishes in one step."""
    record = run_night(tmp_path, pets())
    with Workspace(tmp_path) as workspace:
        remove_record(workspace, record.run_id)
    assert list_records(tmp_path) == ([], [])


def test_settings_survive_being_written(tmp_path: Path) -> None:
    """Settings read back are the settings, and those of another version are refused."""
    settings = RunSettings(source="a", workspace=tmp_path, uri_root=tmp_path, min_score=0.5, prediction={"recall": 1.0})
    assert RunSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    with pytest.raises((KeyError, TypeError, BatchError)):
        RunSettings.from_json({**settings.to_json(), "colour": 1})


def test_readers_see_whole_runs_only(tmp_path: Path) -> None:
    """While a run's last table is written, readers see the run before it, whole; going back is reading it again."""
    first = run_night(tmp_path, pets())
    before = clusters_of(tmp_path, first)
    seen = []

    class StoppedError(Exception):
        pass

    write = pq.write_table

    def look_and_die(table: object, path: object, **options: object) -> None:
        write(table, path, **options)
        if "cluster-" in str(path):
            newest = find_record(tmp_path, None)
            seen.append((newest.run_id, clusters_of(tmp_path, newest)))
            raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pq, "write_table", look_and_die)
        with pytest.raises(StoppedError):
            run_night(tmp_path, pets(), min_score=0.99999)
    assert seen == [(first.run_id, before)]
    assert find_record(tmp_path, None) == first
    second = run_night(tmp_path, pets(), min_score=0.99999)
    assert clusters_of(tmp_path, find_record(tmp_path, None)) == clusters_of(tmp_path, second) == []
    assert clusters_of(tmp_path, read_record(tmp_path, first.run_id)) == before
