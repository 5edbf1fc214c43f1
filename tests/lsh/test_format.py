"""The bytes in `lsh/FORMAT.md` are the bytes that `lsh` reads and writes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import lsh
from lsh.blocks import decode_pair_blocks, decode_term_blocks, encode_pair_block, encode_term_blocks
from lsh.buckets import Buckets
from lsh.posting_lists import PostingLists
from lsh.variable_byte import encode

FORMAT_TEXT = (Path(lsh.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")


def worked_example(name: str) -> bytes:
    block = re.search(rf"```{name}\n(.*?)```", FORMAT_TEXT, re.DOTALL)
    assert block is not None
    return b"".join(bytes.fromhex(line.split("  ")[0]) for line in block[1].splitlines())


def test_variable_byte_table_holds() -> None:
    """Every row of the variable-byte table shows the code of its value."""
    values = np.array([0, 127, 128, 300, 16_384, 2**64 - 1], dtype=np.uint64)
    rows = re.findall(r"^\|[^|]+\|[^|]+\| `([0-9a-f ]+)` \|$", FORMAT_TEXT, re.MULTILINE)

    assert bytes.fromhex("".join(rows)) == encode(values).tobytes()


def test_term_block_example_decodes() -> None:
    """The worked term block decodes to the postings that the text names."""
    postings = decode_term_blocks([worked_example("term-block")])

    assert postings.terms.tolist() == [3, 3, 200]
    assert postings.docs[postings.doc_rows].tolist() == [5, 300, 300]
    assert postings.docs.tolist() == [5, 300]
    assert postings.sketches.tolist() == [[0x0123456789ABCDEF], [1]]


def test_term_block_example_is_what_encoding_writes() -> None:
    """Encoding the postings that the text names writes the worked term block."""
    terms = np.array([[3, 3], [3, 200]], dtype=np.uint64)
    docs = np.array([5, 300], dtype=np.uint64)
    sketches = np.array([[0x0123456789ABCDEF], [1]], dtype=np.uint64)

    assert encode_term_blocks(terms, docs, sketches, num_partitions=1) == [worked_example("term-block")]


def test_pair_block_example_decodes() -> None:
    """The worked pair block decodes to the pairs and shared terms that the text names."""
    pairs, shared_terms = decode_pair_blocks([worked_example("pair-block")])

    assert pairs.tolist() == [[5, 300], [5, 301], [130, 131]]
    assert shared_terms.tolist() == [2, 1, 200]


def test_pair_block_example_is_what_encoding_writes() -> None:
    """Encoding the pairs that the text names writes the worked pair block."""
    pairs = np.array([[5, 300], [5, 301], [130, 131]], dtype=np.uint64)
    shared_terms = np.array([2, 1, 200], dtype=np.uint32)

    assert encode_pair_block(pairs, shared_terms) == worked_example("pair-block")


def test_posting_lists_example_decodes() -> None:
    """The worked posting lists decode to the postings of the worked term block."""
    postings = PostingLists.from_frame(worked_example("posting-lists")).buckets().postings()
    expected = decode_term_blocks([worked_example("term-block")])

    for name in ("terms", "doc_rows", "docs", "sketches"):
        assert getattr(postings, name).tolist() == getattr(expected, name).tolist()


def test_posting_lists_example_is_what_encoding_writes() -> None:
    """The lists of the worked term block are the worked posting lists."""
    lists = PostingLists.of(Buckets.of(decode_term_blocks([worked_example("term-block")])))

    assert b"".join(lists.frame()) == worked_example("posting-lists")
