"""The Spark steps over terms, candidates and matches as plain loops over their kernels: twins for tests that are quick.

`use_local_steps` puts them in place of the Spark ones. Embeddings that are given need no Spark in any other step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from batch_jobs import find_candidates, make_terms, nightly, pipeline, schemas, select_matches
from batch_jobs.find_candidates import Join, join_part
from batch_jobs.make_terms import hash_batches
from batch_jobs.select_matches import HISTOGRAM_BINS, Selection, verify_blocks
from batch_jobs.session import write_arrow
from lsh.terms import TermParams


def local_make_terms(
    _: Any, folder: Path, *, embeddings: str, params: TermParams, num_partitions: int
) -> Mapping[str, Any]:
    """`make_terms.make_terms`."""
    batches = pyarrow.dataset.dataset(embeddings, format="parquet").to_batches()
    rows = pa.Table.from_batches(list(hash_batches(batches, params=params, num_parts=num_partitions)))
    blocks, codes = (rows.filter(pc.is_valid(rows[column])) for column in ("block", "code"))
    (folder / "term_blocks").mkdir()
    for part in range(num_partitions):
        of_part = blocks.filter(pc.equal(blocks["part"], part)).select(["block"])
        write_arrow(of_part, folder / "term_blocks" / f"part={part}")
    write_arrow(codes.select(["doc", "code"]), folder / "codes")
    return {"num_parts": num_partitions}


def local_find_candidates(_: Any, folder: Path, *, join: Join, num_parts: int) -> Mapping[str, Any]:
    """`find_candidates.find_candidates`."""
    found = pa.concat_tables([join_part(part, join) for part in range(num_parts)])
    write_arrow(found, folder / "pair_blocks")
    totals = {name: pc.sum(found[name]) for name in ("num_pairs", "num_buckets", "num_cut_buckets", "num_cut_pairs")}
    totals["largest_bucket"] = pc.max(found["largest_bucket"])
    return {name: total.as_py() or 0 for name, total in totals.items()}


def local_select_matches(
    _: Any,
    folder: Path,
    *,
    pair_blocks: str,
    codes: tuple[str, ...],
    selection: Selection,
    docs_per_range: int,
    num_partitions: int,
) -> Mapping[str, Any]:
    """`select_matches.select_matches`."""
    blocks = pq.read_table(pair_blocks, columns=["left_range", "block"])
    blocks = blocks.filter(pc.is_valid(blocks["block"]))
    tables = [
        verify_blocks(
            blocks.filter(pc.equal(blocks["left_range"], left_range)),
            codes=codes,
            selection=selection,
            docs_per_range=docs_per_range,
        )
        for left_range in pc.unique(blocks["left_range"]).sort()
    ]
    scored = pa.concat_tables([schemas.arrow(schemas.SCORED).empty_table(), *tables])
    is_edge = pc.is_null(scored["histogram"])
    write_arrow(scored.filter(is_edge).drop_columns("histogram"), folder / "edges")
    histograms = [np.frombuffer(value, "<i8") for value in scored["histogram"].drop_null().to_pylist()]
    histogram = np.sum(histograms, axis=0, dtype=np.int64) if histograms else np.zeros(HISTOGRAM_BINS, np.int64)
    return {"num_distinct_pairs": int(histogram.sum()), "score_histogram": histogram.tolist()}


@contextmanager
def _no_session(**_: Any) -> Iterator[None]:
    yield None


def use_local_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run pipelines over given embeddings without Spark; `num_partitions` must be given."""
    monkeypatch.setattr(make_terms, "make_terms", local_make_terms)
    monkeypatch.setattr(find_candidates, "find_candidates", local_find_candidates)
    monkeypatch.setattr(select_matches, "select_matches", local_select_matches)
    for module in (nightly, pipeline):
        monkeypatch.setattr(module, "spark_session", _no_session)
    monkeypatch.setattr(pipeline, "watched", lambda *_: nullcontext())
    monkeypatch.setattr(pipeline, "embed_resources", lambda _: None)
