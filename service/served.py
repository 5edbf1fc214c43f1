"""One generation as it is served: its hash tables and the uploads since, searched as one.

A query keeps the `Served` that it began with to its end, so a switch to another generation changes nothing under it,
and the old one's memory maps are released with its last query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from lsh.codes import pair_cosines, quantize
from lsh.index.generation import Generation
from lsh.index.lookup import Found, HashTables
from service.live_index import LiveFound, unit_rows
from service.uploads import Uploads

_SAME_IMAGE = 0.999
"""Cosine of codes from which two embeddings under one image id are one image, computed on different machines."""


class Source(Enum):
    """Which index found a match."""

    HASH_TABLES = "hash_tables"
    LIVE = "live"


@dataclass(frozen=True, slots=True)
class Match:
    """One known image and why it was found; `score` is what is compared with `min_score`."""

    image_id: str
    score: float
    similarity: float
    shared_terms: int
    source: Source
    canonical_id: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Matches by descending score, and how many images of the hash tables were compared."""

    matches: tuple[Match, ...]
    num_candidates: int


@dataclass(frozen=True, slots=True)
class ClusterPage:
    """Some of the images that `canonical_id` stands for; `next_offset` is None on the last page."""

    canonical_id: str
    image_ids: tuple[str, ...]
    size: int
    next_offset: int | None


