"""Rules of the blocks of the shuffle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lsh.blocks import (
    PAIR_BLOCK,
    TERM_BLOCK,
    TermPostings,
    decode_pair_blocks,
    decode_term_blocks,
    encode_pair_block,
    encode_term_blocks,
    partition_of,
)
from lsh.errors import FormatError, ParameterError
from lsh.variable_byte import encode, encode_sorted

MAX_WORD = 2**64 - 1
small = st.integers(0, 6)
term = small | st.integers(0, MAX_WORD)
# Postings that fit in one word with their row, and those that do not.
signatures = st.dictionaries(st.integers(0, 300), st.tuples(small, small, small), max_size=25) | st.dictionaries(
    st.integers(0, 300) | st.integers(0, MAX_WORD), st.tuples(term, term, term), max_size=25
)


def words(values: Sequence[int]) -> NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)


def sketch_of(doc: int) -> list[int]:
    return [(doc * factor) & MAX_WORD for factor in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9)]


def sketches_of(docs: Sequence[int]) -> NDArray[np.uint64]:
    return np.array([sketch_of(doc) for doc in docs], dtype=np.uint64).reshape(len(docs), 2)


def blocks_of(terms_of: dict[int, tuple[int, int, int]], *, num_partitions: int) -> list[bytes]:
    docs = sorted(terms_of)
    terms = words([term for doc in docs for term in terms_of[doc]]).reshape(-1, 3)
    return encode_term_blocks(terms, words(docs), sketches_of(docs), num_partitions=num_partitions)


def postings_of(postings: TermPostings) -> list[tuple[int, int]]:
    return list(zip(postings.terms.tolist(), postings.docs[postings.doc_rows].tolist(), strict=True))


@given(signatures, st.integers(1, 9))
def test_each_posting_reaches_the_partition_of_its_term(
    terms_of: dict[int, tuple[int, int, int]], num_partitions: int
) -> None:
    """A partition gets exactly the postings whose term it owns, sorted, and their docs with their sketches."""
    for partition, block in enumerate(blocks_of(terms_of, num_partitions=num_partitions)):
        postings = decode_term_blocks([block])
        expected = sorted(
            {
                (term, doc)
                for doc, terms in terms_of.items()
                for term in terms
                if partition_of(words([term]), num_partitions)[0] == partition
            }
        )

        assert postings_of(postings) == expected
        assert postings.docs.tolist() == sorted({doc for _, doc in expected})
        assert postings.sketches.tolist() == [sketch_of(doc) for doc in postings.docs.tolist()]


@given(signatures, st.integers(1, 5), st.integers(1, 4))
def test_merged_blocks_equal_one_block_of_everything(
    terms_of: dict[int, tuple[int, int, int]], num_batches: int, num_partitions: int
) -> None:
    """However docs are spread over map tasks, a partition's merged postings are the same."""
    batches = [
        {doc: terms for number, (doc, terms) in enumerate(terms_of.items()) if number % num_batches == batch}
        for batch in range(num_batches)
    ]
    blocks = [blocks_of(batch, num_partitions=num_partitions) for batch in batches]
    for partition, whole_block in enumerate(blocks_of(terms_of, num_partitions=num_partitions)):
        merged = decode_term_blocks([batch[partition] for batch in blocks])
        whole = decode_term_blocks([whole_block])

        assert postings_of(merged) == postings_of(whole)
        assert merged.docs.tolist() == whole.docs.tolist()
        assert merged.sketches.tolist() == whole.sketches.tolist()


def test_a_block_given_twice_counts_once() -> None:
    """Merging is idempotent: a block that a retried task sent twice adds nothing."""
    (block,) = blocks_of({3: (1, 2, 3), 9: (1, 2, 7)}, num_partitions=1)

    assert postings_of(decode_term_blocks([block, block])) == postings_of(decode_term_blocks([block]))


def test_no_blocks_are_no_postings() -> None:
    """No blocks, and blocks of no docs, decode to empty arrays."""
    for blocks in ([], blocks_of({}, num_partitions=2)):
        postings = decode_term_blocks(blocks)

        assert postings.terms.size == postings.doc_rows.size == postings.docs.size == postings.sketches.size == 0


def test_partitions_are_even_and_golden() -> None:
    """A million consecutive terms spread evenly over 7 partitions, and the first go where they always went."""
    partitions = partition_of(np.arange(1_000_000, dtype=np.uint64), 7)

    assert np.abs(np.bincount(partitions) / 1_000_000 - 1 / 7).max() < 0.002
    assert partitions[:10].tolist() == [2, 2, 4, 2, 6, 3, 3, 2, 4, 2]


@pytest.mark.parametrize("num_partitions", [0, 65_537])
def test_a_number_of_partitions_out_of_range_raises(num_partitions: int) -> None:
    """1 to 65,536 partitions are allowed; anything else raises ParameterError."""
    with pytest.raises(ParameterError, match=f"num_partitions={num_partitions} is out of range 1..65536"):
        partition_of(words([1]), num_partitions)


