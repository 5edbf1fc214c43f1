"""The tables of a run: their columns and types, in one place.

`docs/tables.md` explains them to users. A schema here is the Spark DDL of a table that a step commits; all tables are
Parquet, strings UTF-8, `doc` the dense number of an image (see the glossary in the README).
"""

from __future__ import annotations

import pyarrow as pa

LISTING = "image_id string, uri string"

INSPECTED = (
    "image_id string, uri string, width int, height int, size_bytes long, sha256 string, state long, reason string, "
    "detail string"
)
"""One row per listed image: its header, or the reason why it was rejected."""

CATALOGUE = (
    "image_id string, doc long, original_doc long, uri string, width int, height int, size_bytes long, sha256 string, "
    "state long"
)
"""`original_doc` is the smallest doc with the same bytes; the image itself when it is the first. `state` changes when
the image's file is written again (`sources.file_state`)."""

REMOVED = "doc long"
"""Known docs that a night takes away: of images that are gone, and of those that have other bytes now."""

REWRITTEN = "doc long, state long"
"""Known docs whose file was written again with the same bytes."""

ORIGINALS = "sha256 string, known_doc long"
"""The known content of bytes that arrive again."""

REJECTS = "image_id string, uri string, stage string, reason string, detail string"

EMBEDDED = "doc long, embedding binary, reason string, detail string"
"""What a task of `embed_images` emits: an embedding, or the reason why there is none."""

EMBEDDINGS = "doc long, embedding binary"
"""`embedding`: `dim` little-endian float32, a unit row."""

CODES = "doc long, code binary"
"""`code`: `dim` int8, the embedding scalar-quantised."""

TERM_BLOCKS = "block binary"
"""Blocks of `lsh.blocks.encode_term_blocks` of one part; each part is a folder `part=<part>`."""

MERGED = "part int, block_bytes long"
"""The bytes of the term blocks that became the posting lists of a part."""

SKETCHES = "doc long, sketch binary"
"""`sketch`: `words_per_sketch` little-endian uint64."""

SAMPLED = "doc long, sketch binary, signature binary"
"""`signature`: `num_tables` little-endian uint64 terms."""

HASHED = "part int, block binary, doc long, code binary, sketch binary, signature binary"
"""What a map task of `make_terms` makes: term blocks, codes and a sample, told apart by the nulls of the others."""

PAIR_BLOCKS = (
    "part int, left_range int, num_pairs long, block binary, num_buckets long, largest_bucket long, "
    "num_cut_buckets long, num_cut_pairs long"
)
"""Blocks of `lsh.blocks.encode_pair_block`: pairs whose smaller doc lies in range `left_range`; counts are per part."""

PAIR_COUNTS = (
    "part int, num_pairs long, num_buckets long, largest_bucket long, num_cut_buckets long, num_cut_pairs long"
)
"""`PAIR_BLOCKS` without the blocks."""

HISTOGRAMS = "histogram binary"

EDGES = "left_doc long, right_doc long, similarity float, score float, shared_terms int"
"""Matches, `left_doc < right_doc`."""

CLUSTERS = "image_id string, canonical_id string, score float, is_canonical boolean, size int"

UNCLUSTERED = "image_id string"
"""Images that were in a cluster of two or more the night before, and are in none now."""

ASSIGNMENTS = "doc long, canonical_doc long, score float"
"""The canonical of each image that has another one than the night before, the image itself where it leads or stands
alone now; without a night before, of each that has another one than itself."""

CROWD_EDGES = "left_doc long, right_doc long, score float"
"""The matches that clustering found in crowds, where candidates had left them out; left doc below right doc."""

OUTCOMES = (
    "image_id string, outcome string, canonical_id string, score float, reason string, detail string, "
    "uploaded_at timestamp"
)
"""One row per image of a stream; `outcome` is `new`, `duplicate` or `rejected`."""


def columns(schema: str) -> list[str]:
    """The column names of a schema.

    >>> columns(EMBEDDINGS)
    ['doc', 'embedding']
    """
    return [column.split()[0] for column in schema.split(", ")]


def arrow(schema: str) -> pa.Schema:
    """The same schema for Arrow.

    >>> arrow(EMBEDDINGS).types
    [DataType(int64), DataType(binary)]
    """
    return pa.schema([(name, _ARROW_TYPES[kind]) for name, kind in (column.split() for column in schema.split(", "))])


_ARROW_TYPES = {
    "string": pa.string(),
    "binary": pa.binary(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
