"""What a server and the operator's commands need of a place that keeps generations: a workspace's folder, or Redis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lsh.index import publishing
from lsh.index.generation import open_generation, verify_generation
from lsh.index.lookup import HashTables
from lsh.index.manifest import Manifest
from lsh.index.publishing import ListedGeneration
from lsh.index.queries import Found
from lsh.index.views import Views


class OpenGeneration(Protocol):
    """An open generation; see `lsh.index.generation.Generation`, whose arrays are files."""

    manifest: Manifest
    views: Views
    coarse_centroids: NDArray[np.float32]
    folder: Path
    """Where its scorer's files lie."""

    def doc_of(self, image_id: str) -> int | None: ...

    def docs_of(self, image_ids: Sequence[str]) -> NDArray[np.int64]: ...

    def image_ids(self, docs: NDArray[np.int64]) -> list[str]: ...

    def canonicals(self, docs: NDArray[np.int64]) -> NDArray[np.int64]: ...

    def codes(self, docs: NDArray[np.int64]) -> NDArray[np.int8]: ...

    def cluster_size(self, canonical: int) -> int: ...

    def members(self, canonical: int, *, offset: int, limit: int) -> NDArray[np.int64]: ...


class Tables(Protocol):
    """The hash tables of an open generation; see `lsh.index.lookup.HashTables`."""

    @property
    def generation(self) -> OpenGeneration: ...

    def lookup(
        self,
        embeddings: NDArray[np.float32],
        *,
        k: int,
        min_similarity: float,
        excluded: NDArray[np.bool_] | None = None,
        whole_only: bool = False,
    ) -> Found: ...


class GenerationStore(Protocol):
    """A place that keeps generations and says which one is current; raises GenerationError and StoreError."""

    def list_generations(self) -> list[ListedGeneration]: ...

    def current(self) -> str | None: ...

    def previous(self) -> str | None: ...

    def open(self, generation_id: str) -> Tables: ...

    def open_to_switch(self, generation_id: str) -> Tables:
        """The tables that a server switches to while it serves others: damage must be found out before."""
        ...

    def verify(self, generation_id: str) -> None: ...

    def promote(self, generation_id: str, *, is_opened: bool = False) -> None:
        """Make a generation current, verified: now, unless `open_to_switch` has just done it for the caller."""
        ...

    def rollback(self, *, opened: str | None = None) -> str:
        """Make the generation before the current one current, as `promote` does; `opened` was just opened to switch."""
        ...

    def collect_garbage(self, keep: int) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class FolderStore:
    """The `index` folder of a workspace."""

    index: Path

    def list_generations(self) -> list[ListedGeneration]:
        return publishing.list_generations(self.index)

    def current(self) -> str | None:
        return publishing.current(self.index)

    def previous(self) -> str | None:
        return publishing.previous(self.index)

    def open(self, generation_id: str) -> Tables:
        return HashTables(open_generation(publishing.generation_folder(self.index, generation_id)))

    def open_to_switch(self, generation_id: str) -> Tables:
        self.verify(generation_id)
        return self.open(generation_id)

    def verify(self, generation_id: str) -> None:
        verify_generation(publishing.generation_folder(self.index, generation_id))

    def promote(self, generation_id: str, *, is_opened: bool = False) -> None:
        publishing.promote(self.index, generation_id, is_verified=is_opened)

    def rollback(self, *, opened: str | None = None) -> str:
        return publishing.rollback(self.index, verified=opened)

    def collect_garbage(self, keep: int) -> list[str]:
        return publishing.collect_garbage(self.index, keep)
