"""Compiled kernels belong to the sources they were compiled from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import lsh

PROGRAM = """
import numpy as np
from lsh.codes import quantize
import lsh, numba
quantize(np.eye(2, dtype=np.float32))
print(lsh.__file__)
print(numba.core.config.CACHE_DIR)
"""


def kernels_folder(sources: Path, cache: Path) -> Path:
    """Where a process with these sources keeps a kernel that it has just used."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(sources)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, cwd=sources, capture_output=True, text=True, check=True
    )
    package, folder = done.stdout.split()
    assert Path(package).is_relative_to(sources)
    return Path(folder)


def test_a_change_in_any_source_compiles_every_kernel_anew(tmp_path: Path) -> None:
    """The folder of kernels changes with a file that the used kernel does not even name."""
    shutil.copytree(Path(lsh.__file__).parent, tmp_path / "a" / "lsh", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with (tmp_path / "b" / "lsh" / "bits.py").open("a") as file:
        file.write("\n# changed\n")
    first, second = (kernels_folder(tmp_path / name, tmp_path / "cache") for name in ("a", "b"))
    assert first != second
    assert first.parent == second.parent == tmp_path / "cache"
    assert list(first.rglob("*.nbc"))