def test_docs_must_ascend() -> None:
    """A batch with docs out of order or twice raises ParameterError."""
    for docs in ([5, 3], [5, 5]):
        with pytest.raises(ParameterError, match="distinct and ascending"):
            encode_term_blocks(words([1, 2]).reshape(2, 1), words(docs), sketches_of([0, 0]), num_partitions=1)


def test_arrays_of_a_batch_must_fit() -> None:
    """Terms, docs and sketches of different length raise ParameterError with the shapes."""
    with pytest.raises(ParameterError, match=r"terms \(2, 1\), docs \(1,\)"):
        encode_term_blocks(words([1, 2]).reshape(2, 1), words([5]), sketches_of([0, 0]), num_partitions=1)


@pytest.mark.parametrize("num_words", [0, 65])
def test_a_number_of_words_out_of_range_raises(num_words: int) -> None:
    """Sketches have 1 to 64 words."""
    with pytest.raises(ParameterError, match=f"words_per_sketch={num_words} is out of range 1..64"):
        encode_term_blocks(words([1]).reshape(1, 1), words([5]), np.zeros((1, num_words), np.uint64), num_partitions=1)


def test_blocks_with_sketches_of_different_width_raise() -> None:
    """Blocks of runs that sketched with different numbers of words cannot be merged."""
    blocks = [
        encode_term_blocks(words([1]).reshape(1, 1), words([5]), np.zeros((1, width), np.uint64), num_partitions=1)[0]
        for width in (1, 4)
    ]

    with pytest.raises(FormatError, match=r"sketches of \[1, 4\] words"):
        decode_term_blocks(blocks)


def test_one_doc_with_two_sketches_raises() -> None:
    """Two blocks that disagree about a doc's sketch raise FormatError with the doc."""
    blocks = [
        encode_term_blocks(words([7]).reshape(1, 1), words([42]), sketches_of([sketch]), num_partitions=1)[0]
        for sketch in (1, 2)
    ]

    with pytest.raises(FormatError, match="doc 42 has different sketches"):
        decode_term_blocks(blocks)


