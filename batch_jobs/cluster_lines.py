"""The rows of `clusters` as lines of CSV and of JSON, a column at a time: a night writes those of the whole corpus.

CSV as in RFC 4180, with fields quoted where they need it; JSON as one object a line. Scores have six digits, what a
float32 holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_jobs import schemas
from batch_jobs.make_terms import binary_values

COLUMNS = schemas.columns(schemas.CLUSTERS)
CSV_HEADER = ",".join(COLUMNS) + "\n"
NEEDS_QUOTES = re.compile(rb'[",\r\n]')
NEEDS_ESCAPES = re.compile(rb'[\x00-\x1f"\\]')


def csv_lines(rows: pa.RecordBatch) -> pa.Array:
    """One line for each of the `CLUSTERS` rows."""
    fields = _texts(rows, id_text=_csv_ids, true="True", false="False")
    return pc.binary_join_element_wise(pc.binary_join_element_wise(*fields, ","), "\n", "")


def json_lines(rows: pa.RecordBatch) -> pa.Array:
    """One line for each of the `CLUSTERS` rows."""
    values = _texts(rows, id_text=_json_ids, true="true", false="false")
    keys = [f'{opening}"{name}": ' for name, opening in zip(COLUMNS, "{" + " " * len(COLUMNS), strict=False)]
    members = [pc.binary_join_element_wise(key, value, "") for key, value in zip(keys, values, strict=True)]
    return pc.binary_join_element_wise(pc.binary_join_element_wise(*members, ","), "}\n", "")


def _texts(rows: pa.RecordBatch, *, id_text: Callable[[pa.Array], pa.Array], true: str, false: str) -> list[pa.Array]:
    return [
        id_text(rows["image_id"]),
        id_text(rows["canonical_id"]),
        _score_texts(rows["score"]),
        pc.if_else(rows["is_canonical"], true, false),
        rows["size"].cast(pa.string()),
    ]


def _csv_ids(image_ids: pa.Array) -> pa.Array:
    if not NEEDS_QUOTES.search(binary_values(image_ids)):
        return image_ids
    doubled = pc.binary_join_element_wise('"', pc.replace_substring(image_ids, '"', '""'), '"', "")
    return pc.if_else(pc.match_substring_regex(image_ids, NEEDS_QUOTES.pattern.decode()), doubled, image_ids)


def _json_ids(image_ids: pa.Array) -> pa.Array:
    if NEEDS_ESCAPES.search(binary_values(image_ids)):
        return pa.array([json.dumps(image_id, ensure_ascii=False) for image_id in image_ids.to_pylist()], pa.string())
    return pc.binary_join_element_wise('"', image_ids, '"', "")


def _score_texts(scores: pa.Array) -> pa.Array:
    """Each score as Python writes it, a zero without a sign; there are many more of them than different ones."""
    millionths, places = np.unique(np.rint(scores.to_numpy().astype(np.float64) * 1e6) + 0.0, return_inverse=True)
    return pa.array(list(map(repr, (millionths / 1e6).tolist())), pa.string()).take(pa.array(places))
