"""The bytes of pages: buckets with their posting lists, names with canonicals, docs by the hash of their image id.

Pure functions between arrays and bytes; `docs/redis-format.md` shows pages by hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.errors import FormatError
from lsh.redis_store.keys import CHUNK_BYTES, MAX_INLINE_BYTES

_CHUNK_NUMBER_BYTES: Final = 8
HASHED_ID: Final = np.dtype([("doc", "<u4"), ("fingerprint", "<u4")])


class PackedBuckets(NamedTuple):
    """Pages `data[starts[i] : starts[i + 1]]`, and the buckets whose lists are too long for them, `(num_long,)`."""

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    long_buckets: NDArray[np.int64]


class FoundLists(NamedTuple):
    """For each wanted bucket: where its list starts in the pages' bytes, its size, its first chunk or -1."""

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    first_chunks: NDArray[np.int64]


def pack_buckets(
    offsets: NDArray[np.uint32], postings: NDArray[np.uint8], *, per_page: int, first_chunk: int
) -> PackedBuckets:
    """Pages of `per_page` buckets each from a part's `offsets` `(num_buckets + 1,)` and `postings`.

    A page has the sizes of its lists in variable bytes, then the lists; in place of one longer than 1,024 bytes, the
    number of its first chunk, counted from `first_chunk`, in 8 bytes.
    """
    sizes = np.diff(offsets.astype(np.int64))
    data = np.empty(5 * sizes.size + int(np.minimum(sizes, MAX_INLINE_BYTES).sum()), dtype=np.uint8)
    starts = np.zeros(sizes.size // per_page + 1, dtype=np.int64)
    used = _pack_buckets(sizes, offsets, postings, per_page, first_chunk, data, starts)
    return PackedBuckets(data[:used], starts, np.flatnonzero(sizes > MAX_INLINE_BYTES))


def find_lists(
    data: NDArray[np.uint8],
    page_starts: NDArray[np.int64],
    pages: NDArray[np.int64],
    buckets: NDArray[np.int64],
    *,
    per_page: int,
) -> FoundLists:
    """The lists of bucket `buckets[i]` of page `pages[i]` of those in `data`; raises FormatError for damaged bytes."""
    found = FoundLists(*(np.empty(pages.size, dtype=np.int64) for _ in range(3)))
    if not _find_lists(data, page_starts, pages, buckets, per_page, found):
        raise FormatError("a page of posting lists is damaged; verify the generation with `neardup index verify`")
    return found


def brute_force_find_list(page: bytes, bucket: int, per_page: int) -> tuple[int, int]:
    """The slow twin of `find_lists` for one page: where the list of `bucket` starts, and its size."""
    sizes, position = [], 0
    for _ in range(per_page):
        size, bits = 0, 0
        while True:
            byte = page[position]
            size |= (byte & 0x7F) << bits
            position, bits = position + 1, bits + 7
            if byte < 0x80:
                break
        sizes.append(size)
    inline = [_CHUNK_NUMBER_BYTES if size > MAX_INLINE_BYTES else size for size in sizes]
    return position + sum(inline[:bucket]), sizes[bucket]


def pack_names(canonicals: NDArray[np.uint32], texts: Sequence[bytes]) -> bytes:
    """A page of names: the canonical doc of each, where its image id ends, then the image ids."""
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64).astype("<u4")
    return canonicals.astype("<u4").tobytes() + ends.tobytes() + b"".join(texts)


def unpack_names(page: bytes, num_docs: int) -> tuple[NDArray[np.uint32], list[bytes]]:
    """The canonical docs and image ids of a page of one or more; raises FormatError for damaged bytes."""
    head = 8 * num_docs
    numbers = np.frombuffer(page[:head].ljust(head, b"\xff"), dtype="<u4")
    if head + int(numbers[-1]) != len(page):
        raise FormatError(f"a page of {len(page)} bytes does not hold {num_docs} names; verify the generation")
    bounds = [head, *(head + end for end in numbers[num_docs:].tolist())]
    return numbers[:num_docs], [page[start:end] for start, end in pairwise(bounds)]


def hash_of(text: bytes) -> tuple[int, int]:
    """64 bits that choose a page of hashed ids, and a fingerprint of 32 bits: BLAKE2b of an image id.

    >>> hash_of(b"a.jpg")
    (9514430451814336173, 2441426212)
    """
    digest = hashlib.blake2b(text, digest_size=12).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


@njit(cache=True, nogil=True)
def _pack_buckets(  # noqa: PLR0917 - numba kernels take their arrays one by one
    sizes: NDArray[np.int64],
    offsets: NDArray[np.uint32],
    postings: NDArray[np.uint8],
    per_page: int,
    first_chunk: int,
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
) -> int:
    position, chunk = 0, np.int64(first_chunk)
    for page in range(starts.size - 1):
        starts[page] = position
        for bucket in range(page * per_page, (page + 1) * per_page):
            size = sizes[bucket]
            while size >= 0x80:
                data[position] = (size & 0x7F) | 0x80
                size >>= 7
                position += 1
            data[position] = size
            position += 1
        for bucket in range(page * per_page, (page + 1) * per_page):
            size = sizes[bucket]
            if size > MAX_INLINE_BYTES:
                for byte in range(_CHUNK_NUMBER_BYTES):
                    data[position + byte] = (chunk >> (8 * byte)) & 0xFF
                position += _CHUNK_NUMBER_BYTES
                chunk += (size + CHUNK_BYTES - 1) // CHUNK_BYTES
                continue
            first = np.int64(offsets[bucket])
            for byte in range(size):
                data[position + byte] = postings[first + byte]
            position += size
    starts[-1] = position
    return position


@njit(cache=True, nogil=True)
def _find_lists(  # noqa: PLR0917 - numba kernels take their arrays one by one
    data: NDArray[np.uint8],
    page_starts: NDArray[np.int64],
    pages: NDArray[np.int64],
    buckets: NDArray[np.int64],
    per_page: int,
    found: FoundLists,
) -> bool:
    """Fills `found`; False if a list is not within its page."""
    for i in range(pages.size):
        position, end = page_starts[pages[i]], page_starts[pages[i] + 1]
        before, size = np.int64(0), np.int64(0)
        for bucket in range(per_page):
            value, bits, is_more = np.int64(0), 0, True
            while is_more:
                if position >= end or bits >= 35:
                    return False
                byte = np.int64(data[position])
                position += 1
                value |= (byte & 0x7F) << bits
                bits += 7
                is_more = bool(byte >= 0x80)
            if bucket < buckets[i]:
                before += value if value <= MAX_INLINE_BYTES else _CHUNK_NUMBER_BYTES
            elif bucket == buckets[i]:
                size = value
        start = position + before
        found.starts[i], found.sizes[i], found.first_chunks[i] = start, size, -1
        if start + min(size, _CHUNK_NUMBER_BYTES if size > MAX_INLINE_BYTES else size) > end:
            return False
        if size > MAX_INLINE_BYTES:
            chunk = np.int64(0)
            for place in range(_CHUNK_NUMBER_BYTES):
                chunk |= np.int64(data[start + place]) << (8 * place)
            if chunk < 0:
                return False
            found.first_chunks[i] = chunk
    return True