def damaged_frames(frame: bytes) -> list[bytes]:
    """The frame cut at each byte, extended, and with each bit flipped."""
    flipped = [
        frame[: bit // 8] + bytes([frame[bit // 8] ^ 1 << bit % 8]) + frame[bit // 8 + 1 :]
        for bit in range(8 * len(frame))
    ]
    return [frame[:size] for size in range(len(frame))] + [frame + b"\0"] + flipped


def test_every_damage_to_a_term_block_raises() -> None:
    """A term block truncated at any byte, extended, or with any bit flipped raises FormatError."""
    (block,) = blocks_of({3: (1, 2, 300), 900: (1, 2, 7)}, num_partitions=1)
    for damaged in damaged_frames(block):
        with pytest.raises(FormatError):
            decode_term_blocks([damaged])


def test_every_damage_to_a_pair_block_raises() -> None:
    """A pair block truncated at any byte, extended, or with any bit flipped raises FormatError."""
    block = encode_pair_block(words([5, 300, 5, 301, 130, 131]).reshape(3, 2), np.array([2, 1, 200], dtype=np.uint32))
    for damaged in damaged_frames(block):
        with pytest.raises(FormatError):
            decode_pair_blocks([damaged])


@pytest.mark.parametrize(
    ("docs", "terms", "rows", "message"),
    [
        ([3, 9], [1, 1], [0, 2], "doc row 2, the term block has 2 docs"),
        ([3, 9], [1, 1], [1, 0], "postings must be distinct, ascending"),
        ([3, 9], [1, 1], [1, 1], "postings must be distinct, ascending"),
        ([3, 3], [1, 1], [0, 1], "docs of postings must be distinct and ascending"),
    ],
)
def test_unsound_term_blocks_with_a_right_checksum_raise(
    docs: list[int], terms: list[int], rows: list[int], message: str
) -> None:
    """Rows out of range, and docs or postings out of order, raise FormatError even if the checksum holds."""
    sections = [encode_sorted(words(docs)), encode_sorted(words(terms)), encode(words(rows))]
    counts = [len(docs), len(terms), *(section.size for section in sections), 1]
    block = TERM_BLOCK.pack(counts, [*sections, np.zeros(len(docs), dtype="<u8")])

    with pytest.raises(FormatError, match=message):
        decode_term_blocks([block])


@pytest.mark.parametrize(
    ("lefts", "right_gaps", "shared_terms", "message"),
    [
        ([5], [0], [1], "pair 0 of a pair block is out of order"),
        ([5, 5], [1, 0], [1, 1], "pair 1 of a pair block is out of order"),
        ([5], [MAX_WORD], [1], "pair 0 of a pair block is out of order or over 64 bits"),
        ([5], [1], [0], "shared_terms out of range 1.."),
        ([5], [1], [2**32], "shared_terms out of range 1.."),
    ],
)
def test_unsound_pair_blocks_with_a_right_checksum_raise(
    lefts: list[int], right_gaps: list[int], shared_terms: list[int], message: str
) -> None:
    """Pairs out of order, over 64 bits, or with impossible counts raise FormatError even if the checksum holds."""
    sections = [encode_sorted(words(lefts)), encode(words(right_gaps)), encode(words(shared_terms))]
    block = PAIR_BLOCK.pack([len(lefts), *(section.size for section in sections)], sections)

    with pytest.raises(FormatError, match=message):
        decode_pair_blocks([block])


def counted_pairs_of(docs: st.SearchStrategy[int], counts: st.SearchStrategy[int]) -> st.SearchStrategy[dict[Any, int]]:
    pairs = st.tuples(docs, docs).filter(lambda pair: pair[0] != pair[1]).map(lambda pair: (min(pair), max(pair)))
    return st.dictionaries(pairs, counts, max_size=30)


# Pairs that fit in one word with their shared terms, and those that do not.
counted_pairs = counted_pairs_of(st.integers(2**30, 2**30 + 9), small.filter(bool)) | counted_pairs_of(
    st.integers(0, 9) | st.integers(0, MAX_WORD), st.integers(1, 2**30)
)


def pair_block_of(counts: dict[tuple[int, int], int]) -> bytes:
    pairs = sorted(counts)
    array = words([doc for pair in pairs for doc in pair]).reshape(-1, 2)
    return encode_pair_block(array, np.array([counts[pair] for pair in pairs], dtype=np.uint32))


@given(st.lists(counted_pairs, max_size=3))
def test_pair_blocks_merge_to_distinct_pairs_with_summed_terms(parts: list[dict[tuple[int, int], int]]) -> None:
    """Merged blocks hold each pair once, ascending, with the sum of the terms it shares in all of them."""
    totals: dict[tuple[int, int], int] = {}
    for part in parts:
        for pair, count in part.items():
            totals[pair] = totals.get(pair, 0) + count
    pairs, shared_terms = decode_pair_blocks([pair_block_of(part) for part in parts])

    assert pairs.dtype == np.uint64
    assert shared_terms.dtype == np.uint32
    assert [tuple(pair) for pair in pairs.tolist()] == sorted(totals)
    assert shared_terms.tolist() == [totals[pair] for pair in sorted(totals)]


@given(st.lists(counted_pairs, max_size=3), st.sampled_from([0, 3, 2**30 + 2]), st.integers(0, 9))
def test_pair_blocks_are_read_for_some_left_docs(
    parts: list[dict[tuple[int, int], int]], first: int, num_docs: int
) -> None:
    """`lefts` leaves out the pairs of all other left docs and nothing else."""
    blocks = [pair_block_of(part) for part in parts]
    pairs, shared_terms = decode_pair_blocks(blocks)
    found = decode_pair_blocks(iter(blocks), lefts=range(first, first + num_docs))

    is_wanted = (pairs[:, 0] >= first) & (pairs[:, 0] < first + num_docs)
    np.testing.assert_array_equal(found[0], pairs[is_wanted])
    np.testing.assert_array_equal(found[1], shared_terms[is_wanted])


def test_shared_terms_over_32_bits_raise() -> None:
    """A pair whose shared terms add up to more than 32 bits raises FormatError instead of wrapping around."""
    block = encode_pair_block(words([1, 2]).reshape(1, 2), np.array([2**32 - 1], dtype=np.uint32))

    with pytest.raises(FormatError, match="a pair shares 8589934590 terms"):
        decode_pair_blocks([block, block])


@pytest.mark.parametrize("pairs", [[[2, 1]], [[1, 1]], [[1, 3], [1, 2]], [[1, 2], [1, 2]], [[2, 3], [1, 9]]])
def test_pairs_out_of_order_are_not_encoded(pairs: list[list[int]]) -> None:
    """Pairs that do not ascend, or whose left is not below their right, raise ParameterError."""
    with pytest.raises(ParameterError, match="left < right"):
        encode_pair_block(np.array(pairs, dtype=np.uint64), np.ones(len(pairs), dtype=np.uint32))


def test_shared_terms_of_zero_are_not_encoded() -> None:
    """A pair that shares no term is no candidate: it raises ParameterError."""
    with pytest.raises(ParameterError, match="shared_terms holds a zero"):
        encode_pair_block(words([1, 2]).reshape(1, 2), np.zeros(1, dtype=np.uint32))


@pytest.mark.parametrize(
    ("terms", "rows", "docs"), [([1], [0, 0], [5]), ([1], [0], [5, 6]), ([2, 1], [0, 0], [5]), ([1], [1], [5])]
)
def test_postings_are_validated(terms: list[int], rows: list[int], docs: list[int]) -> None:
    """Postings of unequal length, out of order or of rows out of range raise ParameterError."""
    with pytest.raises(ParameterError):
        TermPostings(words(terms), np.array(rows), words(docs), words([0]))
