"""An open generation in Redis: the same questions as of one in files, answered from pages.

Opening reads the manifest, the centroids and what scores pairs; all else is read when it is asked for. Only pages of
names are kept, a few thousand of them, because every answer's canonicals stand there.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lsh.errors import ParameterError
from lsh.index import layout
from lsh.index.views import Views
from lsh.redis_store.connection import Servers
from lsh.redis_store.keys import HASHED_IDS, NAMES, NAMES_PER_PAGE, StoredGeneration, flat_pages, num_name_pages
from lsh.redis_store.pages import HASHED_ID, hash_of, unpack_names
from lsh.redis_store.reading import Pages

_MAX_KEPT_NAME_PAGES: Final = 4096

_NamePage = tuple[NDArray[np.uint32], list[bytes]]


class RedisGeneration:
    """One immutable index in Redis. `docs` are int64 in `0..num_docs - 1`. Every method may raise StoreError."""

    def __init__(self, servers: Servers, stored: StoredGeneration) -> None:
        self.manifest = stored.manifest
        self.pages = Pages(servers, stored)
        centroids = np.frombuffer(self.pages.whole(layout.CENTROIDS), dtype="<f4")
        self.coarse_centroids: NDArray[np.float32] = centroids.reshape(-1, self.manifest.dim)
        self.views = Views(self.manifest, owners=self._owners, codes=self._distinct_codes)
        self.folder = Path(tempfile.mkdtemp(prefix="neardup-scorer-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        for name in layout.SCORER_FILES:
            if name in self.manifest.files:
                (self.folder / name).write_bytes(self.pages.whole(name))
        heads_per_page = flat_pages(self.manifest.dim)[layout.CLUSTER_CANONICALS].rows_per_page
        self._first_heads = self._heads(np.arange(0, self.manifest.num_clusters, heads_per_page))
        self._heads_per_page = heads_per_page
        self._name_pages: dict[int, _NamePage] = {}

    def doc_of(self, image_id: str) -> int | None:
        """The doc of an image id, None if the generation has none."""
        doc = int(self.docs_of([image_id])[0])
        return None if doc < 0 else doc

    def docs_of(self, image_ids: Sequence[str]) -> NDArray[np.int64]:
        """The doc of each image id, `(m,)` int64, -1 where the generation has none."""
        texts = [image_id.encode() for image_id in image_ids]
        hashes = [hash_of(text) for text in texts]
        wanted = [number % num_name_pages(self.manifest.num_docs) for number, _ in hashes]
        pages = sorted(set(wanted))
        entries = dict(zip(pages, self.pages.read(HASHED_IDS, pages), strict=True))
        candidates = [
            np.frombuffer(entries[page], dtype=HASHED_ID)["doc"][
                np.frombuffer(entries[page], dtype=HASHED_ID)["fingerprint"] == fingerprint
            ].tolist()
            for page, (_, fingerprint) in zip(wanted, hashes, strict=True)
        ]
        names = self._names(sorted({doc // NAMES_PER_PAGE for docs in candidates for doc in docs}))
        found = np.full(len(texts), -1, dtype=np.int64)
        for position, (text, docs) in enumerate(zip(texts, candidates, strict=True)):
            for doc in docs:
                if names[doc // NAMES_PER_PAGE][1][doc % NAMES_PER_PAGE] == text:
                    found[position] = doc
        return found

    def image_ids(self, docs: NDArray[np.int64]) -> list[str]:
        """The image id of each doc."""
        wanted = self._checked(docs).tolist()
        names = self._names(sorted({doc // NAMES_PER_PAGE for doc in wanted}))
        return [names[doc // NAMES_PER_PAGE][1][doc % NAMES_PER_PAGE].decode() for doc in wanted]

    def canonicals(self, docs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The doc of the canonical of each doc, itself when it stands alone."""
        wanted = self._checked(docs).tolist()
        names = self._names(sorted({doc // NAMES_PER_PAGE for doc in wanted}))
        return np.array([names[doc // NAMES_PER_PAGE][0][doc % NAMES_PER_PAGE] for doc in wanted], dtype=np.int64)

    def codes(self, docs: NDArray[np.int64]) -> NDArray[np.int8]:
        """The codes of `docs`, `(m, dim)` int8."""
        codes, rows = self._distinct_codes(self._checked(docs))
        return codes[rows]

    def cluster_size(self, canonical: int) -> int:
        """How many images match `canonical`, itself included; 1 when it stands alone or is not a canonical."""
        start, end = self._cluster(canonical)
        return max(1, end - start)

    def members(self, canonical: int, *, offset: int, limit: int) -> NDArray[np.int64]:
        """A page of a cluster's docs: the canonical first, then the others by score; raises ParameterError."""
        if offset < 0 or limit < 1:
            raise ParameterError(f"offset={offset} and limit={limit} are out of range; pass offset >= 0 and limit >= 1")
        start, end = self._cluster(canonical)
        if start == end:
            return np.full(min(1, max(0, 1 - offset)), canonical, dtype=np.int64)
        rows = np.arange(min(start + offset, end), min(start + offset + limit, end))
        return self.pages.rows(layout.CLUSTER_MEMBERS, rows).view("<u4").ravel().astype(np.int64)

    def _distinct_codes(self, docs: NDArray[np.int64]) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
        distinct, rows = np.unique(docs, return_inverse=True)
        return self.pages.rows(layout.CODES, distinct).view(np.int8), rows

    def _owners(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        distinct, place = np.unique(places, return_inverse=True)
        return self.pages.rows(layout.VIEW_OWNERS, distinct).view("<u4").ravel().astype(np.int64)[place]

    def _cluster(self, canonical: int) -> tuple[int, int]:
        """Where the members of `canonical` start and end; an empty range when it has none but itself."""
        self._checked(np.array([canonical]))
        page = int(np.searchsorted(self._first_heads, canonical, side="right")) - 1
        if page < 0:
            return 0, 0
        first = page * self._heads_per_page
        heads = self._heads(np.arange(first, min(first + self._heads_per_page, self.manifest.num_clusters)))
        position = int(np.searchsorted(heads, canonical))
        if position == heads.size or int(heads[position]) != canonical:
            return 0, 0
        rows = np.array([first + position, first + position + 1])
        start, end = self.pages.rows(layout.CLUSTER_STARTS, rows).view("<u8").ravel().tolist()
        return start, end

    def _heads(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.pages.rows(layout.CLUSTER_CANONICALS, rows).view("<u4").ravel().astype(np.int64)

    def _names(self, pages: Sequence[int]) -> dict[int, _NamePage]:
        """Pages of names by number, kept or read."""
        names = {page: kept for page in pages if (kept := self._name_pages.get(page)) is not None}
        missing = [page for page in pages if page not in names]
        if missing:
            if len(self._name_pages) + len(missing) > _MAX_KEPT_NAME_PAGES:
                self._name_pages.clear()
            for page, content in zip(missing, self.pages.read(NAMES, missing), strict=True):
                num_docs = min(NAMES_PER_PAGE, self.manifest.num_docs - page * NAMES_PER_PAGE)
                names[page] = unpack_names(content, num_docs)
            self._name_pages.update((page, names[page]) for page in missing)
        return names

    def _checked(self, docs: NDArray[np.int64]) -> NDArray[np.int64]:
        if docs.size and not 0 <= int(docs.min()) <= int(docs.max()) < self.manifest.num_docs:
            raise ParameterError(
                f"docs hold {int(docs.min())}..{int(docs.max())}, out of range 0..{self.manifest.num_docs - 1}"
            )
        return docs
