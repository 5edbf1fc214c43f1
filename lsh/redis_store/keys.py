"""Where everything is in Redis: keys, pages and hash tags.

A generation's arrays are cut into pages of some hundred bytes: small, because a query needs hundreds of them whole, and
large enough that a key's own bytes do not matter. A page is found by a letter and its number. Page `n` belongs to
partition `n mod num_partitions`; the keys of a partition share a hash tag, so they lie in one slot of a cluster. Tags
are chosen so that the slots of the partitions are spread evenly.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from lsh.errors import GenerationError
from lsh.index import layout
from lsh.index.layout import Parts
from lsh.index.manifest import Manifest
from lsh.terms import TermParams

FORMAT_VERSION: Final = 1
BUCKETS_PER_PAGE: Final = 64
MAX_INLINE_BYTES: Final = 1024
"""A longer posting list is kept in chunks of its own, so that one crowded bucket does not weigh on its neighbours."""
CHUNK_BYTES: Final = 16_384
NAMES_PER_PAGE: Final = 64
NUM_SLOTS: Final = 16_384

BUCKETS: Final = b"b"
CHUNKS: Final = b"l"
NAMES: Final = b"n"
HASHED_IDS: Final = b"h"


@dataclass(frozen=True, slots=True)
class FlatPages:
    """An array kept as it lies, `row_bytes * rows_per_page` bytes a page under `letter`."""

    letter: bytes
    row_bytes: int
    rows_per_page: int

    @property
    def page_bytes(self) -> int:
        return self.row_bytes * self.rows_per_page

    def num_pages(self, size_bytes: int) -> int:
        """How many pages an array of `size_bytes` takes."""
        return -(-size_bytes // self.page_bytes)


def flat_pages(dim: int) -> dict[str, FlatPages]:
    """The arrays and files that are cut into pages as they are, by name.

    Redis adds four bytes to a page, and its allocator rounds up to 512, 640, ... 1,792, 2,048: pages stay just below.
    """
    return {
        layout.SKETCHES: FlatPages(b"s", 8 * layout.WORDS_PER_SKETCH, 15),
        layout.CODES: FlatPages(b"c", dim, 7),
        layout.CLUSTER_CANONICALS: FlatPages(b"k", 4, 1024),
        layout.CLUSTER_STARTS: FlatPages(b"t", 8, 512),
        layout.CLUSTER_MEMBERS: FlatPages(b"m", 4, 1024),
        layout.CENTROIDS: FlatPages(b"z", 4 * dim, 16),
        layout.VIEW_OWNERS: FlatPages(b"o", 4, 1024),
        layout.SCORER_FILES[0]: FlatPages(b"p", 1, 4096),
        layout.SCORER_FILES[1]: FlatPages(b"q", 1, 4096),
    }


def buckets_per_page(params: TermParams) -> int:
    """Neighbouring buckets in a page; a table of fewer buckets is one page."""
    return min(BUCKETS_PER_PAGE, Parts.of(params).buckets_per_part)


def num_bucket_pages(params: TermParams) -> int:
    parts = Parts.of(params)
    return parts.num_parts * parts.buckets_per_part // buckets_per_page(params)


def num_name_pages(num_docs: int) -> int:
    return -(-num_docs // NAMES_PER_PAGE)


@dataclass(frozen=True, slots=True)
class StoredGeneration:
    """What the store says of a generation: its manifest, the tags of its partitions, and how many chunks it has."""

    manifest: Manifest
    prefix: bytes
    tags: tuple[bytes, ...]
    num_chunks: int

    def keys(self, letter: bytes, pages: Iterable[int]) -> list[bytes]:
        """The keys of pages."""
        heads = [b"%b:{%b}%b" % (self.prefix, tag, letter) for tag in self.tags]
        num_tags = len(heads)
        if num_tags == 1:
            return [b"%b%d" % (heads[0], page) for page in pages]
        return [b"%b%d" % (heads[page % num_tags], page) for page in pages]

    def num_pages(self) -> dict[bytes, int]:
        """How many pages there are under each letter."""
        manifest = self.manifest
        flat = flat_pages(manifest.dim)
        num_names = num_name_pages(manifest.num_docs)
        return {
            BUCKETS: num_bucket_pages(manifest.term_params),
            CHUNKS: self.num_chunks,
            NAMES: num_names,
            HASHED_IDS: num_names,
        } | {
            pages.letter: pages.num_pages(manifest.files[name].size_bytes)
            for name, pages in flat.items()
            if name in manifest.files
        }

    def to_json(self) -> dict[str, Any]:
        """What the store keeps under the generation's id."""
        return {
            "format_version": FORMAT_VERSION,
            "tags": [tag.decode() for tag in self.tags],
            "num_chunks": self.num_chunks,
            "manifest": self.manifest.to_bytes().decode(),
        }

    @classmethod
    def from_json(cls, value: Any, *, prefix: bytes, generation_id: str) -> StoredGeneration:
        """Raises GenerationError for another version, or for bytes that are none of ours."""
        try:
            version = value["format_version"]
            if version != FORMAT_VERSION:
                raise GenerationError(
                    f"generation {generation_id} in Redis has format version {version}, this program reads "
                    f"{FORMAT_VERSION}; export it again with this program"
                )
            tags, num_chunks = tuple(tag.encode() for tag in value["tags"]), int(value["num_chunks"])
            manifest = Manifest.from_bytes(value["manifest"].encode(), name=f"generation {generation_id} in Redis")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise GenerationError(
                f"generation {generation_id} in Redis is damaged ({error!r}); remove it and export it again"
            ) from error
        if manifest.generation_id != generation_id or not tags:
            raise GenerationError(
                f"generation {generation_id} in Redis holds {manifest.generation_id}; export it again"
            )
        return cls(manifest, prefix, tags, num_chunks)


def spread_tags(number: int, num_partitions: int) -> tuple[bytes, ...]:
    """Hash tags of the partitions of the store's generation `number`, with slots spread evenly over a cluster.

    >>> spread_tags(7, 1), len(set(spread_tags(7, 12)))
    ((b'7.0',), 12)
    """
    tags = []
    for partition in range(num_partitions):
        first, last = (NUM_SLOTS * one // num_partitions for one in (partition, partition + 1))
        salt = partition
        while not first <= slot_of(tag := b"%d.%d" % (number, salt)) < last:
            salt += num_partitions
        tags.append(tag)
    return tuple(tags)


def slot_of(tag: bytes) -> int:
    """The slot of a cluster that keeps the keys of a hash tag: CRC-16/XMODEM, https://redis.io/docs/reference/cluster-spec.

    >>> slot_of(b"123456789") == 0x31C3
    True
    """
    return binascii.crc_hqx(tag, 0) % NUM_SLOTS
