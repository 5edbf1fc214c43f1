"""What `python -m cli.compile_kernels` leaves for later commands to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.service.corpora import random_embeddings


def run(*arguments: str, cache: Path) -> None:
    """Run Python with compiled kernels kept in `cache`."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, env=environment)


@pytest.mark.long
def test_later_commands_compile_nothing(tmp_path: Path) -> None:
    """Runs, nights and indexes of other embeddings, of any width, find every kernel that they call."""
    cache, source, workspace = tmp_path / "kernels", tmp_path / "embeddings.npz", tmp_path / "workspace"
    run("-m", "cli.compile_kernels", cache=cache)
    compiled = set(cache.rglob("*.nbc"))
    rows = random_embeddings(3000)
    for num_images in (2000, 3000):
        image_ids = np.array([f"image-{number}" for number in range(num_images)])
        np.savez(source, image_ids=image_ids, embeddings=rows[:num_images], digest=np.array("random"))
        night = ("nightly", str(source), "--workspace", str(workspace), "--min-score", "0.8", "--promote")
        run("-m", "cli", *night, cache=cache)
    run("-m", "cli", "dedup", str(source), "--workspace", str(tmp_path / "other"), "--min-score", "0.8", cache=cache)

    assert compiled
    assert set(cache.rglob("*.nbc")) == compiled
