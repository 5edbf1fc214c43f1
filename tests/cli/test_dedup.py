"""Tests of `neardup` as an operator runs it: another process, its exit status, its two outputs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_jobs.workspace import FORMAT_VERSION
from cli.exit_codes import ExitCode
from tests.photos import write_photo_folder

TIMEOUT_S = 240
ON_SPARK = ("--min-score", "0.8", "--master", "local[*]")


def neardup(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.fixture(scope="module")
def embeddings_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty unit rows: ten families of four."""
    generator = np.random.default_rng(0)
    rows = np.repeat(generator.normal(size=(10, 256)), 4, axis=0) + 0.2 * generator.normal(size=(40, 256))
    embeddings = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    path = tmp_path_factory.mktemp("given") / "given.npz"
    np.savez(
        path, image_ids=np.array([f"i{row:02d}" for row in range(40)]), embeddings=embeddings, digest=np.array("x")
    )
    return path


@pytest.fixture(scope="module")
def undisturbed(embeddings_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of one whole run on given embeddings."""
    workspace = tmp_path_factory.mktemp("undisturbed")
    done = neardup("dedup", embeddings_file, "--workspace", workspace, "--min-score", "0.8", "--json")
    assert done.returncode == ExitCode.OK, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def images_result(tiny_embedder: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of one whole run on a folder of images, with its standard error under `stderr`."""
    root = tmp_path_factory.mktemp("images")
    folder = write_photo_folder(root / "photos")
    done = neardup("dedup", folder, "--workspace", root / "ws", "--embedder", tiny_embedder, "--json")
    assert done.returncode == ExitCode.OK, done.stderr
    return {**json.loads(done.stdout), "stderr": done.stderr, "workspace": root / "ws", "folder": folder}


def test_help_is_the_flow_and_answers_at_once() -> None:
    """`neardup --help` shows the operator's flow and loads neither Spark nor TensorFlow nor pyarrow."""
    probe = (
        "import sys; from click.testing import CliRunner; from cli.main import neardup; "
        "print(CliRunner().invoke(neardup, ['--help']).output); "
        "print(sorted({'pyspark', 'tensorflow', 'keras', 'pyarrow', 'numpy', 'numba'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert "neardup dedup photos/" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.tensorflow
@pytest.mark.spark
class TestImages:
    """One run on a folder of images."""

    def test_counts_are_right(self, images_result: dict[str, Any]) -> None:
        """The JSON object counts what the folder holds."""
        counts = {
            name: images_result[name] for name in ("images", "rejected", "exact_copies", "clusters", "duplicates")
        }
        assert counts == {"images": 19, "rejected": 6, "exact_copies": 1, "clusters": 6, "duplicates": 7}

    def test_every_output_exists(self, images_result: dict[str, Any]) -> None:
        """`outputs` names only what is there."""
        assert {name for name, path in images_result["outputs"].items() if not Path(path).exists()} == set()
        assert {"clusters_csv", "clusters_jsonl", "report", "catalogue", "embeddings", "edges", "rejects"} <= set(
            images_result["outputs"]
        )

    def test_a_pipe_sees_no_progress(self, images_result: dict[str, Any]) -> None:
        """Without a terminal nothing but the result is printed, not even by Spark or TensorFlow."""
        assert images_result["stderr"] == ""

    def test_the_report_shows_the_clusters(self, images_result: dict[str, Any]) -> None:
        """The report is one file that names the images."""
        page = Path(images_result["outputs"]["report"]).read_text("utf-8")
        assert "photo-3.png" in page
        assert "data:image/webp" in page or "UklGR" in page

    def test_a_second_run_reuses_everything(self, images_result: dict[str, Any], tiny_embedder: str) -> None:
        """The same command again prints a summary of the same run."""
        folder, workspace = images_result["folder"], images_result["workspace"]
        done = neardup("dedup", folder, "--workspace", workspace, "--embedder", tiny_embedder, "-v")
        assert done.returncode == ExitCode.OK
        assert done.stderr.count("reused") == 6
        assert "clusters          6" in done.stdout

    def test_embed_writes_what_dedup_takes(
        self, images_result: dict[str, Any], tiny_embedder: str, tmp_path: Path
    ) -> None:
        """The .npz of `embed` goes into `dedup` and gives the same clusters."""
        folder, workspace = images_result["folder"], images_result["workspace"]
        output = tmp_path / "photos.npz"
        done = neardup("embed", folder, "--workspace", workspace, "--embedder", tiny_embedder, "--output", output)
        assert done.returncode == ExitCode.OK, done.stderr
        assert done.stdout.startswith("13 embeddings of 256 dimensions")
        assert "rejected notes.txt: unknown_format" in done.stderr
        again = neardup("dedup", output, "--workspace", tmp_path / "ws", "--embedder", tiny_embedder, "--json")
        assert again.returncode == ExitCode.OK, again.stderr
        assert members(json.loads(again.stdout)) == members(images_result)


def members(result: dict[str, Any]) -> set[frozenset[str]]:
    groups: dict[str, set[str]] = {}
    for line in Path(result["outputs"]["clusters_jsonl"]).read_text("utf-8").splitlines():
        row = json.loads(line)
        groups.setdefault(row["canonical_id"], set()).add(row["image_id"])
    return {frozenset(group) for group in groups.values()}


def test_unusable_sources_have_their_own_exit_code(tmp_path: Path) -> None:
    """A missing, empty, or wrong source ends with SOURCE and one sentence, before Spark starts."""
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "wrong.parquet")
    for source, message in (
        ("missing", "does not exist"),
        ("empty", "is empty"),
        ("wrong.parquet", "it needs image_id"),
    ):
        done = neardup("dedup", tmp_path / source, "--workspace", tmp_path / "ws")
        assert done.returncode == ExitCode.SOURCE
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.spark
def test_a_folder_without_images_is_refused(tiny_embedder: str, tmp_path: Path) -> None:
    """When nothing can be read there is no result, and the exit code says so."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    done = neardup("dedup", tmp_path / "texts", "--workspace", tmp_path / "ws", "--embedder", tiny_embedder)
    assert (done.returncode, done.stdout) == (ExitCode.REJECTED, "")
    assert "none of the 1 files" in done.stderr


@pytest.mark.spark
def test_a_workspace_of_other_parameters_is_refused(embeddings_file: Path, tmp_path: Path) -> None:
    """The exit code is WORKSPACE and the message says what differs."""
    (tmp_path / "workspace.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "embedder": "other"}))
    done = neardup("dedup", embeddings_file, "--workspace", tmp_path, "--min-score", "0.8")
    assert done.returncode == ExitCode.WORKSPACE
    assert "embedder: other there, x now" in done.stderr


def test_a_missing_embedder_is_explained(tmp_path: Path) -> None:
    """The exit code is EMBEDDER and the message lists what there is."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    done = neardup("dedup", tmp_path / "photos", "--workspace", tmp_path / "ws", "--embedder", "nonesuch")
    assert done.returncode == ExitCode.EMBEDDER
    assert "vgg_copy" in done.stderr


def test_missing_java_is_explained(embeddings_file: Path, tmp_path: Path) -> None:
    """Without Java the operator who asks for Spark reads what to install."""
    done = neardup("dedup", embeddings_file, "--workspace", tmp_path, *ON_SPARK, JAVA_HOME="/nowhere")
    assert done.returncode == ExitCode.SPARK
    assert "Spark needs Java 17 or newer; install it" in done.stderr


def test_few_embeddings_need_no_java(embeddings_file: Path, tmp_path: Path) -> None:
    """Small steps run in the process of the command itself, and the ten families are found."""
    arguments = ("dedup", embeddings_file, "--workspace", tmp_path, "--min-score", "0.8", "--json")
    done = neardup(*arguments, JAVA_HOME="/nowhere")
    assert done.returncode == ExitCode.OK, done.stderr
    assert json.loads(done.stdout)["clusters"] == 10
    assert not (tmp_path / "spark.log").exists()


@pytest.mark.spark
def test_an_unreadable_workspace_is_explained(embeddings_file: Path, tmp_path: Path) -> None:
    """A workspace that cannot be made ends with WORKSPACE."""
    (tmp_path / "file").touch()
    done = neardup("dedup", embeddings_file, "--workspace", tmp_path / "file" / "ws", "--min-score", "0.8")
    assert done.returncode == ExitCode.WORKSPACE
    assert "Traceback" not in done.stderr


@pytest.mark.spark
@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0,
    reason="a small disk needs `unshare -rm`, which this machine does not allow",
)
def test_a_full_disk_is_explained_and_survived(
    embeddings_file: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """On a full disk the run ends with WORKSPACE; with room again the same command finishes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = (
        f"{sys.executable} -m cli dedup {embeddings_file} --workspace {disk}/ws --min-score 0.8 --master local --json"
    )
    script = f"""
        mount -t tmpfs -o size=1m tmpfs {disk}
        dd if=/dev/zero of={disk}/ballast bs=1k count=980 status=none
        {command}; echo "status $?"
        rm {disk}/ballast; mount -o remount,size=64m {disk}
        {command} && cat {disk}/ws/runs/*/clusters.csv
    """
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    first, _, rest = done.stdout.partition("\n")
    assert first == f"status {ExitCode.WORKSPACE:d}", done.stderr
    assert "is full; free some space" in done.stderr
    assert "Traceback" not in done.stderr
    clusters = Path(undisturbed["outputs"]["clusters_csv"]).read_text("utf-8")
    assert rest.partition("\n")[2] == clusters


@pytest.mark.spark
def test_interrupted_in_any_stage_it_goes_on_to_the_same_result(
    embeddings_file: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """Ctrl-C in each stage in turn ends with INTERRUPTED; the last run gives the bytes of one without Spark."""
    workspace = tmp_path / "ws"
    arguments = ("dedup", str(embeddings_file), "--workspace", str(workspace), *ON_SPARK, "-v")
    for stage in ("start", "terms", "candidates", "select", "report"):
        code, stderr = interrupted_in(stage, arguments, after_s=0.4 if stage != "report" else 0.0)
        assert (stage, code) == (stage, ExitCode.INTERRUPTED), stderr
        assert "Traceback" not in stderr
        assert "run the same command again" in stderr
    done = neardup(*arguments[:-1], "--json")
    assert done.returncode == ExitCode.OK, done.stderr
    result = json.loads(done.stdout)
    for name in ("clusters_csv", "clusters_jsonl"):
        assert Path(result["outputs"][name]).read_bytes() == Path(undisturbed["outputs"][name]).read_bytes()


def test_interrupted_while_it_opens_images_it_goes_on_to_the_same_result(
    photo_folder: Path, tiny_embedder: str, tmp_path: Path
) -> None:
    """Ctrl-C in each stage that opens images ends with INTERRUPTED; run again it gives an undisturbed run's bytes."""
    common = ("dedup", str(photo_folder), "--embedder", tiny_embedder, "--thorough")
    for stage in ("catalogue", "embed", "views"):
        arguments = (*common, "--workspace", str(tmp_path / "disturbed"), "-v")
        code, stderr = interrupted_in(stage, arguments, after_s=0.0)
        assert (stage, code) == (stage, ExitCode.INTERRUPTED), stderr
        assert "Traceback" not in stderr
    written = []
    for name in ("disturbed", "undisturbed"):
        done = neardup(*common, "--workspace", tmp_path / name, "--json")
        assert done.returncode == ExitCode.OK, done.stderr
        written.append(Path(json.loads(done.stdout)["outputs"]["clusters_csv"]).read_bytes())
    assert written[0] == written[1]


@pytest.mark.spark
def test_killed_it_is_listed_and_resumed(
    embeddings_file: Path, undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run is refused with who holds the workspace; after SIGKILL the first is finished by `runs resume`."""
    workspace = tmp_path / "ws"
    monkeypatch.chdir(embeddings_file.parent)
    arguments = ("dedup", embeddings_file.name, "--workspace", str(workspace), *ON_SPARK, "-v")
    process = started_until("select", arguments)
    process.send_signal(signal.SIGSTOP)  # it must not be finished when the others look
    try:
        listed = json.loads(neardup("runs", "list", "--workspace", workspace, "--json").stdout)["runs"]
        second = neardup(*arguments)
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT_S)
    assert [one["state"] for one in listed] == ["running"]
    assert second.returncode == ExitCode.WORKSPACE
    assert f"in use by run {listed[0]['run_id']} of {embeddings_file} (host " in second.stderr
    assert f"process {process.pid}," in second.stderr
    monkeypatch.chdir(tmp_path)
    listed = json.loads(neardup("runs", "list", "--workspace", workspace, "--json").stdout)["runs"]
    assert [one["state"] for one in listed] == ["unfinished after candidates"]
    resumed = neardup("runs", "resume", "--workspace", workspace, "--json")
    assert resumed.returncode == ExitCode.OK, resumed.stderr
    result = json.loads(resumed.stdout)
    assert result["run_id"] == listed[0]["run_id"]
    for name in ("clusters_csv", "clusters_jsonl"):
        assert Path(result["outputs"][name]).read_bytes() == Path(undisturbed["outputs"][name]).read_bytes()
    assert neardup("runs", "resume", "--workspace", workspace).returncode == ExitCode.USAGE


@pytest.mark.spark
@pytest.mark.tensorflow
def test_interrupted_while_images_are_read_it_goes_on(
    images_result: dict[str, Any], tiny_embedder: str, tmp_path: Path
) -> None:
    """Ctrl-C while images are catalogued and embedded loses nothing but time."""
    arguments = ("dedup", str(images_result["folder"]), "--workspace", str(tmp_path), "--embedder", tiny_embedder, "-v")
    for stage in ("catalogue", "embed"):
        code, stderr = interrupted_in(stage, arguments, after_s=0.0)
        assert (stage, code) == (stage, ExitCode.INTERRUPTED), stderr
        assert "Traceback" not in stderr
    done = neardup(*arguments[:-1], "--json")
    assert done.returncode == ExitCode.OK, done.stderr
    assert members(json.loads(done.stdout)) == members(images_result)


@pytest.mark.spark
def test_a_java_process_that_dies_is_told_in_one_line(
    embeddings_file: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """As when it runs out of memory: no traceback, and the same command goes on."""
    arguments = ("dedup", str(embeddings_file), "--workspace", str(tmp_path), *ON_SPARK, "-v")
    process = started_until("terms", arguments)
    (java,) = [one for one in psutil.Process(process.pid).children() if one.name() == "java"]
    java.kill()
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == ExitCode.SPARK, stderr
    assert "Traceback" not in stderr
    assert re.search(r"neardup: error: Spark failed: .*spark\.log\n$", stderr), stderr
    done = neardup(*arguments[:-1], "--json")
    assert done.returncode == ExitCode.OK, done.stderr
    result = json.loads(done.stdout)
    assert Path(result["outputs"]["clusters_csv"]).read_bytes() == (
        Path(undisturbed["outputs"]["clusters_csv"]).read_bytes()
    )


def interrupted_in(stage: str, arguments: tuple[str, ...], *, after_s: float = 0.4) -> tuple[int, str]:
    """Run `neardup`, send SIGINT `after_s` after `stage` has started; its exit status and standard error."""
    process = started_until(stage, arguments)
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, rest


def started_until(stage: str, arguments: tuple[str, ...]) -> subprocess.Popen[str]:
    """`neardup` in a process of its own that has just started `stage`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the child of a background job would ignore it
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line == f"{stage}: started\n":
            break
    return process


def test_the_digest_of_a_run_names_its_embedder(images_result: dict[str, Any], tiny_embedder: str) -> None:
    """`neardup models show` says the digest that the run reports."""
    shown = neardup("models", "show", tiny_embedder, "--json")
    assert json.loads(shown.stdout)["models"][0]["digest"] == images_result["embedder_digest"]
