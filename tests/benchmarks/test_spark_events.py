"""Rules of reading Spark's event log."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.spark_events import keep_events, shuffle_bytes


def test_shuffled_bytes_are_summed_over_tasks_and_applications(tmp_path: Path) -> None:
    """Only finished tasks count, those without metrics as nothing."""
    environment = keep_events(tmp_path)
    task = {"Event": "SparkListenerTaskEnd", "Task Metrics": {"Shuffle Write Metrics": {"Shuffle Bytes Written": 7}}}
    events = [task, {"Event": "SparkListenerJobEnd"}, {"Event": "SparkListenerTaskEnd", "Task Metrics": None}]
    for name in ("app-1", "app-2"):
        lines = [json.dumps(event, separators=(",", ":")) + "\n" for event in events]
        (tmp_path / "events" / name).write_text("".join(lines), encoding="utf-8")

    assert environment == {"SPARK_CONF_DIR": str(tmp_path)}
    assert "spark.eventLog.enabled true" in (tmp_path / "spark-defaults.conf").read_text(encoding="utf-8")
    assert shuffle_bytes(tmp_path) == 14
