"""Tests of `neardup stream`; what a stream does is in `tests/batch_jobs/test_stream_uploads.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cli.exit_codes import ExitCode


def test_a_server_that_cannot_be_reached_has_its_own_exit_code(tmp_path: Path) -> None:
    """One line names the server; Spark was not started and nothing was written."""
    checkpoint = tmp_path / "checkpoint"
    done = subprocess.run(
        [sys.executable, "-m", "cli", "stream", tmp_path, "--server", "localhost:1", "--checkpoint", checkpoint],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.SERVICE
    assert "neardup: error: the call to localhost:1 failed with UNAVAILABLE" in done.stderr
    assert "Traceback" not in done.stderr
    assert not checkpoint.exists()
