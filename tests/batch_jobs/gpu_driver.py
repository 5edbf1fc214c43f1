"""A driver for `spark-submit`: what the tasks of `embed` are given on this cluster, then the pipeline of a folder.

    spark-submit gpu_driver.py SOURCE WORKSPACE EMBEDDER

Prints one JSON object: `default` and `embed` list the tasks of two stages, `clusters` the path of the table.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from pyspark.sql import SparkSession

from batch_jobs.gpus import embed_resources, own_workers, use_assigned_gpu
from batch_jobs.pipeline import run_pipeline
from batch_jobs.session import spark_session
from batch_jobs.settings import RunSettings

NUM_TASKS = 6
TASK_S = 0.5


def probe(batches: Iterator[pa.RecordBatch], *, with_gpu: bool) -> Iterator[pa.RecordBatch]:
    """One row of JSON: what this task was given, when it ran, and in which process."""
    from pyspark import TaskContext

    context = TaskContext.get()
    assert context is not None
    addresses = [address for held in context.resources().values() for address in held.addresses]
    tensorflow_came_before = "tensorflow" in sys.modules
    if with_gpu:
        use_assigned_gpu()
    for _ in batches:
        pass
    started = time.time()
    time.sleep(TASK_S)
    seen = {
        "addresses": addresses,
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "tensorflow_came_before": tensorflow_came_before,
        "pid": os.getpid(),
        "executor": psutil.Process(os.getppid()).ppid(),
        "started": started,
        "ended": time.time(),
    }
    yield pa.RecordBatch.from_pylist([{"seen": json.dumps(seen)}])


def probed(spark: SparkSession, *, with_gpu: bool) -> list[dict[str, Any]]:
    resources = embed_resources(spark)
    with own_workers(spark, resources):
        tasks = spark.range(NUM_TASKS, numPartitions=NUM_TASKS).mapInArrow(
            partial(probe, with_gpu=with_gpu), "seen string", profile=resources.profile if with_gpu else None
        )
    return [json.loads(row["seen"]) for row in tasks.collect()]


def main() -> None:
    source, workspace, embedder = sys.argv[1:]
    with spark_session(master=None, log=Path(workspace, "spark.log")) as spark:
        found = {"default": probed(spark, with_gpu=False), "embed": probed(spark, with_gpu=True)}
        settings = RunSettings(
            source=source, workspace=Path(workspace), embedder=embedder, dtype="float32", num_partitions=4
        )
        run = run_pipeline(settings)
    sys.stdout.write(json.dumps({**found, "clusters": run.steps["cluster"].table("clusters")}) + "\n")


if __name__ == "__main__":
    main()
