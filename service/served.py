"""One generation as it is served: its hash tables and the uploads since, searched as one.

A query keeps the `Served` that it began with to its end, so a switch to another generation changes nothing under it,
and the old one's memory maps are released with its last query.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embed.pair_scoring import read_pair_scorer
from embed.views import NUM_VIEWS, VIEW_MARGINS, lifted, view_similarity
from lsh.codes import pair_cosines, quantize, unit_rows
from lsh.index.queries import MAX_K
from lsh.index.store import Tables
from lsh.index.view_similarity import ViewSimilarity
from service.uploads import Uploads

_SAME_IMAGE = 0.999
"""Cosine of codes from which two embeddings under one image id are one image, computed on different machines."""

_VIEW_SIMILARITY = ViewSimilarity(**view_similarity())
"""Of views of uploads; those in a generation count as its manifest says."""
RESCORED_PER_MATCH = 4


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
    by_view: bool
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


class _Hit(NamedTuple):
    """A doc of the hash tables or a row of the live index, found for one query."""

    score: float
    source: Source
    place: int
    similarity: float
    shared_terms: int
    by_view: bool


class Served:
    """A generation, its hash tables and the uploads since. Searching is safe from several threads."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.generation = generation = tables.generation
        self.generation_id = generation.manifest.generation_id  # the manifest computes it anew each time
        self.created_at = datetime.fromisoformat(generation.manifest.created_at)
        self.uploads = Uploads(generation)
        self.scorer = read_pair_scorer(generation.folder, embedder_digest=generation.manifest.embedder_digest)

    def lookup(
        self,
        embeddings: NDArray[np.float32],
        *,
        k: int,
        min_score: float,
        views: NDArray[np.float32] | None = None,
    ) -> list[Answer]:
        """The best `k` matches of at least `min_score` for each of `(n, dim)` float32 unit rows.

        With the `views` `(n, NUM_VIEWS, dim)` of the same images each of these is compared with whole images, too.
        """
        min_similarity = self.scorer.lowest_similarity(min_score)
        # A classifier ranks otherwise than the cosine does, so it looks at more than it returns.
        num_found = k if self.scorer.classifier is None else RESCORED_PER_MATCH * k
        hits, num_candidates = self._found(embeddings, k=num_found, min_similarity=min_similarity)
        if len(self.uploads.view_index):
            hits = self._with_uploads_by_views(hits, embeddings, k=num_found, min_similarity=min_similarity)
        if views is not None:
            for query, of_query in enumerate(views):
                found, counts = self._found(
                    of_query,
                    k=num_found,
                    min_similarity=_VIEW_SIMILARITY.lowest_cosine(min_similarity),
                    whole_only=True,
                )
                by_view = self._by_views(_as_views(found), embeddings[query : query + 1])
                hits[query] = _best_of_each([*hits[query], *by_view])
                num_candidates[query] += sum(counts)
        answers = []
        for query, num in enumerate(num_candidates):
            scored = self._scored(hits[query], embeddings[query : query + 1])
            answers.append(Answer(tuple(self._matches(_best(scored, k=k, min_score=min_score))), num))
        return answers

    def _found(
        self, embeddings: NDArray[np.float32], *, k: int, min_similarity: float, whole_only: bool = False
    ) -> tuple[list[list[_Hit]], list[int]]:
        """What is alike each of `(n, dim)` rows in the hash tables and among uploads, and the numbers of candidates."""
        uploads = self.uploads
        excluded = uploads.is_removed if uploads.num_removed else None
        found = self.tables.lookup(
            embeddings, k=k, min_similarity=min_similarity, excluded=excluded, whole_only=whole_only
        )
        hits = _hits(Source.HASH_TABLES, found.docs, found.similarities, found.shared_terms, found.are_by_view)
        if len(uploads):
            live = uploads.index.search(embeddings, k=k, min_similarity=min_similarity)
            nothing = np.zeros(live.rows.shape, np.int32)
            live_hits = _hits(Source.LIVE, live.rows, live.similarities, nothing, nothing.astype(np.bool_))
            hits = [old + new for old, new in zip(hits, live_hits, strict=True)]
        return hits, found.num_candidates.tolist()

    def _with_uploads_by_views(
        self, hits: Sequence[Sequence[_Hit]], embeddings: NDArray[np.float32], *, k: int, min_similarity: float
    ) -> list[list[_Hit]]:
        """The hits of each query, and the uploads that have a view like it."""
        uploads = self.uploads
        live = uploads.view_index.search(
            embeddings, k=min(MAX_K, k * NUM_VIEWS), min_similarity=_VIEW_SIMILARITY.lowest_cosine(min_similarity)
        )
        found = zip(hits, live.rows.tolist(), live.similarities.tolist(), strict=True)
        return [
            _best_of_each(
                [*before, *self._by_views(self._owner_hits(rows, similarities), embeddings[query : query + 1])]
            )
            for query, (before, rows, similarities) in enumerate(found)
        ]

    def _by_views(self, hits: Iterable[_Hit], embedding: NDArray[np.float32]) -> list[_Hit]:
        """The best view of each image, less its margin as yet, as it counts beside the whole query `(1, dim)`."""
        best = _best_of_each(hits)
        if not best:
            return best
        rows = np.arange(len(best))
        wholes = pair_cosines(quantize(embedding), self._codes(best), np.zeros_like(rows), rows)
        similarities = lifted(np.array([hit.similarity for hit in best], np.float32), wholes).tolist()
        return [
            hit._replace(score=similarity, similarity=similarity)
            for hit, similarity in zip(best, similarities, strict=True)
        ]

    def _owner_hits(self, view_rows: Sequence[int], similarities: Sequence[float]) -> Iterator[_Hit]:
        """The uploads that views belong to, the margins taken off; rows are -1 where there are fewer."""
        for row, cosine in zip(view_rows, similarities, strict=True):
            if row >= 0:
                owner, view = divmod(row, NUM_VIEWS)
                similarity = cosine - VIEW_MARGINS[view]
                yield _Hit(similarity, Source.LIVE, self.uploads.owner_of_views[owner], similarity, 0, True)

    def warm_up(self, *, num_queries: int = 64) -> None:
        """Bring what a first call would wait for into memory: compiled kernels and some pages of the tables."""
        num_docs = self.generation.manifest.num_docs
        docs = np.unique(np.linspace(0, num_docs - 1, num_queries).astype(np.int64)) if num_docs else np.empty(0, int)
        dim = self.generation.manifest.dim
        embeddings = unit_rows(self.generation.codes(docs)) if len(docs) else np.eye(1, dim, dtype=np.float32)
        for embedding in embeddings:
            self.lookup(embedding[None], k=10, min_score=self.generation.manifest.min_score)
            os.sched_yield()  # Callers of the generation that is served wait for this processor.
        self.uploads.index.search(embeddings[:1], k=1, min_similarity=0.0)
        self.is_known("")
        _are_same_image(embeddings[0], quantize(embeddings[:1])[0])

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
        return code is not None and _are_same_image(embedding, code)

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

    def _scored(self, hits: list[_Hit], embedding: NDArray[np.float32]) -> list[_Hit]:
        """Hits, whose score is the similarity as yet, with their scores against a query `(1, dim)`."""
        scorer, num = self.scorer, len(hits)
        if num == 0 or scorer.is_cosine:
            return hits
        similarities = np.array([hit.similarity for hit in hits], np.float32)
        others = np.empty((num, 0), np.float32)
        if scorer.classifier is not None:
            others = scorer.project(self._codes(hits))
        scores = scorer.scores(
            similarities, scorer.project(embedding), others, np.zeros(num, np.int64), np.arange(num)
        ).tolist()
        return [hit._replace(score=score) for hit, score in zip(hits, scores, strict=True)]

    def _codes(self, hits: Sequence[_Hit]) -> NDArray[np.int8]:
        is_doc = np.array([hit.source is Source.HASH_TABLES for hit in hits])
        docs = np.array([hit.place for hit in hits if hit.source is Source.HASH_TABLES], np.int64)
        codes = np.empty((len(hits), self.generation.manifest.dim), np.int8)
        codes[is_doc] = self.generation.codes(docs)
        for position in np.flatnonzero(~is_doc).tolist():
            codes[position] = self.uploads.index.code(hits[position].place)
        return codes

    def _matches(self, best: Sequence[_Hit]) -> list[Match]:
        """Matches with names and canonicals."""
        if not best:
            return []
        docs = np.array([hit.place for hit in best if hit.source is Source.HASH_TABLES], np.int64)
        canonicals = self.generation.canonicals(docs)
        image_ids, canonical_ids = self.generation.image_ids(docs), self.generation.image_ids(canonicals)
        if self.uploads.num_removed and self.uploads.is_removed[canonicals].any():
            canonical_ids = [self._head(canonical_id) for canonical_id in canonical_ids]
        names = iter(zip(image_ids, canonical_ids, strict=True))
        matches = []
        for hit in best:
            if hit.source is Source.HASH_TABLES:
                image_id, canonical_id = next(names)
            else:
                image_id, cluster = self.uploads.image_id(hit.place), self.uploads.cluster_of(hit.place)
                canonical_id = self._head(cluster)
            matches.append(
                Match(
                    image_id=image_id,
                    score=hit.score,
                    similarity=hit.similarity,
                    shared_terms=hit.shared_terms,
                    source=hit.source,
                    by_view=hit.by_view,
                    canonical_id=canonical_id,
                )
            )
        return matches

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


