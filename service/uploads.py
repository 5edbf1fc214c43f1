"""What was registered and removed since a generation was cut, as the served generation sees it.

Names, canonical images and clusters over the `live_index`; the log's entries are replayed into it, then applied as they
come. One thread changes it at a time, the engine sees to that; any number read.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import compress, count

import numpy as np
from numpy.typing import NDArray

from embed.views import NUM_VIEWS
from lsh.index.store import OpenGeneration
from service.live_index import LiveIndex
from service.upload_log import LogEntry, Registrations


class Uploads:
    """Images by row of the live index, and the generation's docs that were removed.

    Views have an index of their own: those of the image in row `owner_of_views[i]` of the other are its rows
    `NUM_VIEWS * i` to `NUM_VIEWS * (i + 1) - 1`.
    """

    def __init__(self, generation: OpenGeneration) -> None:
        self._generation = generation
        self.index = LiveIndex(generation.coarse_centroids)
        self.view_index = LiveIndex(generation.coarse_centroids)
        self.owner_of_views: list[int] = []
        self.is_removed: NDArray[np.bool_] = np.zeros(generation.manifest.num_docs, dtype=np.bool_)
        self.num_removed = 0
        self._row_of: dict[str, int] = {}
        self._views_of: dict[int, int] = {}
        self._image_ids: list[str] = []
        self._cluster_of: list[str] = []
        self._copies_of: dict[str, dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._row_of)

    def replay(self, removed_ids: Iterable[str], registered: Iterable[Registrations]) -> list[str]:
        """Take over a log; returns the image ids that the generation contains, which need not be live."""
        for image_id in removed_ids:
            self._remove_doc(image_id)
        contained: list[str] = []
        for block in registered:
            docs = self._generation.docs_of(block.image_ids)
            is_missing = (docs < 0) | self.is_removed[docs]
            contained += compress(block.image_ids, ~is_missing)
            missing = block if is_missing.all() else block.some(is_missing)
            for image_id in self._row_of.keys() & set(missing.image_ids):
                self._remove_row(image_id)  # one registered anew while the log was being read comes twice
            self._add(missing)
        return contained

    def apply(self, entry: LogEntry) -> None:
        """Make one entry visible to the next search; applying it again changes nothing."""
        self._remove_row(entry.image_id)
        if entry.code is None:
            self._remove_doc(entry.image_id)
        elif self._doc_of(entry.image_id) is None:
            row = (entry.image_id, entry.code, entry.canonical_id)
            self._add(Registrations.of([row], dim=self.index.dim, log="of this server"))

    def entry_of(self, image_id: str) -> LogEntry | None:
        """The entry that registered a live image."""
        row = self._row_of.get(image_id)
        if row is None:
            return None
        code = self.index.code(row).tobytes()
        if row in self._views_of:
            code += b"".join(self.view_index.code(view_row).tobytes() for view_row in self._view_rows(row).tolist())
        return LogEntry(image_id, code, self._cluster_of[row])

    def restore_doc(self, image_id: str) -> None:
        """Take the removal of a generation's image back, because it did not reach the log."""
        doc = self._generation.doc_of(image_id)
        if doc is not None and self.is_removed[doc]:
            self.is_removed[doc] = False
            self.num_removed -= 1

    def image_id(self, row: int) -> str:
        return self._image_ids[row]

    def cluster_of(self, row: int) -> str:
        """The image id whose cluster a row belongs to: its own, another upload's or one of the generation."""
        return self._cluster_of[row]

    def row_of(self, image_id: str) -> int | None:
        return self._row_of.get(image_id)

    def members(self, cluster: str) -> list[str]:
        """The live images of a cluster, the one that it is named after first."""
        own = [cluster] if cluster in self._row_of else []
        return [*own, *self._copies_of.get(cluster, ())]

    def _add(self, new: Registrations) -> None:
        if not len(new.image_ids):
            return
        clusters = self._clusters_in_generation(new)
        # A search may find a row as soon as the index has it, so its name comes first.
        first_row = len(self._image_ids)
        self._image_ids.extend(new.image_ids)
        self._cluster_of.extend(clusters)
        self.index.add(new.codes)
        if new.views:
            owners = [first_row + position for position in new.views]
            self._views_of.update(zip(owners, count(len(self.owner_of_views))))
            self.owner_of_views.extend(owners)
            self.view_index.add(np.concatenate(list(new.views.values())))
        self._row_of.update(zip(new.image_ids, range(first_row, len(self._image_ids)), strict=True))
        for image_id, cluster in zip(new.image_ids, clusters, strict=True):
            if cluster != image_id:
                self._copies_of.setdefault(cluster, {})[image_id] = None

    def _clusters_in_generation(self, new: Registrations) -> list[str]:
        """The clusters that registrations name; this generation may have given those images to other clusters."""
        clusters = list(new.canonical_ids)
        copies = [i for i, (own, other) in enumerate(zip(new.image_ids, clusters, strict=True)) if own != other]
        docs = self._generation.docs_of([clusters[i] for i in copies])
        is_known = docs >= 0
        canonicals = self._generation.canonicals(docs[is_known])
        for i, cluster in zip(compress(copies, is_known), self._generation.image_ids(canonicals), strict=True):
            clusters[i] = cluster
        return clusters

    def _remove_row(self, image_id: str) -> None:
        row = self._row_of.pop(image_id, None)
        if row is None:
            return
        self.index.remove(np.array([row]))
        if row in self._views_of:
            self.view_index.remove(self._view_rows(row))
            del self._views_of[row]
        copies = self._copies_of.get(self._cluster_of[row], {})
        copies.pop(image_id, None)
        if not copies:
            self._copies_of.pop(self._cluster_of[row], None)

    def _view_rows(self, row: int) -> NDArray[np.int64]:
        return NUM_VIEWS * self._views_of[row] + np.arange(NUM_VIEWS)

    def _doc_of(self, image_id: str) -> int | None:
        doc = self._generation.doc_of(image_id)
        return None if doc is None or self.is_removed[doc] else doc

    def _remove_doc(self, image_id: str) -> None:
        doc = self._doc_of(image_id)
        if doc is not None:
            self.is_removed[doc] = True
            self.num_removed += 1
