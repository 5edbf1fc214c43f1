"""Rules of the lines that people get: the same as those of Python's own writers, row by row."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from batch_jobs import schemas
from batch_jobs.cluster_lines import COLUMNS, CSV_HEADER, csv_lines, json_lines

CLUSTERS_ARROW = schemas.arrow(schemas.CLUSTERS)
PLAIN_IDS = st.text(st.characters(codec="ascii", categories=["L", "N"]))
ANY_IDS = st.text(st.characters(codec="utf-8", exclude_characters="\r"))
TINY = 1e-4
"""Below it Python writes a power of ten."""
SCORES = st.floats(-1.0, 1.0, width=32).filter(lambda score: not 0 < abs(round(score, 6)) < TINY) | st.sampled_from(
    [0.0, 1.0, -1.0, 1 / 128, 3 / 128]
)


def batches(image_ids: st.SearchStrategy[str]) -> st.SearchStrategy[pa.RecordBatch]:
    """Batches of `CLUSTERS` rows."""
    values = (image_ids, image_ids, SCORES, st.booleans(), st.integers(2, 2**31 - 1))
    rows = st.fixed_dictionaries(dict(zip(COLUMNS, values, strict=True)))
    return st.lists(rows).map(lambda drawn: pa.RecordBatch.from_pylist(drawn, schema=CLUSTERS_ARROW))


def plain(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "score": round(row["score"], 6) + 0.0}


@given(batches(PLAIN_IDS) | batches(ANY_IDS))
def test_csv_is_that_of_the_csv_module(rows: pa.RecordBatch) -> None:
    """Ids with commas, quotes and line ends are quoted, and scores have six digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(plain, rows.to_pylist()))
    assert text.getvalue() == CSV_HEADER + "".join(csv_lines(rows).to_pylist())


def test_tiny_scores_are_decimal_fractions() -> None:
    """Where Python's own writer takes a power of ten."""
    row = dict(zip(COLUMNS, ("a", "b", -1e-5, False, 2), strict=True))
    assert csv_lines(pa.RecordBatch.from_pylist([row], schema=CLUSTERS_ARROW)).to_pylist() == ["a,b,-0.00001,False,2\n"]


def test_a_carriage_return_is_quoted() -> None:
    """Readers take it for the end of a line; Python's own writer leaves it bare."""
    row = dict(zip(COLUMNS, ("a\rb", "c", 1.0, False, 2), strict=True))
    assert csv_lines(pa.RecordBatch.from_pylist([row], schema=CLUSTERS_ARROW)).to_pylist() == ['"a\rb",c,1.0,False,2\n']


@given(batches(PLAIN_IDS) | batches(ANY_IDS))
def test_json_lines_are_those_of_the_json_module(rows: pa.RecordBatch) -> None:
    """Ids are escaped where JSON wants it, and stay as they are where it does not."""
    expected = [json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows.to_pylist()]
    assert expected == json_lines(rows).to_pylist()
