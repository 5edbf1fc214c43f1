"""The Spark steps over terms, candidates and matches as plain loops over their kernels: twins for tests that are quick.

`use_local_steps` puts them in place of the Spark ones. Embeddings that are given need no Spark in any other step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pytest

from batch_jobs import find_candidates, make_terms, nightly, pipeline, schemas, select_matches
from batch_jobs.find_candidates import Join, join_part, pair_counts
from batch_jobs.make_terms import hash_batches, make_folders, write_hashed
from batch_jobs.select_matches import (
    Selection,
    histogram_rows,
    histogram_stats,
    left_ranges,
    read_pair_blocks,
    verify_blocks,
)
from batch_jobs.session import write_arrow
from lsh.terms import TermParams


def local_make_terms(
    _: Any, folder: Path, *, embeddings: str, params: TermParams, num_partitions: int
) -> Mapping[str, Any]:
    """`make_terms.make_terms`."""
    batches = pyarrow.dataset.dataset(embeddings, format="parquet").to_batches()
    make_folders(folder, num_parts=num_partitions)
    write_hashed(hash_batches(batches, params=params, num_parts=num_partitions), folder, number=0)
    return {"num_parts": num_partitions}


def local_find_candidates(_: Any, folder: Path, *, join: Join, num_parts: int) -> Mapping[str, Any]:
    """`find_candidates.find_candidates`."""
    found = pa.concat_tables([join_part(part, join) for part in range(num_parts)])
    write_arrow(found, folder / "pair_blocks")
    return pair_counts(found)


def local_select_matches(
    _: Any,
    folder: Path,
    *,
    pair_blocks: str,
    codes: tuple[str, ...],
    selection: Selection,
    docs_per_range: int,
) -> Mapping[str, Any]:
    """`select_matches.select_matches`."""
    tables = [
        verify_blocks(
            read_pair_blocks(pair_blocks, left_range),
            codes=codes,
            selection=selection,
            docs_per_range=docs_per_range,
        )
        for left_range in left_ranges(pair_blocks)
    ]
    scored = pa.concat_tables([schemas.arrow(schemas.SCORED).empty_table(), *tables])
    write_arrow(scored.filter(pc.is_null(scored["histogram"])).drop_columns("histogram"), folder / "edges")
    return histogram_stats(histogram_rows(scored))


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
