"""Rules of pages: what is packed is found again, at every size, and damaged bytes are never trusted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsh.errors import FormatError
from lsh.redis_store.keys import CHUNK_BYTES, MAX_INLINE_BYTES, slot_of, spread_tags
from lsh.redis_store.pages import brute_force_find_list, find_lists, pack_buckets, pack_names, unpack_names

SIZES = st.sampled_from([0, 1, 2, 127, 128, 129, MAX_INLINE_BYTES - 1, MAX_INLINE_BYTES, MAX_INLINE_BYTES + 1, 40_000])


@given(st.lists(SIZES, min_size=8, max_size=8), st.sampled_from([2, 8]), st.integers(0, 1 << 40))
def test_lists_are_found_where_they_were_packed(sizes: list[int], per_page: int, first_chunk: int) -> None:
    """Inline or by the number of their first chunk; the slow twin finds the same places."""
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint32)
    postings = np.random.default_rng(0).integers(256, size=int(offsets[-1]), dtype=np.uint8)
    packed = pack_buckets(offsets, postings, per_page=per_page, first_chunk=first_chunk)
    pages, buckets = np.divmod(np.arange(len(sizes)), per_page)

    found = find_lists(packed.data, packed.starts, pages, buckets, per_page=per_page)

    assert found.sizes.tolist() == sizes
    assert packed.long_buckets.tolist() == [bucket for bucket, size in enumerate(sizes) if size > MAX_INLINE_BYTES]
    chunk = first_chunk
    for bucket, size in enumerate(sizes):
        page = packed.data[packed.starts[pages[bucket]] : packed.starts[pages[bucket] + 1]].tobytes()
        start, twin_size = brute_force_find_list(page, int(buckets[bucket]), per_page)
        assert (start + packed.starts[pages[bucket]], twin_size) == (found.starts[bucket], size)
        if size > MAX_INLINE_BYTES:
            assert found.first_chunks[bucket] == chunk
            chunk += -(-size // CHUNK_BYTES)
        else:
            assert found.first_chunks[bucket] == -1
            expected = postings[offsets[bucket] : offsets[bucket + 1]]
            np.testing.assert_array_equal(packed.data[start + packed.starts[pages[bucket]] :][:size], expected)


def test_a_page_by_hand() -> None:
    """The bytes of docs/redis-format.md."""
    packed = pack_buckets(
        np.array([0, 1, 3, 3, 3], np.uint32), np.array([2, 0, 1], np.uint8), per_page=4, first_chunk=0
    )
    assert packed.data.tobytes() == bytes.fromhex("01 02 00 00 02 00 01")
    names = pack_names(np.array([1, 1, 2], np.uint32), [b"b.jpg", b"a.jpg", "ü.jpg".encode()])
    assert names == bytes.fromhex(
        "01000000 01000000 02000000 05000000 0a000000 10000000 62 2e 6a 70 67 61 2e 6a 70 67 c3 bc 2e 6a 70 67"
    )


def test_damaged_pages_are_refused_or_stay_within_their_bytes() -> None:
    """Every byte of a page replaced and every length of it: no list reaches beyond the page."""
    offsets = np.array([0, 3, 3, 200, 2000], np.uint32)
    page = pack_buckets(offsets, np.zeros(2000, np.uint8), per_page=4, first_chunk=7).data.tobytes()
    damaged = [page[:i] + bytes([value]) + page[i + 1 :] for i in range(len(page)) for value in (0, 0x7F, 0xFF)]
    num_refused = 0
    for content in [*damaged, *(page[:size] for size in range(len(page)))]:
        data = np.frombuffer(content, np.uint8)
        try:
            found = find_lists(data, np.array([0, data.size]), np.zeros(4, np.int64), np.arange(4), per_page=4)
        except FormatError:
            num_refused += 1
            continue
        sizes = np.where(found.first_chunks < 0, found.sizes, 8)
        assert (found.starts + sizes).max() <= data.size
    assert num_refused > len(page) // 2


@given(st.lists(st.text(max_size=40).map(str.encode), min_size=1, max_size=64))
def test_names_are_unpacked_as_they_were_packed(texts: list[bytes]) -> None:
    """Empty ones, too; one byte more or less is refused."""
    canonicals = np.arange(len(texts), dtype=np.uint32)[::-1]
    page = pack_names(canonicals, texts)
    found_canonicals, found_texts = unpack_names(page, len(texts))
    assert found_texts == texts
    np.testing.assert_array_equal(found_canonicals, canonicals)
    for damaged in (page + b"x", page[:-1]):
        with pytest.raises(FormatError):
            unpack_names(damaged, len(texts))


@pytest.mark.parametrize("num_partitions", [1, 3, 12, 64])
def test_partitions_are_spread_over_the_slots(num_partitions: int) -> None:
    """Each has a slot in its own share of all slots, so that neighbours of a cluster carry alike."""
    slots = [slot_of(tag) for tag in spread_tags(41, num_partitions)]
    assert [slot * num_partitions // 16_384 for slot in slots] == list(range(num_partitions))
