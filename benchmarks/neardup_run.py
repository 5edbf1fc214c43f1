"""One run of the real `neardup` command in a process of its own, with its time and the memory of its process tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

SAMPLE_INTERVAL_S = 0.25
PEAK_GROWTH = 1.02
"""How much more the processes hold than ever before when it is worth to count what they share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeardupRun:
    """What `--json` printed, and what it cost. `memory` is `pss` (shared pages split), or `rss` (counted twice).

    `cpu_s` are the seconds that all its processes computed, which a busy machine changes far less than `wall_s`.
    """

    summary: dict[str, Any]
    wall_s: float
    cpu_s: float
    peak_mb: float
    memory: str

    @property
    def stage_s(self) -> dict[str, float]:
        """Seconds of each stage."""
        return {stage: float(seconds) for stage, seconds in self.summary["seconds"].items()}

    def output(self, name: str) -> Path:
        """The path of one of the outputs, such as `clusters_csv`."""
        return Path(self.summary["outputs"][name])


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredProcess:
    """What a process printed, and what it and its descendants cost."""

    printed: str
    wall_s: float
    cpu_s: float
    peak_mb: float
    memory: str


def run_neardup(arguments: Sequence[str], *, environment: Mapping[str, str] | None = None) -> NeardupRun:
    """`neardup ARGUMENTS --json`; its progress goes to our stderr. Raises click.ClickException when it fails."""
    ran = run_measured(["-m", "cli", *arguments, "--json"], environment=environment)
    return NeardupRun(
        summary=json.loads(ran.printed), wall_s=ran.wall_s, cpu_s=ran.cpu_s, peak_mb=ran.peak_mb, memory=ran.memory
    )


def run_measured(arguments: Sequence[str], *, environment: Mapping[str, str] | None = None) -> MeasuredProcess:
    """Python with `arguments`, in our environment plus `environment`; raises click.ClickException when it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )
    memory = ResourceUse(process.pid)
    memory.start()
    try:
        printed, _ = process.communicate()
    finally:
        process.kill()
        memory.stop()
    wall_s = time.perf_counter() - started
    if process.returncode:
        raise click.ClickException(f"python {' '.join(arguments)} ended with exit code {process.returncode}; see above")
    return MeasuredProcess(
        printed=printed, wall_s=wall_s, cpu_s=memory.cpu_s, peak_mb=memory.peak_bytes / 1e6, memory=memory.kind
    )


class ResourceUse(threading.Thread):
    """Samples the memory and the CPU time of a process and its descendants: Spark's JVM and Python workers included."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self.kind, self._measure = _memory_measure()
        self._pid = pid
        self._peak_rss = 0
        self._cpu_s: dict[int, float] = {}
        self._stopped = threading.Event()

    def run(self) -> None:
        """Sample until `stop`."""
        while not self._stopped.wait(SAMPLE_INTERVAL_S):
            processes = self.processes()
            self._sample_memory(processes)
            self._cpu_s |= {process.pid: self._cpu_of(process) for process in processes}

    @property
    def cpu_s(self) -> float:
        """Seconds computed by all processes that were seen, up to their last sample."""
        return sum(self._cpu_s.values())

    def stop(self) -> None:
        """End the sampling; returns when it has ended."""
        self._stopped.set()
        self.join()

    def processes(self) -> list[Any]:
        """The process and its descendants, as far as they are alive."""
        import psutil

        try:
            root = psutil.Process(self._pid)
            return [root, *root.children(recursive=True)]
        except psutil.Error:
            return []

    def _sample_memory(self, processes: Sequence[Any]) -> None:
        # The kernel walks every page of a process to tell its PSS, at the cost of what is measured.
        rss = sum(self._bytes_of(process, _rss) for process in processes)
        if rss > self._peak_rss * PEAK_GROWTH:
            self._peak_rss = rss
            self.peak_bytes = max(self.peak_bytes, sum(self._bytes_of(process, self._measure) for process in processes))

    def _cpu_of(self, process: Any) -> float:
        import psutil

        try:
            times = process.cpu_times()
        except psutil.Error:
            return self._cpu_s.get(process.pid, 0.0)
        return float(times.user + times.system)

    def _bytes_of(self, process: Any, measure: Callable[[Any], int]) -> int:
        import psutil

        try:
            return measure(process)
        except psutil.Error:
            return 0


def _memory_measure() -> tuple[str, Callable[[Any], int]]:
    """PSS where the system tells it (Linux), RSS elsewhere."""
    import psutil

    if hasattr(psutil.Process().memory_full_info(), "pss"):
        return "pss", lambda process: int(process.memory_full_info().pss)
    return "rss", _rss


def _rss(process: Any) -> int:
    return int(process.memory_info().rss)
