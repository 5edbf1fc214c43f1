"""What was registered and removed since a generation was cut, as the served generation sees it.

Names, canonical images and clusters over the `live_index`; the log's entries are replayed into it, then applied as they
come. One thread changes it at a time, the engine sees to that; any number read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lsh.index.store import OpenGeneration
from service.live_index import LiveIndex
from service.upload_log import LogEntry


class Uploads:
    """Images by row of the live index, and the generation's docs that were removed."""

    def __init__(self, generation: OpenGeneration) -> None:
        self._generation = generation
        self.index = LiveIndex(generation.coarse_centroids)
        self.is_removed: NDArray[np.bool_] = np.zeros(generation.manifest.num_docs, dtype=np.bool_)
        self.num_removed = 0
        self._row_of: dict[str, int] = {}
        self._image_ids: list[str] = []
        self._cluster_of: list[str] = []
        self._copies_of: dict[str, dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._row_of)

    def replay(self, removed_ids: Iterable[str], registered: Iterable[Sequence[LogEntry]]) -> list[str]:
        """Take over a log; returns the image ids that the generation contains, which need not be live."""
        for image_id in removed_ids:
            self._remove_doc(image_id)
        contained: list[str] = []
        for block in registered:
            docs = self._generation.docs_of([entry.image_id for entry in block])
            is_contained = (docs >= 0) & ~self.is_removed[docs]
            missing = []
            for entry, contains in zip(block, is_contained.tolist(), strict=True):
                if contains:
                    contained.append(entry.image_id)
                else:
                    self._remove_row(entry.image_id)  # one registered anew while the log was being read comes twice
                    missing.append(entry)
            self._add(missing)
        return contained

    def apply(self, entry: LogEntry) -> None:
        """Make one entry visible to the next search; applying it again changes nothing."""
        self._remove_row(entry.image_id)
        if entry.code is None:
            self._remove_doc(entry.image_id)
        elif self._doc_of(entry.image_id) is None:
            self._add([entry])

    def entry_of(self, image_id: str) -> LogEntry | None:
        """The entry that registered a live image."""
        row = self._row_of.get(image_id)
        if row is None:
            return None
        return LogEntry(image_id, self.index.code(row).tobytes(), self._cluster_of[row])

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

    def _add(self, entries: Sequence[LogEntry]) -> None:
        if not entries:
            return
        code_bytes = b"".join(entry.code for entry in entries if entry.code is not None)
        codes = np.frombuffer(code_bytes, dtype=np.int8).reshape(len(entries), self.index.dim)
        clusters = [self._cluster_in_generation(entry) for entry in entries]
        # A search may find a row as soon as the index has it, so its name comes first.
        first_row = len(self._image_ids)
        self._image_ids.extend(entry.image_id for entry in entries)
        self._cluster_of.extend(clusters)
        self.index.add(codes)
        for row, (entry, cluster) in enumerate(zip(entries, clusters, strict=True), first_row):
            self._row_of[entry.image_id] = row
            if cluster != entry.image_id:
                self._copies_of.setdefault(cluster, {})[entry.image_id] = None

    def _cluster_in_generation(self, entry: LogEntry) -> str:
        """The cluster that an entry names; this generation may have given that image to another cluster."""
        if entry.canonical_id == entry.image_id:
            return entry.image_id
        doc = self._generation.doc_of(entry.canonical_id)
        if doc is None:
            return entry.canonical_id
        return self._generation.image_ids(self._generation.canonicals(np.array([doc])))[0]

    def _remove_row(self, image_id: str) -> None:
        row = self._row_of.pop(image_id, None)
        if row is None:
            return
        self.index.remove(np.array([row]))
        copies = self._copies_of.get(self._cluster_of[row], {})
        copies.pop(image_id, None)
        if not copies:
            self._copies_of.pop(self._cluster_of[row], None)

    def _doc_of(self, image_id: str) -> int | None:
        doc = self._generation.doc_of(image_id)
        return None if doc is None or self.is_removed[doc] else doc

    def _remove_doc(self, image_id: str) -> None:
        doc = self._doc_of(image_id)
        if doc is not None:
            self.is_removed[doc] = True
            self.num_removed += 1
