"""The Dockerfile fits the repository, its lock files and the manifests; the Spark entry point fits Spark."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pyspark
import pytest

from tests.k8s.kustomize import K8S

REPOSITORY = K8S.parent
ENTRYPOINT = K8S / "spark-entrypoint"
EXECUTOR = "org/apache/spark/scheduler/cluster/k8s/KubernetesExecutorBackend"
SET_BY_SPARK = {
    "SPARK_DRIVER_BIND_ADDRESS": "10.0.0.1",
    "SPARK_JAVA_OPT_0": "-Dspark.a=b c",
    "SPARK_JAVA_OPT_1": "-Dspark.d=e",
    "SPARK_EXECUTOR_MEMORY": "2048m",
    "SPARK_DRIVER_URL": "spark://driver:7078",
    "SPARK_EXECUTOR_ID": "1",
    "SPARK_EXECUTOR_CORES": "4",
    "SPARK_APPLICATION_ID": "spark-1",
    "SPARK_EXECUTOR_POD_IP": "10.0.0.2",
    "SPARK_RESOURCE_PROFILE_ID": "0",
    "SPARK_EXECUTOR_POD_NAME": "executor-1",
}


def stages() -> dict[str, list[list[str]]]:
    """The instructions of each stage by its name, split into words."""
    text = re.sub(r"^#.*\n", "", (K8S / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[list[str]]] = {"": []}
    stage = ""
    for words in (line.split() for line in text.splitlines() if line):
        if words[0] == "FROM":
            stage = words[-1]
        found.setdefault(stage, []).append(words)
    return found


def copied() -> set[str]:
    """Every path of the repository that a stage copies."""
    instructions = [words for stage in stages().values() for words in stage if words[0] == "COPY"]
    return {
        path
        for words in instructions
        if not any(word.startswith("--from") for word in words)
        for path in [word for word in words[1:-1] if not word.startswith("--")]
    }


@pytest.mark.parametrize("target", ["service", "spark"])
def test_images_run_as_the_user_of_the_pods(target: str) -> None:
    """The last user of each image is the numeric one of the manifests."""
    users = [words[1] for words in stages()[target] if words[0] == "USER"]
    assert users[-1] == "10001:10001"


def test_what_is_copied_is_there() -> None:
    """Every copied path exists, and the ignore file, which starts with nothing, lets it pass."""
    ignored = (K8S / "Dockerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    kept = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    for path in copied():
        assert (REPOSITORY / path).exists(), path
        assert [line for line in kept if fnmatch(path, line)] != [], path


def test_every_package_is_copied() -> None:
    """What setuptools packs is what the image has."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packages = {pattern.removesuffix("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= copied()


def test_packages_come_from_the_lock_files() -> None:
    """Both locks are at hand, hashes are required, and our own package brings nothing along."""
    assert {"requirements.lock", "requirements-gpu.lock"} <= copied()
    installs = [" ".join(words) for words in stages()["packages"] if "uv pip install" in " ".join(words)]
    assert len(installs) == 2
    assert "--require-hashes" in installs[0]
    assert "--no-deps --no-build-isolation" in installs[1]


def test_python_has_one_version() -> None:
    """Paths into the environment, in the image and in the manifests, name the Python of the base image."""
    ((_, base),) = stages()[""]
    version = re.search(r"python:(\d+\.\d+)\.", base)
    assert version is not None
    named = {
        found
        for path in (K8S / "Dockerfile", K8S / "base" / "nightly-clusters.yaml")
        for found in re.findall(r"/lib/python(\d+\.\d+)/", path.read_text())
    }
    assert named == {version[1]}


def run(*arguments: str, folder: Path) -> list[str]:
    """The words that the entry point runs `tini` with."""
    tini = folder / "tini"
    tini.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    tini.chmod(0o755)
    env = {**SET_BY_SPARK, "PATH": f"{folder}:{os.environ['PATH']}", "SPARK_HOME": "/spark"}
    done = subprocess.run([ENTRYPOINT, *arguments], capture_output=True, text=True, env=env, check=True)
    return done.stdout.splitlines()


def test_the_driver_is_spark_submit(tmp_path: Path) -> None:
    """In client mode, bound to the pod's address, with what Spark asked for after it."""
    assert run("driver", "--properties-file", "/conf", "a b", folder=tmp_path) == [
        *("-s", "--", "/spark/bin/spark-submit", "--conf", "spark.driver.bindAddress=10.0.0.1"),
        *("--deploy-mode", "client", "--properties-file", "/conf", "a b"),
    ]


def test_the_executor_is_the_one_of_the_installed_spark(tmp_path: Path) -> None:
    """Its class is in pyspark's jars and knows every option; Java's options keep their blanks."""
    words = run("executor", folder=tmp_path)
    assert words[:8] == [
        *("-s", "--", "java", "-Dspark.a=b c", "-Dspark.d=e", "-Xms2048m", "-Xmx2048m", "-cp"),
    ]
    (jar,) = (Path(pyspark.__file__).parent / "jars").glob("spark-kubernetes_*.jar")
    with zipfile.ZipFile(jar) as classes:
        code = classes.read(f"{EXECUTOR}$.class")
    assert words[9] == EXECUTOR.replace("/", ".")
    options = words[10::2]
    assert len(options) == 7
    assert [option for option in options if option.encode() not in code] == []


def test_anything_else_runs_as_it_is(tmp_path: Path) -> None:
    """The image can be looked into."""
    assert run("echo", "hello", folder=tmp_path) == ["hello"]
