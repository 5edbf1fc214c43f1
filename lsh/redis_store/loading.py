"""Whole generations into Redis and out of it again: export, import, verification, removal.

An export writes pages under a number that no other export has, reads everything back, compares it with the manifest's
digests, and only then enters the generation. What reads a generation back gives the bytes of its files, so a digest
is proof.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from operator import methodcaller
from pathlib import Path
from typing import Final

import numpy as np
import redis
from numpy.typing import NDArray

from lsh.errors import FormatError, GenerationError
from lsh.index import layout
from lsh.index.generation import Generation
from lsh.index.layout import Parts
from lsh.index.manifest import MANIFEST_NAME, Manifest
from lsh.redis_store import keys as key
from lsh.redis_store.connection import Servers
from lsh.redis_store.keys import StoredGeneration, buckets_per_page, flat_pages
from lsh.redis_store.pages import HASHED_ID, find_lists, hash_of, pack_buckets, pack_names, unpack_names
from lsh.redis_store.reading import Pages

PAGES_AT_ONCE: Final = 1024
_BATCH_BYTES: Final = 1 << 20

Page = tuple[int, bytes]
Advance = Callable[[int], object]


def count_chunks(generation: Generation) -> int:
    """How many chunks the long posting lists of a generation take."""
    width = generation.parts.buckets_per_part + 1
    total = 0
    for offsets in generation.array(layout.POSTING_OFFSETS).reshape(-1, width):
        sizes = np.diff(offsets.astype(np.int64))
        total += int((-(-sizes[sizes > key.MAX_INLINE_BYTES] // key.CHUNK_BYTES)).sum())
    return total


def write_pages(servers: Servers, stored: StoredGeneration, generation: Generation, *, advance: Advance) -> None:
    """Write every page of a generation; `advance` is called with the bytes written. Raises StoreError."""
    writer = _PageWriter(servers, stored, advance)
    for letter, page, content in _pages_of(generation):
        writer.add(letter, page, content)
    writer.flush()


def read_files(servers: Servers, stored: StoredGeneration) -> Iterator[tuple[str, bytes]]:
    """The bytes of every file of a stored generation: `(name, next bytes)`, some files by turns.

    Raises StoreError for a missing page, FormatError for a damaged one.
    """
    pages = Pages(servers, stored)
    for name, flat in flat_pages(stored.manifest.dim).items():
        if name in stored.manifest.files:
            yield name, b""  # a file of no bytes is a file, too
            for content in _in_batches(pages, flat.letter, flat.num_pages(stored.manifest.files[name].size_bytes)):
                yield name, b"".join(content)
    yield from _posting_files(pages)
    yield from _name_files(pages)


def verify_pages(servers: Servers, stored: StoredGeneration) -> None:
    """Read every page and compare what they give with the manifest's digests; raises GenerationError, StoreError."""
    digests = {name: hashlib.sha256() for name in stored.manifest.files}
    try:
        for name, content in read_files(servers, stored):
            digests[name].update(content)
    except FormatError as error:
        raise _damaged(stored.manifest, servers, str(error)) from error
    for name, entry in stored.manifest.files.items():
        if digests[name].hexdigest() != entry.sha256:
            raise _damaged(stored.manifest, servers, f"{name} has SHA-256 {digests[name].hexdigest()[:16]}...")


def write_folder(servers: Servers, stored: StoredGeneration, folder: Path) -> None:
    """Write the files of a stored generation into an empty folder."""
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in stored.manifest.files}
        for name, content in read_files(servers, stored):
            files[name].write(content)
    (folder / MANIFEST_NAME).write_bytes(stored.manifest.to_bytes())


def remove_pages(servers: Servers, stored: StoredGeneration) -> None:
    """Delete every page of a generation."""
    for letter, num_pages in stored.num_pages().items():
        for start in range(0, num_pages, PAGES_AT_ONCE):
            pages = range(start, min(start + PAGES_AT_ONCE, num_pages))
            groups: dict[int, list[bytes]] = {}
            for page, name in zip(pages, stored.keys(letter, pages), strict=True):
                groups.setdefault(page % len(stored.tags), []).append(name)
            for partition, names in groups.items():
                unlink: Callable[[redis.Redis], object] = methodcaller("unlink", *names)
                servers.call(stored.tags[partition], unlink)