class Served:
    """A generation, its hash tables and the uploads since. Searching is safe from several threads."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.generation_id = generation.manifest.generation_id  # the manifest computes it anew each time
        self.created_at = datetime.fromisoformat(generation.manifest.created_at)
        self.uploads = Uploads(generation)
        self._tables = HashTables(generation)

    def lookup(self, embeddings: NDArray[np.float32], *, k: int, min_score: float) -> list[Answer]:
        """The best `k` matches of at least `min_score` for each of `(n, dim)` float32 unit rows."""
        uploads = self.uploads
        excluded = uploads.is_removed if uploads.num_removed else None
        found = self._tables.lookup(embeddings, k=k, min_similarity=min_score, excluded=excluded)
        live = uploads.index.search(embeddings, k=k, min_similarity=min_score) if len(uploads) else None
        answers = []
        for query in range(len(embeddings)):
            matches = self._matches(found, query)
            if live is not None:
                matches = _merge(matches, self._live_matches(live, query), k)
            answers.append(Answer(tuple(matches), int(found.num_candidates[query])))
        return answers

    def warm_up(self, *, num_queries: int = 64) -> None:
        """Bring what a first query would wait for into memory: compiled kernels and some pages of the tables."""
        num_docs = self.generation.manifest.num_docs
        docs = np.unique(np.linspace(0, num_docs - 1, num_queries).astype(np.int64)) if num_docs else np.empty(0, int)
        dim = self.generation.manifest.dim
        embeddings = unit_rows(self.generation.codes(docs)) if len(docs) else np.eye(1, dim, dtype=np.float32)
        for embedding in embeddings:
            self.lookup(embedding[None], k=10, min_score=self.generation.manifest.min_score)
        self.uploads.index.search(embeddings[:1], k=1, min_similarity=0.0)

    def is_known(self, image_id: str) -> bool:
        """Whether an image is in the generation or registered, and not removed."""
        if self.uploads.row_of(image_id) is not None:
            return True
        doc = self.generation.doc_of(image_id)
        return doc is not None and not self.uploads.is_removed[doc]

    def code_of(self, image_id: str) -> NDArray[np.int8] | None:
        """The `(dim,)` int8 code of a known image."""
        row = self.uploads.row_of(image_id)
        if row is not None:
            return self.uploads.index.code(row)
        doc = self.generation.doc_of(image_id)
        if doc is None or self.uploads.is_removed[doc]:
            return None
        code: NDArray[np.int8] = self.generation.codes(np.array([doc]))[0]
        return code

    def is_same_image(self, image_id: str, embedding: NDArray[np.float32]) -> bool:
        """Whether a known image has this `(dim,)` embedding."""
        code = self.code_of(image_id)
        row = np.zeros(1, dtype=np.int64)
        return (
            code is not None and float(pair_cosines(quantize(embedding[None]), code[None], row, row)[0]) > _SAME_IMAGE
        )

    def embedding_of(self, image_id: str) -> NDArray[np.float32] | None:
        """The `(dim,)` float32 embedding of a known image, as its code has it."""
        code = self.code_of(image_id)
        if code is None:
            return None
        embedding: NDArray[np.float32] = unit_rows(code[None])[0]
        return embedding

    def canonical_of(self, image_id: str) -> str:
        """The image that stands for a known image."""
        return self._head(self._cluster_of(image_id))

    def cluster(self, image_id: str, *, offset: int, limit: int) -> ClusterPage:
        """A page of the cluster of a known image: members in the generation by offset, then live ones."""
        name = self._cluster_of(image_id)
        canonical = self._canonical_doc(name)
        size = 0 if canonical is None else self.generation.cluster_size(canonical)
        live = self.uploads.members(name)
        image_ids: list[str] = []
        if canonical is not None and offset < size:
            docs = self.generation.members(canonical, offset=offset, limit=limit)
            image_ids = self.generation.image_ids(docs[~self.uploads.is_removed[docs]])
        first_live = max(0, offset - size)
        last_live = max(0, offset + limit - size)
        image_ids += live[first_live:last_live]
        end = offset + limit
        next_offset = end if end < size + len(live) else None
        return ClusterPage(self._head(name), tuple(image_ids), size + len(live), next_offset)

    def _matches(self, found: Found, query: int) -> list[Match]:
        docs = found.docs[query]
        docs = docs[docs >= 0]
        if not len(docs):
            return []
        canonicals = self.generation.canonicals(docs)
        image_ids = self.generation.image_ids(docs)
        canonical_ids = self.generation.image_ids(canonicals)
        if self.uploads.num_removed and self.uploads.is_removed[canonicals].any():
            canonical_ids = [self._head(canonical_id) for canonical_id in canonical_ids]
        similarities = found.similarities[query].tolist()
        shared_terms = found.shared_terms[query].tolist()
        return [
            Match(image_id, similarity, similarity, shared, Source.HASH_TABLES, canonical_id)
            for image_id, similarity, shared, canonical_id in zip(
                image_ids, similarities, shared_terms, canonical_ids, strict=False
            )
        ]

    def _live_matches(self, live: LiveFound, query: int) -> list[Match]:
        uploads = self.uploads
        rows = [row for row in live.rows[query].tolist() if row >= 0]
        return [
            Match(uploads.image_id(row), similarity, similarity, 0, Source.LIVE, self._head(uploads.cluster_of(row)))
            for row, similarity in zip(rows, live.similarities[query].tolist(), strict=False)
        ]

    def _cluster_of(self, image_id: str) -> str:
        """The image id that an image's cluster is named after, known or removed."""
        row = self.uploads.row_of(image_id)
        if row is not None:
            return self.uploads.cluster_of(row)
        doc = self.generation.doc_of(image_id)
        return image_id if doc is None else self.generation.image_ids(self.generation.canonicals(np.array([doc])))[0]

    def _head(self, cluster: str) -> str:
        """The image that stands for a cluster: its namesake, or the first member left when that was removed."""
        if self.is_known(cluster):
            return cluster
        canonical = self._canonical_doc(cluster)
        if canonical is not None:
            for offset in range(0, self.generation.cluster_size(canonical), 1024):
                docs = self.generation.members(canonical, offset=offset, limit=1024)
                left = docs[~self.uploads.is_removed[docs]]
                if len(left):
                    return self.generation.image_ids(left[:1])[0]
        return next(iter(self.uploads.members(cluster)), cluster)

    def _canonical_doc(self, cluster: str) -> int | None:
        doc = self.generation.doc_of(cluster)
        return None if doc is None else int(self.generation.canonicals(np.array([doc]))[0])


def _merge(tables: Sequence[Match], live: Sequence[Match], k: int) -> list[Match]:
    """The best `k` of both; on a tie the hash tables' comes first, as it is older."""
    return sorted([*tables, *live], key=lambda match: -match.score)[:k]
