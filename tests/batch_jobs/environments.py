"""Python environments of a cluster's machines: one with the product installed, and one packed to be shipped."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import venv_pack

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("lsh", "embed", "batch_jobs", "service", "cli")
BUILD_WHEEL = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def installed_environment(folder: Path) -> Path:
    """The Python of an environment that has this source tree and the test environment's libraries."""
    return _environment(folder, REPOSITORY)


def packed_environment(folder: Path) -> Path:
    """What `venv-pack` makes of an environment into which our wheel is installed, as `.tar.gz`.

    Libraries stay where the test environment has them: packing TensorFlow would take minutes.
    """
    python = _environment(folder / "environment")
    (wheel,) = _built_wheel(folder).glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:  # what pip does with a pure wheel, without pip's network
        archive.extractall(_site_packages(python))
    packed = folder / "environment.tar.gz"
    venv_pack.pack(prefix=str(python.parents[1]), output=str(packed))
    return packed


def _environment(folder: Path, *more_paths: Path) -> Path:
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    # A path that is added so does not run its own .pth files: the editable install beside the libraries stays out.
    paths = [str(path) for path in (sysconfig.get_path("purelib"), *more_paths)]
    (_site_packages(python) / "paths.pth").write_text(f"import sys; sys.path += {paths}\n")
    return python


def _site_packages(python: Path) -> Path:
    (folder,) = python.parents[1].glob("lib/python3*/site-packages")
    return folder


def _built_wheel(folder: Path) -> Path:
    source, wheels = folder / "source", folder / "wheels"
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(REPOSITORY / file, source / file)
    wheels.mkdir()
    subprocess.run([sys.executable, "-c", BUILD_WHEEL, wheels], cwd=source, check=True, capture_output=True)
    return wheels
