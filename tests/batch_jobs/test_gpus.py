"""Tests of how `embed` asks for GPUs; what a cluster then does is in `test_cluster.py`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from batch_jobs.embed_images import embed_task
from batch_jobs.errors import SessionError
from batch_jobs.gpus import DISCOVERY_SCRIPT, EMBED_GPUS, HELD_GPUS, EmbedResources, embed_resources, own_workers
from batch_jobs.session import cores_per_task
from embed.decoding import ImageLimits

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.mark.spark
def test_without_gpus_embedding_runs_on_the_cores(spark: SparkSession) -> None:
    """No profile, the task's share of the cores, and workers as every other stage has."""
    resources = embed_resources(spark)
    assert resources.profile is None
    assert resources.num_cores == cores_per_task(spark)
    before = dict(spark.sparkContext.environment)
    with own_workers(spark, resources):
        assert spark.sparkContext.environment == before


@pytest.mark.spark
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (HELD_GPUS, "2", r"gpu\.amount=2 is out of range 0\.\.1; start one executor a GPU"),
        (EMBED_GPUS, "many", r"gpus=many is out of range 0\.\.1"),
        (EMBED_GPUS, "1", r"needs spark\.dynamicAllocation\.enabled=true; set that, or spark\.executor"),
    ],
)
def test_settings_that_cannot_work_are_named(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, key: str, value: str, said: str
) -> None:
    """The message has the setting, its value, and what to set instead."""
    conf = spark.sparkContext.getConf().set(key, value)
    monkeypatch.setattr(spark.sparkContext, "_conf", conf)
    with pytest.raises(SessionError, match=said):
        embed_resources(spark)


def test_a_gpu_is_not_left_idle(tmp_path: Path) -> None:
    """A network for CPUs in a session that gives GPUs to `embed` is refused, with what to say instead."""
    with_gpu = EmbedResources(4, profile=object())  # type: ignore[arg-type]
    with pytest.raises(SessionError, match=r"dtype=int8 runs on CPUs.*give --dtype bfloat16"):
        embed_task(embedder="vgg_copy", dtype="int8", resources=with_gpu, root=tmp_path, limits=ImageLimits())


def test_the_discovery_script_lists_what_nvidia_smi_lists(tmp_path: Path) -> None:
    """One JSON object in the form that Spark reads; without nvidia-smi it fails, and Spark says so."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    tool.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run([DISCOVERY_SCRIPT], capture_output=True, text=True, check=True, env={"PATH": path})
    assert json.loads(done.stdout) == {"name": "gpu", "addresses": ["0", "1"]}
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert subprocess.run([DISCOVERY_SCRIPT], check=False, env={"PATH": path}).returncode != 0
