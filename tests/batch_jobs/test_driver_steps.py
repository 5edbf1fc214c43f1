"""Rules of steps in the driver's process; that they write what Spark writes is tested beside the nights."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_jobs import driver_steps, schemas
from batch_jobs.driver_steps import Driver
from batch_jobs.find_candidates import read_blocks
from batch_jobs.make_terms import binary_rows
from batch_jobs.session import write_arrow
from lsh.blocks import decode_term_blocks
from lsh.terms import TermParams

DIM = 32
NUM_PARTS = 3
PARAMS = TermParams(num_tables=8, dim=DIM, num_polytopes=1, polytope_dim=32)


def test_results_come_in_the_order_of_tasks() -> None:
    """A task that ends late does not change its place, and each end is told."""
    shares: list[float] = []

    def late(task: int) -> int:
        time.sleep(0.02 * (3 - task))
        return -task

    assert Driver(2, shares.append).map(late, range(4)) == [0, -1, -2, -3]
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_what_a_task_raises_is_raised() -> None:
    """Tasks that have not begun are not waited for."""
    begun: list[int] = []

    def fail(task: int) -> None:
        begun.append(task)
        raise ValueError(task)

    with pytest.raises(ValueError, match="0"):
        Driver(1, lambda _: None).map(fail, range(1000))
    assert len(begun) < 1000


@pytest.mark.parametrize("num_docs", [1, 4095, 4096, 9001])
def test_terms_are_the_same_on_any_number_of_threads(num_docs: int, tmp_path: Path) -> None:
    """Blocks hold the same postings in as many pieces as tasks were worth it; codes are the same rows by doc."""
    rows = np.random.default_rng(0).normal(size=(num_docs, DIM)).astype(np.float32)
    docs = pa.array(100 + np.arange(num_docs))
    table = pa.table([docs, binary_rows(rows)], schema=schemas.arrow(schemas.EMBEDDINGS))
    write_arrow(table, tmp_path / "embeddings")
    found = []
    for num_threads in (1, 4):
        folder = tmp_path / str(num_threads)
        folder.mkdir()
        driver = Driver(num_threads, lambda _: None)
        stats = driver_steps.make_terms(
            driver, folder, embeddings=str(tmp_path / "embeddings"), params=PARAMS, num_partitions=NUM_PARTS
        )
        assert stats == {"num_parts": NUM_PARTS}
        blocks = [list(read_blocks(str(folder / "term_blocks"), part)) for part in range(NUM_PARTS)]
        assert {len(of_part) for of_part in blocks} == {max(1, min(num_threads, num_docs // 2048))}
        found.append(([decode_term_blocks(of_part) for of_part in blocks], pq.read_table(folder / "codes")))
    (postings, codes), (other_postings, other_codes) = found
    assert codes.equals(other_codes)
    for part, other in zip(postings, other_postings, strict=True):
        for name in ("terms", "doc_rows", "docs", "sketches"):
            np.testing.assert_array_equal(getattr(part, name), getattr(other, name))
