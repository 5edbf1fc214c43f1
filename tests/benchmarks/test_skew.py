"""Rules of the benchmark of crowds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.skew import crowd_shares, with_crowds


def test_crowds_are_planted_around_one_centre_each() -> None:
    """Rows of a crowd have its cosine to one another, and every row knows its crowd."""
    rows, crowd_of = with_crowds(np.eye(10, 256, dtype=np.float32), {"template": 50, "blank": 40}, seed=1)
    assert np.bincount(crowd_of + 1).tolist() == [10, 50, 40]
    template, blank = (rows[crowd_of == number] for number in (0, 1))
    assert (template @ template.T).mean() == pytest.approx(0.95**2, abs=0.01)
    assert (blank @ blank.T).min() == pytest.approx(1.0, abs=1e-5)


def test_the_share_of_a_crowd_is_that_of_its_largest_cluster(tmp_path: Path) -> None:
    """Images in no cluster count as clusters of one."""
    clusters = {"image_id": ["0", "1", "2", "4"], "canonical_id": ["1", "1", "1", "4"]}
    pq.write_table(pa.table(clusters), tmp_path / "clusters.parquet")
    shares = crowd_shares(np.array([0, 0, -1, 0, 0]), {"template": 4}, tmp_path / "clusters.parquet")
    assert shares == {"template": 0.5}