def _are_same_image(embedding: NDArray[np.float32], code: NDArray[np.int8]) -> bool:
    row = np.zeros(1, dtype=np.int64)
    return float(pair_cosines(quantize(embedding[None]), code[None], row, row)[0]) > _SAME_IMAGE


def _hits(
    source: Source,
    places: NDArray[np.int64],
    similarities: NDArray[np.float32],
    shared_terms: NDArray[np.int32],
    are_by_view: NDArray[np.bool_],
) -> list[list[_Hit]]:
    """What one index found for each query; all `(n, k)`, places -1 where there are fewer."""
    return [
        [
            _Hit(similarity, source, place, similarity, shared, by_view)
            for place, similarity, shared, by_view in zip(*row, strict=True)
            if place >= 0
        ]
        for row in zip(places.tolist(), similarities.tolist(), shared_terms.tolist(), are_by_view.tolist(), strict=True)
    ]


def _as_views(found: Sequence[Sequence[_Hit]]) -> Iterator[_Hit]:
    """What was found for each view of a query, less its margin."""
    for margin, hits in zip(VIEW_MARGINS, found, strict=True):
        for hit in hits:
            similarity = hit.similarity - margin
            yield hit._replace(score=similarity, similarity=similarity, by_view=True)


def _best_of_each(hits: Iterable[_Hit]) -> list[_Hit]:
    """The best hit of every image."""
    best: dict[tuple[Source, int], _Hit] = {}
    for hit in hits:
        before = best.get((hit.source, hit.place))
        if before is None or hit.similarity > before.similarity:
            best[hit.source, hit.place] = hit
    return sorted(best.values(), key=lambda hit: (-hit.similarity, hit.source is Source.LIVE, hit.place))


def _best(hits: Iterable[_Hit], *, k: int, min_score: float) -> list[_Hit]:
    """The best `k` of at least `min_score`; on a tie the hash tables' comes first, as it is older."""
    least = float(np.float32(min_score))
    return sorted((hit for hit in hits if hit.score >= least), key=_score, reverse=True)[:k]


_score = attrgetter("score")
