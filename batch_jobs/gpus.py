"""GPUs by Spark's resource scheduling: `embed` alone asks for them, one task each.

Executors that have a GPU for good (`spark.executor.resource.gpu.amount=1`) embed one task at a time and run all other
steps on every core. With dynamic allocation and `spark.neardup.embed.gpus=1` executors with a GPU are started for
`embed` and given back after it, while the others have none. Without either, embedding runs on the cores.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batch_jobs.errors import SessionError
from batch_jobs.session import cores_per_task

if TYPE_CHECKING:
    from pyspark import SparkConf
    from pyspark.resource import ResourceProfile
    from pyspark.sql import SparkSession

GPU: Final = "gpu"
DISCOVERY_SCRIPT: Final = Path(__file__).with_name("discover_gpus.sh")
HELD_GPUS: Final = "spark.executor.resource.gpu.amount"
EMBED_GPUS: Final = "spark.neardup.embed.gpus"
EMBED_SCRIPT: Final = "spark.neardup.embed.gpu.discoveryScript"
EMBED_VENDOR: Final = "spark.neardup.embed.gpu.vendor"


@dataclass(frozen=True, slots=True)
class EmbedResources:
    """What a task of `embed` may use: cores, None for all, and the stage's profile where it asks for a GPU."""

    num_cores: int | None
    profile: ResourceProfile | None = None


def embed_resources(spark: SparkSession) -> EmbedResources:
    """What the session's settings give to `embed`; raises SessionError on settings that cannot work."""
    conf = spark.sparkContext.getConf()
    held, wanted = _count(conf, HELD_GPUS), _count(conf, EMBED_GPUS)
    if not held and not wanted:
        return EmbedResources(cores_per_task(spark))
    if wanted and conf.get("spark.dynamicAllocation.enabled", "false") != "true":
        raise SessionError(
            f"{EMBED_GPUS}={wanted} starts executors for one step, which needs spark.dynamicAllocation.enabled=true; "
            f"set that, or {HELD_GPUS}=1 for executors that keep their GPU"
        )
    num_cores = int(conf.get("spark.executor.cores", "1"))
    return EmbedResources(num_cores, _profile(conf, num_cores, starts_executors=bool(wanted)))


def _count(conf: SparkConf, key: str) -> int:
    given = conf.get(key, "0")
    if given not in ("0", "1"):
        # A Python worker keeps the GPU it began with, so an executor of several could give one to two workers.
        raise SessionError(
            f"{key}={given} is out of range 0..1; start one executor a GPU, with its share of the machine's cores"
        )
    return int(given)


def _profile(conf: SparkConf, num_cores: int, *, starts_executors: bool) -> ResourceProfile:
    from pyspark.resource import ExecutorResourceRequests, ResourceProfileBuilder, TaskResourceRequests

    builder = ResourceProfileBuilder().require(TaskResourceRequests().cpus(num_cores).resource(GPU, 1))
    if starts_executors:
        executor = ExecutorResourceRequests().cores(num_cores).memory(conf.get("spark.executor.memory", "1g"))
        overhead = conf.get("spark.executor.memoryOverhead", None)
        if overhead is not None:
            executor = executor.memoryOverhead(overhead)
        script = conf.get(EMBED_SCRIPT, str(DISCOVERY_SCRIPT))
        builder = builder.require(executor.resource(GPU, 1, script, conf.get(EMBED_VENDOR, "nvidia.com")))
    return builder.build


@contextmanager
def own_workers(spark: SparkSession, resources: EmbedResources) -> Iterator[None]:
    """Plan a GPU stage in the block: its tasks get Python workers that no other stage uses.

    Spark hands idle workers out in turn, so without this every worker of an executor would end up with a network of its
    own in the memory of one GPU.
    """
    environment = spark.sparkContext.environment
    before = dict(environment)
    if resources.profile is not None:
        environment["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    try:
        yield
    finally:
        environment.clear()
        environment.update(before)


def use_assigned_gpu() -> None:
    """In a task: see only the GPU that Spark assigned. Must run before TensorFlow is imported, which looks once."""
    if "pyspark" not in sys.modules:
        return
    from pyspark import TaskContext

    context = TaskContext.get()
    assigned = context.resources().get(GPU) if context is not None else None
    if assigned is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(assigned.addresses)
