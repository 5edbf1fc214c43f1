"""What a Spark application moved, from its event log.

Spark is told to keep the log by a `spark-defaults.conf` in a folder that `SPARK_CONF_DIR` names, so that the real
commands are measured as they are.
"""

from __future__ import annotations

import json
from pathlib import Path


def keep_events(folder: Path) -> dict[str, str]:
    """Prepare `folder`, which must exist; returns the environment that makes Spark write its event logs there."""
    (folder / "events").mkdir()
    defaults = {
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": (folder / "events").as_uri(),
        "spark.eventLog.rolling.enabled": "false",
        "spark.eventLog.compress": "false",
    }
    lines = [f"{name} {value}\n" for name, value in defaults.items()]
    (folder / "spark-defaults.conf").write_text("".join(lines), encoding="utf-8")
    return {"SPARK_CONF_DIR": str(folder)}


def shuffle_bytes(folder: Path) -> int:
    """Bytes that all tasks of all applications logged in `folder` wrote for shuffles; 0 where Spark never ran."""
    return sum(_shuffled_by_application(log) for log in (folder / "events").iterdir())


def _shuffled_by_application(log: Path) -> int:
    with log.open(encoding="utf-8") as lines:
        return sum(map(_shuffled_by_task, lines))


def _shuffled_by_task(line: str) -> int:
    if '"SparkListenerTaskEnd"' not in line:
        return 0
    metrics = json.loads(line).get("Task Metrics") or {}
    return int(metrics.get("Shuffle Write Metrics", {}).get("Shuffle Bytes Written", 0))
