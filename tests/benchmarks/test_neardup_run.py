"""Rules of running and measuring the command in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from benchmarks.neardup_run import SAMPLE_INTERVAL_S, ResourceUse, run_neardup

pytest.importorskip("psutil", reason="process trees are measured with psutil")

MIB = 1 << 20
CHILD = f"import time; held = bytearray(b'x' * {96 * MIB}); print('held', flush=True); time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


def test_the_peak_counts_what_a_process_and_its_children_hold() -> None:
    """Memory that only a grandchild holds is in the peak."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        memory = ResourceUse(parent.pid)
        memory.start()
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "held\n"
            memory.join(timeout=3 * SAMPLE_INTERVAL_S)
        finally:
            memory.stop()
            for process in memory.processes():
                process.kill()
    assert 96 * MIB < memory.peak_bytes < 300 * MIB
    assert memory.kind in {"pss", "rss"}
    assert 0.0 < memory.cpu_s < 60.0


def test_a_failed_run_is_an_error_that_names_the_arguments_and_the_exit_code() -> None:
    """A benchmark never goes on with the output of a command that failed."""
    with pytest.raises(
        click.ClickException, match="python -m cli dedup --no-such-option --json ended with exit code 2"
    ):
        run_neardup(["dedup", "--no-such-option"])
