"""Rules of `neardup nightly`: nights without Spark, so that only the command itself is tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batch_jobs.build_index import index_folder
from batch_jobs.errors import BatchError
from cli.cluster import command as cluster
from cli.nightly import command
from lsh.index.generation import open_generation
from lsh.index.publishing import current, generation_folder


def write_pairs(path: Path, names: str, *, seed: int = 0) -> Path:
    """Two images of each letter, near-duplicates of one another; a letter has the same rows in every file."""
    rows, image_ids = [], []
    for name in names:
        generator = np.random.default_rng([seed, ord(name)])
        center = generator.normal(size=256)
        for copy in range(2):
            rows.append(center + 0.1 * generator.normal(size=256))
            image_ids.append(f"{name}{copy}")
    embeddings = np.array(rows, np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    np.savez(path, image_ids=np.array(image_ids), embeddings=embeddings, digest=np.array("given"))
    return path


def run(source: Path, workspace: Path, *arguments: str) -> str:
    fixed = ["--workspace", str(workspace), "--min-score", "0.8", "--partitions", "2"]
    result = CliRunner().invoke(command, [str(source), *fixed, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def run_json(source: Path, workspace: Path, *arguments: str) -> dict[str, Any]:
    printed: dict[str, Any] = json.loads(run(source, workspace, "--json", *arguments))
    return printed


def test_two_nights_say_what_they_did(tmp_path: Path) -> None:
    """The JSON counts what came and went, names the night before, and lies in the run's folder, with what changed."""
    first = run_json(write_pairs(tmp_path / "s.npz", "abc"), tmp_path / "w")
    second = run_json(write_pairs(tmp_path / "s.npz", "bcde"), tmp_path / "w")
    assert (first["number"], first["new"], first["clusters"]) == (1, 6, 3)
    assert second["previous"] == first["night_id"]
    assert [second[name] for name in ("number", "images", "known", "new", "removed", "clusters")] == [2, 8, 4, 4, 2, 4]
    record = json.loads(Path(second["outputs"]["run"]).read_text("utf-8"))
    assert (record["command"], record["results"], record["parent"]) == ("nightly", second, first["run_id"])
    assert (first["is_update"], second["is_update"]) == (False, True)
    assert image_ids(first["outputs"]["clusters_csv"]) == ["a0", "a1", "b0", "b1", "c0", "c1"]
    assert image_ids(second["outputs"]["clusters_csv"]) == ["d0", "d1", "e0", "e1"]
    assert image_ids(second["outputs"]["unclustered_csv"]) == ["a0", "a1"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_all_clusters_of_any_night_are_exported(tmp_path: Path, ending: str) -> None:
    """`cluster export` writes the clusters that a night came to, whenever they were made; of an earlier one, too."""
    first = run_json(write_pairs(tmp_path / "s.npz", "abc"), tmp_path / "w")
    run(write_pairs(tmp_path / "s.npz", "bcde"), tmp_path / "w")
    output = tmp_path / f"all.{ending}"
    for options, named in (([], "bcde"), (["--run", first["run_id"]], "abc")):
        arguments = ["export", str(output), "--workspace", str(tmp_path / "w"), *options]
        result = CliRunner().invoke(cluster, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert image_ids(output) == [f"{name}{copy}" for name in named for copy in range(2)]


def test_clusters_are_not_exported_to_an_unknown_form(tmp_path: Path) -> None:
    """The error names the ending and what may be written."""
    run(write_pairs(tmp_path / "s.npz", "abc"), tmp_path / "w")
    with pytest.raises(BatchError, match=r"ends in \.txt; clusters are written as \.csv, \.jsonl or \.parquet"):
        CliRunner().invoke(
            cluster, ["export", str(tmp_path / "all.txt"), "--workspace", str(tmp_path / "w")], catch_exceptions=False
        )
    assert not (tmp_path / "all.txt").exists()


def image_ids(path: str | Path) -> list[str]:
    """The image ids of a file of clusters, in order of the alphabet."""
    if str(path).endswith(".parquet"):
        return sorted(pq.read_table(path)["image_id"].to_pylist())
    lines = Path(path).read_text("utf-8").splitlines()
    if str(path).endswith(".jsonl"):
        return sorted(json.loads(line)["image_id"] for line in lines)
    return sorted(line.split(",")[0] for line in lines[1:])


def test_a_dry_run_plans_and_writes_nothing(tmp_path: Path) -> None:
    """It needs no workspace, and leaves none."""
    said = run(write_pairs(tmp_path / "s.npz", "abc"), tmp_path / "w", "--dry-run")
    assert "none: everything is new" in said
    assert not (tmp_path / "w").exists()
    run(tmp_path / "s.npz", tmp_path / "w")
    planned = run_json(write_pairs(tmp_path / "s.npz", "bcd"), tmp_path / "w", "--dry-run")
    assert (planned["num_known"], planned["num_new"], planned["num_removed"]) == (4, 2, 2)


def test_nothing_new_is_said(tmp_path: Path) -> None:
    """A night over the same source says that the last one stays."""
    run(write_pairs(tmp_path / "s.npz", "ab"), tmp_path / "w")
    assert "nothing has changed since night 1" in run(tmp_path / "s.npz", tmp_path / "w")


def test_a_promoted_night_serves_live_images_alone(tmp_path: Path) -> None:
    """The generation has the images that are there and their clusters; a removed one is not found."""
    run(write_pairs(tmp_path / "s.npz", "abc"), tmp_path / "w", "--promote")
    done = run_json(write_pairs(tmp_path / "s.npz", "bcd"), tmp_path / "w", "--promote")
    index = index_folder(tmp_path / "w")
    assert current(index) == done["generation_id"]
    generation = open_generation(generation_folder(index, done["generation_id"]))
    assert generation.manifest.num_docs == 6
    assert generation.doc_of("a0") is None
    doc = generation.doc_of("d1")
    assert doc is not None
    canonical = generation.canonicals(np.array([doc]))
    assert generation.image_ids(canonical) == ["d0"]
    assert generation.image_ids(generation.members(int(canonical[0]), offset=0, limit=9)) == ["d0", "d1"]


def test_ids_to_redo_come_from_a_file(tmp_path: Path) -> None:
    """@FILE has an id a line; a file that is not there is a wrong option."""
    run(write_pairs(tmp_path / "s.npz", "ab"), tmp_path / "w")
    (tmp_path / "ids").write_text("a0\nb1\n", "utf-8")
    done = run_json(tmp_path / "s.npz", tmp_path / "w", "--only", f"@{tmp_path / 'ids'}", "--only", "a0")
    assert done["changed"] == 2
    missing = CliRunner().invoke(command, [str(tmp_path / "s.npz"), "--only", "@none"])
    assert missing.exit_code == 2
    assert "an id a line" in missing.output