class _PageWriter:
    """Collects pages by partition and writes them by MSET, a mebibyte at a time."""

    def __init__(self, servers: Servers, stored: StoredGeneration, advance: Advance) -> None:
        self._servers = servers
        self._stored = stored
        self._advance = advance
        self._waiting: list[dict[bytes, bytes]] = [{} for _ in stored.tags]
        self._num_bytes = [0] * len(stored.tags)

    def add(self, letter: bytes, page: int, content: bytes) -> None:
        partition = page % len(self._stored.tags)
        self._waiting[partition][self._stored.keys(letter, (page,))[0]] = content
        self._num_bytes[partition] += len(content)
        if self._num_bytes[partition] >= _BATCH_BYTES:
            self._write(partition)

    def flush(self) -> None:
        for partition in range(len(self._waiting)):
            self._write(partition)

    def _write(self, partition: int) -> None:
        batch = self._waiting[partition]
        if batch:
            write: Callable[[redis.Redis], object] = methodcaller("mset", batch)
            self._servers.call(self._stored.tags[partition], write)
            self._advance(self._num_bytes[partition])
        self._waiting[partition], self._num_bytes[partition] = {}, 0


def _pages_of(generation: Generation) -> Iterator[tuple[bytes, int, bytes]]:
    """Every page of a generation: letter, number, content."""
    manifest = generation.manifest
    for name, flat in flat_pages(manifest.dim).items():
        if name not in manifest.files:
            continue
        content = np.memmap(generation.folder / name, mode="r") if manifest.files[name].size_bytes else b""
        for page in range(flat.num_pages(len(content))):
            yield flat.letter, page, bytes(content[page * flat.page_bytes : (page + 1) * flat.page_bytes])
    yield from _posting_pages(generation)
    yield from _name_pages(generation)


def _posting_pages(generation: Generation) -> Iterator[tuple[bytes, int, bytes]]:
    parts, per_page = generation.parts, buckets_per_page(generation.manifest.term_params)
    all_offsets = generation.array(layout.POSTING_OFFSETS).reshape(parts.num_parts, -1)
    starts, postings = generation.array(layout.PART_STARTS), generation.array(layout.POSTINGS)
    next_chunk, next_page = 0, 0
    for part, offsets in enumerate(all_offsets):
        content = postings[int(starts[part]) : int(starts[part + 1])]
        packed = pack_buckets(offsets, content, per_page=per_page, first_chunk=next_chunk)
        data = packed.data.tobytes()
        for start, end in pairwise(packed.starts.tolist()):
            yield key.BUCKETS, next_page, data[start:end]
            next_page += 1
        for bucket in packed.long_buckets.tolist():
            long_list = content[int(offsets[bucket]) : int(offsets[bucket + 1])].tobytes()
            for start in range(0, len(long_list), key.CHUNK_BYTES):
                yield key.CHUNKS, next_chunk, long_list[start : start + key.CHUNK_BYTES]
                next_chunk += 1


def _name_pages(generation: Generation) -> Iterator[tuple[bytes, int, bytes]]:
    """Pages of names, then those of docs by the hash of their image id."""
    num_docs = generation.manifest.num_docs
    num_pages = key.num_name_pages(num_docs)
    starts, text = generation.array(layout.IMAGE_ID_STARTS), generation.array(layout.IMAGE_IDS)
    canonicals = generation.array(layout.CANONICALS)
    hashed = _HashedIds(num_docs)
    for page in range(num_pages):
        first, last = page * key.NAMES_PER_PAGE, min((page + 1) * key.NAMES_PER_PAGE, num_docs)
        bounds = starts[first : last + 1].astype(np.int64)
        content = text[int(bounds[0]) : int(bounds[-1])].tobytes()
        texts = [content[start:end] for start, end in pairwise((bounds - bounds[0]).tolist())]
        hashed.add(texts)
        yield key.NAMES, page, pack_names(canonicals[first:last], texts)
    for page, content in enumerate(hashed.pages()):
        yield key.HASHED_IDS, page, content


class _HashedIds:
    """Image ids, given in the order of docs, by the page that their hash chooses."""

    def __init__(self, num_docs: int) -> None:
        self._num_pages = key.num_name_pages(num_docs)
        self._page_of = np.empty(num_docs, dtype=np.uint32)
        self._entries = np.empty(num_docs, dtype=HASHED_ID)
        self._entries["doc"] = np.arange(num_docs)
        self._num = 0

    def add(self, texts: Iterable[bytes]) -> None:
        for text in texts:
            number, fingerprint = hash_of(text)
            self._page_of[self._num] = number % self._num_pages
            self._entries["fingerprint"][self._num] = fingerprint
            self._num += 1

    def pages(self) -> Iterator[bytes]:
        order = np.argsort(self._page_of, kind="stable")
        ends = np.searchsorted(self._page_of[order], np.arange(self._num_pages + 1))
        for start, end in pairwise(ends.tolist()):
            yield self._entries[order[start:end]].tobytes()


