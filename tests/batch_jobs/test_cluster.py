"""Tests of the pipeline on a standalone cluster of real processes: the tables of one machine, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from batch_jobs.pipeline import run_pipeline
from batch_jobs.settings import RunSettings
from benchmarks.kills import Victim, disturb, finish, start_dedup, table_digests
from benchmarks.standalone import StandaloneCluster, standalone_cluster
from cli.exit_codes import ExitCode
from tests.batch_jobs.environments import REPOSITORY, installed_environment, packed_environment
from tests.batch_jobs.test_pipeline import families, write_embeddings
from tests.photos import write_photo_folder

if TYPE_CHECKING:
    import psutil
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.timeout(1200)]

MIN_SCORE = 0.8
# Each worker offers one "GPU", named after the worker's process; its real name would be an index.
DISCOVERY = """#!/bin/sh
printf '{"name": "gpu", "addresses": ["%s"]}' "$PPID"
"""


@dataclass(frozen=True, slots=True)
class Engines:
    """The cluster, and the Python that is installed on its machines."""

    cluster: StandaloneCluster
    python: Path

    def start(self, source: Path, workspace: Path, *, master: str | None = None) -> psutil.Popen:
        return start_dedup(
            source,
            workspace,
            "--min-score",
            str(MIN_SCORE),
            master=master or self.cluster.master,
            environment={"PYSPARK_PYTHON": str(self.python)},
        )

    def submit(self, *arguments: str | Path, **environment: str) -> dict[str, Any]:
        """What a job that `spark-submit` ran on the cluster printed."""
        done = subprocess.run(
            [Path(sys.executable).with_name("spark-submit"), "--master", self.cluster.master, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(REPOSITORY),
                "SPARK_LOCAL_IP": "127.0.0.1",
                "PYSPARK_DRIVER_PYTHON": sys.executable,
                "PYSPARK_PYTHON": str(self.python),
                **environment,
            },
        )
        assert done.returncode == 0, done.stderr[-4000:]
        printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return printed


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """A master and two workers of two cores and one "GPU" each, whose machines have the product installed."""
    folder = tmp_path_factory.mktemp("cluster")
    script = folder / "discover"
    script.write_text(DISCOVERY)
    script.chmod(0o755)
    offers = f"-Dspark.worker.resource.gpu.amount=1 -Dspark.worker.resource.gpu.discoveryScript={script}"
    # What the driver imports is no proof of what the workers have.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with standalone_cluster(folder, cores=2, environment={**environment, "SPARK_WORKER_OPTS": offers}) as cluster:
        yield Engines(cluster, installed_environment(folder / "installed"))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_embeddings(tmp_path_factory.mktemp("given") / "given.npz", families())


@pytest.fixture(scope="module")
def given_tables(spark: SparkSession, given: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tables of `given` on `local[2]`, undisturbed."""
    return tables_of(given, tmp_path_factory.mktemp("undisturbed"), min_score=MIN_SCORE, master="local[2]")


def tables_of(source: Path, workspace: Path, **changes: Any) -> dict[str, str]:
    run_pipeline(RunSettings(source=str(source), workspace=workspace, **changes))
    return table_digests(workspace)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photo_folder(tmp_path_factory.mktemp("images") / "photos")


HELD = {"spark.executor.cores": 2, "spark.executor.resource.gpu.amount": 1}
FOR_EMBED = {
    "spark.neardup.embed.gpus": 1,
    "spark.executor.cores": 1,
    "spark.executor.memory": "512m",
    "spark.dynamicAllocation.enabled": "true",
    "spark.dynamicAllocation.maxExecutors": 2,
}


