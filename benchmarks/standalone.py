"""A real standalone Spark cluster on this machine: a master and workers, processes of their own on free ports."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import pyspark

_DEPLOY: Final = "org.apache.spark.deploy"
_ADDRESS: Final = "127.0.0.1"
_START_S: Final = 300.0
_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class StandaloneCluster:
    """`master` is what `--master` takes; `workers` are the workers' own processes, the parents of the executors."""

    master: str
    workers: tuple[psutil.Process, ...]

    def executors(self) -> list[psutil.Process]:
        """The JVMs of all running executors."""
        return [executor for worker in self.workers for executor in _children(worker)]

    def python_workers(self) -> list[psutil.Process]:
        """The Python processes that run tasks, forked by one daemon in each executor."""
        daemons = [daemon for executor in self.executors() for daemon in _children(executor)]
        return [worker for daemon in daemons for worker in _children(daemon)]


@contextmanager
def standalone_cluster(
    folder: Path,
    *,
    num_workers: int = 2,
    cores: int = 1,
    memory: str = "2g",
    environment: Mapping[str, str] | None = None,
) -> Iterator[StandaloneCluster]:
    """Start a cluster that keeps its logs and work in `folder`, and end all of its processes after the block.

    Each worker offers `cores` and `memory`; daemons and executors run in `environment`, this process's by default.
    """
    started_in = {
        **(os.environ if environment is None else environment),
        "SPARK_HOME": str(Path(pyspark.__file__).parent),
        "SPARK_LOCAL_IP": _ADDRESS,
    }
    with ExitStack() as stack:
        log = folder / "master.log"
        _start(stack, log, ("master.Master", "--host", _ADDRESS, "--port", "0", "--webui-port", "0"), started_in)
        master = _awaited(log, "Starting Spark master at ")[0].split()[-1]
        workers = []
        for number in range(num_workers):
            where = ("--host", _ADDRESS, "--webui-port", "0", "--work-dir", str(folder / f"worker-{number}"))
            offers = ("--cores", str(cores), "--memory", memory)
            arguments = ("worker.Worker", *where, *offers, master)
            workers.append(_start(stack, folder / f"worker-{number}.log", arguments, started_in))
        _awaited(log, "Registering worker ", times=num_workers)
        yield StandaloneCluster(master, tuple(workers))


def _start(stack: ExitStack, log: Path, arguments: tuple[str, ...], environment: Mapping[str, str]) -> psutil.Process:
    daemon, *options = arguments
    spark_class = Path(environment["SPARK_HOME"], "bin", "spark-class")
    with log.open("wb") as file:
        process = psutil.Popen(
            [str(spark_class), f"{_DEPLOY}.{daemon}", *options], stdout=file, stderr=file, env=dict(environment)
        )
    stack.callback(kill_tree, process)
    return process


def kill_tree(process: psutil.Process) -> None:
    """SIGKILL a process and all that it started, and wait for their end."""
    try:
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        tree = [process]
    for one in tree:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(tree, timeout=30)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = process.children()
    except psutil.NoSuchProcess:
        return []
    return children


def _awaited(log: Path, words: str, *, times: int = 1) -> list[str]:
    """The first lines of a log with these words, once there are so many."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        lines = [line for line in log.read_text("utf-8", "replace").splitlines() if words in line]
        if len(lines) >= times:
            return lines
        time.sleep(_POLL_S)
    raise subprocess.TimeoutExpired(f"{words!r} in {log}", _START_S)
