"""Rules of the term step's own kernels: binary columns, and batches gathered for a block."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from batch_jobs.make_terms import binary_rows, binary_values, embedding_rows, hash_batches
from lsh.blocks import decode_term_blocks
from lsh.terms import TermHasher, TermParams

ROWS = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)


def test_rows_survive_a_binary_column() -> None:
    """A column made of rows holds the bytes of each row, and gives the rows back, sliced or not."""
    column = binary_rows(ROWS)

    assert column.type == pa.binary()
    assert column.to_pylist() == [row.tobytes() for row in ROWS]
    np.testing.assert_array_equal(embedding_rows(column, dim=4), ROWS)
    np.testing.assert_array_equal(embedding_rows(column.slice(2, 5), dim=4), ROWS[2:7])


def test_an_empty_column_has_no_values() -> None:
    """No rows are no bytes."""
    assert bytes(binary_values(pa.array([], pa.binary()))) == b""
    assert binary_rows(ROWS[:0]).to_pylist() == []


def test_batches_become_blocks_and_codes_of_the_same_docs() -> None:
    """Docs in any order and any number of batches give the postings of hashing all rows at once."""
    params = TermParams(num_tables=3, dim=4, num_polytopes=1, polytope_dim=4)
    docs = np.array([5, 1, 7, 0, 2, 9, 3, 8, 4])
    batches = [
        pa.record_batch({"doc": docs[rows], "embedding": binary_rows(np.ascontiguousarray(ROWS[rows]))})
        for rows in (slice(0, 4), slice(4, 9))
    ]
    table = pa.Table.from_batches(list(hash_batches(iter(batches), params=params, num_parts=2)))
    blocks = [block for block in table["block"].to_pylist() if block is not None]
    postings = decode_term_blocks(blocks)
    terms = TermHasher(params).terms(ROWS)
    expected = sorted((term, doc) for doc, row in zip(docs.tolist(), terms.tolist(), strict=True) for term in row)

    assert list(zip(postings.terms.tolist(), postings.docs[postings.doc_rows].tolist(), strict=True)) == expected
    assert [doc for doc in table["doc"].to_pylist() if doc is not None] == sorted(docs.tolist())