@pytest.fixture(scope="module", params=[HELD, FOR_EMBED], ids=["held", "for_embed"])
def gpu_job(
    request: pytest.FixtureRequest,
    engines: Engines,
    photos: Path,
    tiny_embedder: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What `gpu_driver.py` printed, its settings and its workspace: executors with a GPU for good, or for `embed`."""
    workspace = tmp_path_factory.mktemp("gpu")
    settings = [word for key, value in request.param.items() for word in ("--conf", f"{key}={value}")]
    driver = Path(__file__).with_name("gpu_driver.py")
    printed = engines.submit(*settings, driver, photos, workspace, tiny_embedder)
    return {**printed, "settings": request.param, "workspace": workspace}


@pytest.fixture(scope="module")
def photo_tables(
    spark: SparkSession, photos: Path, tiny_embedder: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The tables of `photos` on `local[2]`."""
    workspace = tmp_path_factory.mktemp("alone")
    return tables_of(photos, workspace, embedder=tiny_embedder, dtype="float32", num_partitions=4, master="local[2]")


def test_images_on_a_cluster_give_the_tables_of_one_machine(
    gpu_job: dict[str, Any], photo_tables: dict[str, str]
) -> None:
    """Catalogue, embeddings, codes, edges, rejects and clusters hold the same rows on two workers and on `local[2]`."""
    assert table_digests(gpu_job["workspace"]) == photo_tables


def test_a_task_of_embed_sees_the_gpu_it_was_assigned_and_no_other(gpu_job: dict[str, Any]) -> None:
    """Its address is all that TensorFlow, not yet imported, will find; other stages hold no GPU."""
    assert all(len(task["addresses"]) == 1 for task in gpu_job["embed"])
    assert all(task["visible"] == task["addresses"][0] for task in gpu_job["embed"])
    assert not any(task["tensorflow_came_before"] for task in gpu_job["embed"])
    assert not any(task["addresses"] or task["visible"] for task in gpu_job["default"])


def test_a_gpu_runs_one_task_at_a_time_in_one_worker_of_its_own(gpu_job: dict[str, Any]) -> None:
    """Whatever its cores: tasks of one GPU follow each other in one process, which no other stage uses."""
    tasks_of: dict[str, list[dict[str, Any]]] = {}
    for task in gpu_job["embed"]:
        tasks_of.setdefault(task["visible"], []).append(task)
    for tasks in tasks_of.values():
        in_order = sorted(tasks, key=lambda task: float(task["started"]))
        assert all(before["ended"] <= after["started"] for before, after in pairwise(in_order))
        assert len({task["pid"] for task in tasks}) == 1
    assert not {task["pid"] for task in gpu_job["embed"]} & {task["pid"] for task in gpu_job["default"]}


def test_gpus_are_held_by_all_executors_or_only_while_embedding(gpu_job: dict[str, Any]) -> None:
    """With dynamic allocation the executors of other stages are others, which have no GPU."""
    executors = {stage: {task["executor"] for task in gpu_job[stage]} for stage in ("default", "embed")}
    if gpu_job["settings"] is HELD:
        assert executors["embed"] <= executors["default"]
    else:
        assert not executors["embed"] & executors["default"]


def test_a_packed_environment_is_all_that_the_workers_need(
    engines: Engines, given: Path, given_tables: dict[str, str], tmp_path: Path
) -> None:
    """`--archives` of venv-pack brings our wheel to machines that have none, and the tables are the same."""
    engines.submit(
        "--archives",
        f"{packed_environment(tmp_path)}#environment",
        "--conf",
        "spark.executorEnv.NUMBA_CACHE_DIR=kernels",
        REPOSITORY / "batch_jobs" / "pipeline.py",
        "--source",
        given,
        "--workspace",
        tmp_path / "workspace",
        "--min-score",
        str(MIN_SCORE),
        PYSPARK_PYTHON="./environment/bin/python",
    )
    assert table_digests(tmp_path / "workspace") == given_tables


def test_killed_workers_and_executors_are_replaced(
    engines: Engines, given: Path, given_tables: dict[str, str], tmp_path: Path
) -> None:
    """A run goes on when a Python worker and then an executor die in its stages, to the same tables."""
    workspace = tmp_path / "workspace"
    run = engines.start(given, workspace)
    assert disturb(run, engines.cluster, Victim.PYTHON_WORKER, moment_s=0.0, pick=0)
    assert disturb(run, engines.cluster, Victim.EXECUTOR, moment_s=0.0, pick=1)
    assert finish(lambda: engines.start(given, workspace), run) == 0
    assert table_digests(workspace) == given_tables


def test_a_killed_driver_goes_on_where_it_was(
    engines: Engines, given: Path, given_tables: dict[str, str], tmp_path: Path
) -> None:
    """The driver and its JVM die while tasks run; run again, on another engine, the run ends in the same tables."""
    workspace = tmp_path / "workspace"
    run = engines.start(given, workspace)
    while run.poll() is None and not engines.cluster.python_workers():
        time.sleep(0.05)
    assert disturb(run, engines.cluster, Victim.DRIVER, moment_s=0.0, pick=1)
    assert finish(lambda: engines.start(given, workspace, master="local[*]"), run) == 1
    assert table_digests(workspace) == given_tables


def test_a_run_that_no_worker_can_serve_says_what_it_waits_for(given: Path, tmp_path: Path) -> None:
    """Spark would wait in silence; whoever reads the line stops the run or makes room."""
    command = [sys.executable, "-m", "cli", "dedup", str(given), "--workspace", str(tmp_path / "workspace")]
    options = ["--min-score", str(MIN_SCORE), "--master"]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the child of a background job would ignore it
    with (
        standalone_cluster(tmp_path, num_workers=1, memory="512m") as cluster,
        subprocess.Popen([*command, *options, cluster.master], stderr=subprocess.PIPE, text=True) as run,
    ):
        assert run.stderr is not None
        try:
            said = run.stderr.readline()
            run.send_signal(signal.SIGINT)
            code = run.wait(timeout=120)
        finally:
            run.kill()
    assert said.startswith(
        f"terms: {cluster.master} has started no executor for 15 s; one asks for cores=1, memory=1280m"
    )
    assert code == ExitCode.INTERRUPTED