def _in_batches(pages: Pages, letter: bytes, num_pages: int) -> Iterator[list[bytes]]:
    for start in range(0, num_pages, PAGES_AT_ONCE):
        yield pages.read(letter, range(start, min(start + PAGES_AT_ONCE, num_pages)))


def _posting_files(pages: Pages) -> Iterator[tuple[str, bytes]]:
    """The three files of posting lists, part by part."""
    params = pages.stored.manifest.term_params
    parts, per_page = Parts.of(params), buckets_per_page(params)
    pages_per_part = parts.buckets_per_part // per_page
    total = 0
    yield layout.PART_STARTS, total.to_bytes(8, "little")
    yield layout.POSTINGS, b""
    for part in range(parts.num_parts):
        contents = pages.read(key.BUCKETS, range(part * pages_per_part, (part + 1) * pages_per_part))
        starts = np.zeros(len(contents) + 1, dtype=np.int64)
        np.cumsum([len(content) for content in contents], out=starts[1:])
        data = b"".join(contents)
        buckets = np.arange(parts.buckets_per_part)
        found = find_lists(
            np.frombuffer(data, dtype=np.uint8), starts, buckets // per_page, buckets % per_page, per_page=per_page
        )
        offsets = np.zeros(buckets.size + 1, dtype=np.int64)
        np.cumsum(found.sizes, out=offsets[1:])
        postings = _lists(pages, data, found.starts, found.sizes, found.first_chunks)
        total += len(postings)
        yield layout.POSTINGS, postings
        yield layout.POSTING_OFFSETS, offsets.astype("<u4").tobytes()
        yield layout.PART_STARTS, total.to_bytes(8, "little")


def _lists(
    pages: Pages, data: bytes, starts: NDArray[np.int64], sizes: NDArray[np.int64], first_chunks: NDArray[np.int64]
) -> bytes:
    """The bytes of lists one after the other, those in chunks fetched."""
    lists = []
    for start, size, chunk in zip(starts.tolist(), sizes.tolist(), first_chunks.tolist(), strict=True):
        if chunk < 0:
            lists.append(data[start : start + size])
        else:
            lists += pages.read(key.CHUNKS, range(chunk, chunk - (-size // key.CHUNK_BYTES)))
    return b"".join(lists)


def _name_files(pages: Pages) -> Iterator[tuple[str, bytes]]:
    """The four files of names; compares the pages of hashed ids on the way."""
    num_docs = pages.stored.manifest.num_docs
    num_pages = key.num_name_pages(num_docs)
    hashed, all_texts, end = _HashedIds(num_docs), [], 0
    yield layout.IMAGE_ID_STARTS, end.to_bytes(8, "little")
    yield layout.IMAGE_IDS, b""
    for start in range(0, num_pages, PAGES_AT_ONCE):
        contents = pages.read(key.NAMES, range(start, min(start + PAGES_AT_ONCE, num_pages)))
        for page, content in enumerate(contents, start):
            num_names = min(key.NAMES_PER_PAGE, num_docs - page * key.NAMES_PER_PAGE)
            canonicals, texts = unpack_names(content, num_names)
            hashed.add(texts)
            all_texts += texts
            ends = end + np.cumsum([len(text) for text in texts], dtype=np.int64)
            end = int(ends[-1])
            yield layout.CANONICALS, canonicals.tobytes()
            yield layout.IMAGE_IDS, b"".join(texts)
            yield layout.IMAGE_ID_STARTS, ends.astype("<u8").tobytes()
    order = sorted(range(num_docs), key=all_texts.__getitem__)
    yield layout.DOCS_BY_IMAGE_ID, np.array(order, dtype="<u4").tobytes()
    expected = hashed.pages()
    for contents in _in_batches(pages, key.HASHED_IDS, num_pages):
        for content in contents:
            if content != next(expected):
                raise FormatError("a page of hashed image ids does not fit the names")


def _damaged(manifest: Manifest, servers: Servers, problem: str) -> GenerationError:
    return GenerationError(
        f"generation {manifest.generation_id} in {servers.url} is damaged: {problem}; remove it with "
        "`neardup index gc` and export it again"
    )
