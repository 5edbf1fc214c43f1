"""The rows of `clusters` as lines of CSV and of JSON, a column at a time, for there are many.

CSV as in RFC 4180, with fields quoted where they need it; JSON as one object a line. Scores have six digits, what a
float32 holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_jobs import schemas
from batch_jobs.make_terms import binary_values

COLUMNS = schemas.columns(schemas.CLUSTERS)
ID_COLUMNS = ("image_id", "canonical_id")
CSV_HEADER = ",".join(COLUMNS) + "\n"
NEEDS_QUOTES = re.compile(rb'[",\r\n]')
NEEDS_ESCAPES = re.compile(rb'[\x00-\x1f"\\]')


def csv_lines(rows: pa.RecordBatch) -> pa.Array:
    """One line for each of the `CLUSTERS` rows."""
    texts = [*(_csv_ids(rows[name]) for name in ID_COLUMNS), *_other_texts(rows, true="True", false="False")]
    return _joined(("", ",", ",", ",", ",", "\n"), texts)


def json_lines(rows: pa.RecordBatch) -> pa.Array:
    """One line for each of the `CLUSTERS` rows."""
    others = _other_texts(rows, true="true", false="false")
    keys = [f'{opening}"{name}": ' for name, opening in zip(COLUMNS, ("{", ", ", ", ", ", ", ", "), strict=True)]
    if any(NEEDS_ESCAPES.search(binary_values(rows[name])) for name in ID_COLUMNS):
        return _joined((*keys, "}\n"), [*(_json_ids(rows[name]) for name in ID_COLUMNS), *others])
    image_key, canonical_key, score_key, *other_keys = keys
    quoted = (image_key + '"', f'"{canonical_key}"', f'"{score_key}', *other_keys, "}\n")
    return _joined(quoted, [*(rows[name] for name in ID_COLUMNS), *others])


def id_lines(rows: pa.RecordBatch) -> pa.Array:
    """One line of CSV for each image id."""
    return pc.binary_join_element_wise(_csv_ids(rows["image_id"]), "\n", "")


def _joined(constants: Sequence[str], texts: Sequence[pa.Array]) -> pa.Array:
    """Lines of a constant, a text, a constant, and so on; in one pass, because there are many lines."""
    between = [part for pair in zip(constants, texts, strict=False) for part in pair]
    return pc.binary_join_element_wise(*between, constants[-1], "")


def _other_texts(rows: pa.RecordBatch, *, true: str, false: str) -> list[pa.Array]:
    return [
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
    return pa.array([json.dumps(image_id, ensure_ascii=False) for image_id in image_ids.to_pylist()], pa.string())


def _score_texts(scores: pa.Array) -> pa.Array:
    """Each score as a decimal fraction, a zero without a sign."""
    millionths = np.rint(scores.to_numpy().astype(np.float64) * 1e6) + 0.0
    texts = pc.cast(pa.array(millionths / 1e6), pa.string())
    return pc.if_else(pa.array(millionths % 1e6 == 0), pc.binary_join_element_wise(texts, ".0", ""), texts)
