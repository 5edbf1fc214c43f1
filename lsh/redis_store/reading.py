"""Pages of one generation, read as arrays: the only door between the code that answers and the servers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lsh.errors import StoreError
from lsh.redis_store.connection import Servers
from lsh.redis_store.keys import StoredGeneration, flat_pages


class Pages:
    """Reads the pages of a stored generation. Safe to use from several threads."""

    def __init__(self, servers: Servers, stored: StoredGeneration) -> None:
        self.servers = servers
        self.stored = stored
        self._flat = flat_pages(stored.manifest.dim)

    def read(self, letter: bytes, pages: Sequence[int]) -> list[bytes]:
        """Pages by number, in one round trip to each server; raises StoreError when one is missing."""
        keys, tags = self.stored.keys(letter, pages), self.stored.tags
        if len(tags) == 1:
            values = self.servers.fetch([(tags[0], keys)])[0] if keys else []
        else:
            values = self._read_partitions(keys, [page % len(tags) for page in pages])
        found = [value for value in values if value is not None]
        if len(found) < len(values):
            missing = keys[values.index(None)].decode()
            raise StoreError(
                f"page {missing} of generation {self.stored.manifest.generation_id} is not in {self.servers.url}; was "
                "the generation removed, or the page evicted? Set maxmemory-policy noeviction and export it again"
            )
        return found

    def rows(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Rows `(m,)`, ascending, of an array that is kept as it lies: `(m, row_bytes)` uint8."""
        flat = self._flat[name]
        pages, place = np.unique(rows // flat.rows_per_page, return_inverse=True)
        size_bytes = self.stored.manifest.files[name].size_bytes
        content = b"".join(self.read(flat.letter, pages.tolist()))
        # Every page is whole but the last one of the array, and that can only be the last one here.
        expected = int(np.minimum((pages + 1) * flat.page_bytes, size_bytes).sum() - (pages * flat.page_bytes).sum())
        if len(content) != expected:
            raise StoreError(
                f"pages of {name} in {self.servers.url} have {len(content)} bytes, expected {expected}; "
                "verify the generation"
            )
        all_rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, flat.row_bytes)
        found: NDArray[np.uint8] = all_rows[place * flat.rows_per_page + rows % flat.rows_per_page]
        return found

    def whole(self, name: str) -> bytes:
        """A small array or file, all of it."""
        flat = self._flat[name]
        return b"".join(self.read(flat.letter, range(flat.num_pages(self.stored.manifest.files[name].size_bytes))))

    def _read_partitions(self, keys: Sequence[bytes], partitions: Iterable[int]) -> list[bytes | None]:
        places: dict[int, list[int]] = {}
        for place, partition in enumerate(partitions):
            places.setdefault(partition, []).append(place)
        tags = self.stored.tags
        groups = [(tags[partition], [keys[place] for place in group]) for partition, group in places.items()]
        values: list[bytes | None] = [None] * len(keys)
        for group, found in zip(places.values(), self.servers.fetch(groups), strict=True):
            for place, value in zip(group, found, strict=True):
                values[place] = value
        return values
