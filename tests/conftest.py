"""Fixtures that every test may use: one Spark session for all, a folder of photos, a small seeded embedder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.photos import write_photo_folder

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

os.environ["PYTHONWARNINGS"] = "default"  # what the tests' own processes print is not an error of the test


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the kernels go first: they compile what Spark's workers then load, and they fail soonest."""
    items.sort(key=lambda item: "tests/lsh/" not in item.path.as_posix())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """TensorFlow keeps the threads that it was first given, so whichever test comes first gives it one."""
    if item.get_closest_marker("tensorflow"):
        from embed.keras_network import limit_threads

        limit_threads(1)


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The session that all Spark tests share: it takes five seconds to start."""
    from batch_jobs.session import spark_session

    with spark_session(master="local[2]", log=tmp_path_factory.mktemp("spark") / "spark.log") as session:
        yield session


@pytest.fixture(scope="session")
def tiny_embedder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shipped embedder for small images, so that tests wait little for it and never for TensorFlow."""
    from embed.embedder_dir import SPEC_FILE, describe_embedder

    folder = tmp_path_factory.mktemp("embedder") / "tiny"
    shutil.copytree(describe_embedder().directory, folder)
    fields = json.loads((folder / SPEC_FILE).read_text()) | {"size": 32, "calibration": None, "min_score": 0.9}
    (folder / SPEC_FILE).write_text(json.dumps(fields))
    (folder / "lineage.json").unlink()
    return str(folder)


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """A small folder of synthetic photos, copies and files that are no images."""
    return write_photo_folder(tmp_path / "photos")


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of an MLflow store in a file of the tests' own, which its first user makes in some seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'deep' / 'mlflow.db'}"
