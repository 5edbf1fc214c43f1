"""Rules of the batch benchmark: what counts as found, and the figures of every contender."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from benchmarks.batch import OURS, Truth, block_bytes, command, found_pairs, read_edges, recall_by_cosine, sizes_of


def test_a_pair_is_found_in_either_direction() -> None:
    """An edge counts whichever end comes first, and only the same two images count."""
    wanted = np.array([[0, 5], [2, 3], [1, 4]])
    edges = np.array([[5, 0], [2, 3], [1, 5], [4, 2]])
    assert found_pairs(wanted, edges, num_images=6).tolist() == [True, True, False]


def test_edges_are_read_as_rows_whatever_docs_the_catalogue_gave(tmp_path: Path) -> None:
    """Docs are mapped back to the rows that the image ids name."""
    pq.write_table(pa.table({"doc": [4, 0, 2], "image_id": ["000", "001", "012"]}), tmp_path / "catalogue.parquet")
    pq.write_table(pa.table({"left_doc": [0, 2], "right_doc": [4, 4]}), tmp_path / "edges.parquet")
    assert read_edges(tmp_path / "edges.parquet", tmp_path / "catalogue.parquet").tolist() == [[1, 0], [12, 0]]


def test_recall_is_counted_in_bands_of_cosine() -> None:
    """Each true pair counts in the band of its cosine; a band without pairs has recall 1."""
    cosines = np.array([0.8, 0.84, 0.86, 0.97], dtype=np.float32)
    truth = Truth(np.arange(1), np.zeros((4, 2), dtype=np.int64), cosines)
    recall, num_pairs = recall_by_cosine(truth, np.array([True, False, True, False]), 0.79)
    assert recall == {"0.79-0.85": 0.5, "0.85-0.90": 1.0, "0.90-0.95": 1.0, "0.95-1.00": 0.0}
    assert num_pairs == {"0.79-0.85": 2, "0.85-0.90": 1, "0.90-0.95": 0, "0.95-1.00": 1}


def test_blocks_in_files_count_as_shuffled(tmp_path: Path) -> None:
    """Term blocks, as they were counted before they were merged, and pair blocks of every step; codes and edges not."""
    for name in ("candidates-1/pair_blocks/0", "candidates-2/pair_blocks/0", "terms-1/codes/0", "select-1/edges/0"):
        path = tmp_path / "steps" / f"{name}.parquet"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"12345")
    (tmp_path / "steps" / "terms-1" / "commit.json").write_text('{"stats": {"block_bytes": 7}}')
    assert block_bytes(tmp_path) == 17


def test_contenders_that_do_not_survive_a_size_get_their_own() -> None:
    """MLlib runs at 40,000 images, the others at the size asked for, ours at all sizes."""
    assert sizes_of(["flat", "mllib"], 100_000) == {100_000: ["flat"], 40_000: ["mllib"]}
    assert sizes_of(["flat", "mllib"], 3_000) == {3_000: ["flat", "mllib"]}


def test_an_unknown_peer_is_refused_by_name() -> None:
    """A misspelt peer is a usage error that lists the peers."""
    result = CliRunner().invoke(command, ["--peers", "flat,solr"])
    assert result.exit_code == 2
    assert "solr is unknown" in result.output


@pytest.mark.spark
def test_the_rows_hold_every_contender_with_its_ratio_and_recall(tmp_path: Path) -> None:
    """Ours and a peer on 2,000 images: JSON rows with case, contender, images, seconds, recall and ratio."""
    pytest.importorskip("faiss", reason="the peer of this benchmark is not installed")
    path = tmp_path / "batch.json"
    arguments = ["--images", "2000", "--peers", "flat,ivf", "--target-recall", "0.9", "--json", str(path)]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    rows = {row["contender"]: row for row in json.loads(path.read_text())["rows"]}
    assert set(rows) == {OURS, "flat", "ivf"}
    assert rows[OURS]["ratio"] == 1.0
    assert rows[OURS]["recall"] > 0.85
    assert rows[OURS]["shuffle_bytes"] > 0
    assert rows["flat"]["recall"] == 1.0
    assert rows["ivf"]["recall"] >= rows[OURS]["recall"]
    for row in rows.values():
        assert row["case"] == "spread"
        assert row["images"] == 2000
        assert row["seconds"] == pytest.approx(row["ratio"] * rows[OURS]["seconds"])
