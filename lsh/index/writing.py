"""Writing a generation: arrays are streamed to a folder aside, in bounded memory, and equal inputs give equal bytes.

Rows go to their place by doc, in any order and from several threads. Terms wait in a scratch file; one range of buckets
after the other is then sorted into posting lists.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.codes import quantize
from lsh.errors import ParameterError
from lsh.index import layout
from lsh.index.centroids import train_centroids
from lsh.index.generation import file_sha256
from lsh.index.layout import Parts
from lsh.index.manifest import FORMAT_VERSION, MANIFEST_NAME, FileEntry, Manifest
from lsh.index.view_similarity import ViewSimilarity
from lsh.probes import probe_plan
from lsh.sketches import long_sketches
from lsh.sorting import starts_of_runs
from lsh.terms import TermHasher, TermParams
from lsh.variable_byte import encode, encoded_sizes, gaps

POSTINGS_AT_ONCE = 1 << 22
_TERMS_SCRATCH = ".terms"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSpec:
    """What a generation is made for. `num_probes` buckets are visited by a lookup, over all tables.

    `owners` `(m,)`, ascending, are the docs that have views, and `view_similarity` says how these count.
    `scorer_files` are kept as they are, for who makes scores of the cosines that a lookup finds.
    """

    num_docs: int
    term_params: TermParams
    num_probes: int
    embedder_digest: str
    min_score: float
    scorer_files: Mapping[str, bytes] = field(default_factory=dict)
    owners: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    view_similarity: ViewSimilarity | None = None

    def __post_init__(self) -> None:
        if not set(self.scorer_files) <= set(layout.SCORER_FILES):
            raise ParameterError(f"scorer_files {sorted(self.scorer_files)} are none of {layout.SCORER_FILES}")
        if not 1 <= self.num_docs <= layout.MAX_DOCS:
            raise ParameterError(f"num_docs={self.num_docs} is out of range 1..{layout.MAX_DOCS} of one generation")
        if self.num_rows > layout.MAX_DOCS:
            raise ParameterError(
                f"{self.num_docs} images and {self.num_rows - self.num_docs} views are more than the {layout.MAX_DOCS} "
                "rows of one generation; build it without views"
            )
        if np.any(np.diff(self.owners, prepend=-1) <= 0) or np.any(self.owners >= self.num_docs):
            raise ParameterError(f"owners of views must be ascending docs in 0..{self.num_docs - 1}; sort them first")
        if self.owners.size and self.view_similarity is None:
            raise ParameterError(f"{self.owners.size} docs have views, and no view_similarity says how these count")
        Parts.of(self.term_params)
        probe_plan(self.term_params, self.num_probes)

    @property
    def num_rows(self) -> int:
        """Rows of the tables: images, and behind them the views of the owners in turn."""
        return self.num_docs + self.owners.size * self.views_of_each

    @property
    def views_of_each(self) -> int:
        """Views of each owner."""
        return len(self.view_similarity.margins) if self.view_similarity else 0

    def view_rows(self, owners: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows `(m,)` of views by the doc and the place among its views; raises ParameterError for other docs."""
        places = np.minimum(np.searchsorted(self.owners, owners), self.owners.size - 1)
        if not np.array_equal(self.owners[places], owners):
            raise ParameterError(
                "views are given of docs that are none of the owners; give the spec all that have some"
            )
        rows: NDArray[np.int64] = self.num_docs + places * self.views_of_each + views
        return rows


class GenerationWriter:
    """Writes one generation into an empty folder: add everything, then `finish`, which makes it a generation."""

    def __init__(self, folder: Path, spec: GenerationSpec) -> None:
        self.folder = folder
        self.spec = spec
        self._hasher = TermHasher(spec.term_params)
        self._parts = Parts.of(spec.term_params)
        num_rows, dim = spec.num_rows, spec.term_params.dim
        self._codes = self._create(layout.CODES, (num_rows, dim))
        self._sketches = self._create(layout.SKETCHES, (num_rows, layout.WORDS_PER_SKETCH))
        self._terms: NDArray[np.uint32] = _map_new(
            folder / _TERMS_SCRATCH, np.dtype("<u4"), (spec.term_params.num_tables, num_rows)
        )
        self._is_hashed = np.zeros(num_rows, dtype=np.bool_)
        self._num_clusters: int | None = None
        self._has_image_ids = False

    def add_embeddings(self, docs: NDArray[np.int64], embeddings: NDArray[np.float32]) -> None:
        """Codes, sketches and terms of `embeddings` `(m, dim)`, unit rows, for `docs` `(m,)`; each doc once.

        Views are given like docs, by their rows.
        """
        self._check_docs(docs, end=self.spec.num_rows)
        self._codes[docs] = quantize(embeddings)
        self._sketches[docs] = long_sketches(
            embeddings, num_words=layout.WORDS_PER_SKETCH, seed=self.spec.term_params.seed
        )
        low_bits = np.uint64((1 << self.spec.term_params.bits_per_term) - 1)
        self._terms[:, docs] = (self._hasher.terms(embeddings) & low_bits).astype(np.uint32).T
        self._is_hashed[docs] = True

    def share_codes(self, docs: NDArray[np.int64], original_docs: NDArray[np.int64]) -> None:
        """Give each doc the code of its original, without postings: lookups find the original. After embeddings."""
        self._check_docs(docs)
        self._check_docs(original_docs)
        for start in range(0, docs.size, POSTINGS_AT_ONCE >> 4):
            part = slice(start, start + (POSTINGS_AT_ONCE >> 4))
            self._codes[docs[part]] = self._codes[original_docs[part]]
            self._sketches[docs[part]] = self._sketches[original_docs[part]]

    def write_image_ids(self, image_ids: Iterable[str]) -> None:
        """The image id of every doc, in order of docs."""
        starts = self._create(layout.IMAGE_ID_STARTS, (self.spec.num_docs + 1,))
        num_ids, size, before, is_ascending = 0, 0, b"", True
        with (self.folder / layout.IMAGE_IDS).open("wb") as file:
            for image_id in image_ids:
                text = image_id.encode()
                if num_ids == self.spec.num_docs:
                    raise ParameterError(f"more image ids than num_docs={self.spec.num_docs}; give one for each doc")
                is_ascending &= num_ids == 0 or before < text
                num_ids, size, before = num_ids + 1, size + len(text), text
                starts[num_ids] = size
                file.write(text)
        if num_ids != self.spec.num_docs:
            raise ParameterError(f"{num_ids} image ids for num_docs={self.spec.num_docs}; give one for each doc")
        order = np.arange(num_ids) if is_ascending else self._order_of_image_ids(starts)
        self._write(layout.DOCS_BY_IMAGE_ID, order)
        self._has_image_ids = True

    def _order_of_image_ids(self, starts: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Docs in the order of their image ids, sorted in memory; ids in order, as a catalogue has them, need none."""
        text = (self.folder / layout.IMAGE_IDS).read_bytes()
        texts = [text[start:end] for start, end in pairwise(starts.tolist())]
        order = sorted(range(len(texts)), key=texts.__getitem__)
        for doc, next_doc in pairwise(order):
            if texts[doc] == texts[next_doc]:
                raise ParameterError(f"image id {texts[doc].decode()!r} is given twice; ids are unique")
        return np.array(order, dtype=np.int64)

    def write_clusters(self, members: NDArray[np.int64], canonicals: NDArray[np.int64]) -> None:
        """Clusters of two or more: each member and its canonical `(m,)`, in the order in which pages show them."""
        self._check_docs(members)
        self._check_docs(canonicals)
        all_canonicals = np.arange(self.spec.num_docs, dtype=np.uint32)
        all_canonicals[members] = canonicals
        self._write(layout.CANONICALS, all_canonicals)
        order = np.lexsort((members != canonicals, canonicals))
        first = np.flatnonzero(starts_of_runs(canonicals[order].astype(np.uint64)))
        heads = canonicals[order[first]]
        if not np.array_equal(members[order[first]], heads):
            raise ParameterError("a cluster lacks its canonical; give the canonical as a member of itself")
        self._write(layout.CLUSTER_CANONICALS, heads)
        self._write(layout.CLUSTER_STARTS, np.append(first, members.size))
        self._write(layout.CLUSTER_MEMBERS, members[order])
        self._num_clusters = int(first.size)

    def finish(self) -> Manifest:
        """Write posting lists, centroids and the manifest; from then on the folder is a generation."""
        if self._num_clusters is None or not self._has_image_ids:
            raise ParameterError("image ids and clusters were not written; call write_image_ids and write_clusters")
        num_postings = self._write_postings()
        images = np.flatnonzero(self._is_hashed[: self.spec.num_docs])
        self._write(layout.CENTROIDS, train_centroids(self._codes, images))
        arrays = [*layout.DTYPES, *self.spec.scorer_files]
        if self.spec.owners.size:
            self._write(layout.VIEW_OWNERS, self.spec.owners)
            arrays += layout.VIEW_DTYPES
        for array in (self._codes, self._sketches):
            array.flush()
        (self.folder / _TERMS_SCRATCH).unlink()
        for name, content in self.spec.scorer_files.items():
            (self.folder / name).write_bytes(content)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            num_docs=self.spec.num_docs,
            num_hashed=images.size,
            num_postings=num_postings,
            num_clusters=self._num_clusters,
            dim=self.spec.term_params.dim,
            embedder_digest=self.spec.embedder_digest,
            min_score=self.spec.min_score,
            term_params=self.spec.term_params,
            num_probes=self.spec.num_probes,
            view_similarity=self.spec.view_similarity if self.spec.owners.size else None,
            files={name: self._synced_entry(name) for name in sorted(arrays)},
        )
        with (self.folder / MANIFEST_NAME).open("wb") as file:
            file.write(manifest.to_bytes())
            file.flush()
            os.fsync(file.fileno())
        return manifest

    def _write_postings(self) -> int:
        """The posting lists of all tables; returns how many postings there are."""
        parts = self._parts
        offsets = self._create(layout.POSTING_OFFSETS, (parts.num_parts, parts.buckets_per_part + 1))
        starts = np.zeros(parts.num_parts + 1, dtype=np.uint64)
        part = 0
        with (self.folder / layout.POSTINGS).open("wb") as file:
            for table in range(parts.num_tables):
                counts = _bucket_counts(self._terms[table], self._is_hashed, 1 << parts.bits_per_term)
                for first_bucket, end_bucket in _ranges(counts, parts.buckets_per_part):
                    docs, list_starts = _sorted_docs(
                        self._terms[table], self._is_hashed, first_bucket, counts[first_bucket:end_bucket]
                    )
                    data, ends = _encode_lists(docs, list_starts)
                    file.write(data.tobytes())
                    for first in range(0, end_bucket - first_bucket, parts.buckets_per_part):
                        own = ends[first : first + parts.buckets_per_part + 1]
                        offsets[part] = own - own[0]
                        starts[part + 1] = starts[part] + (own[-1] - own[0])
                        part += 1
        self._write(layout.PART_STARTS, starts)
        offsets.flush()
        return int(self._is_hashed.sum()) * parts.num_tables

    def _create(self, name: str, shape: tuple[int, ...]) -> Any:
        return _map_new(self.folder / name, layout.DTYPES[name], shape)

    def _write(self, name: str, values: NDArray[Any]) -> None:
        values.astype({**layout.DTYPES, **layout.VIEW_DTYPES}[name]).tofile(self.folder / name)

    def _synced_entry(self, name: str) -> FileEntry:
        path = self.folder / name
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return FileEntry(path.stat().st_size, file_sha256(path))

    def _check_docs(self, docs: NDArray[np.int64], *, end: int | None = None) -> None:
        end = end or self.spec.num_docs
        if docs.size and not 0 <= int(docs.min()) <= int(docs.max()) < end:
            raise ParameterError(f"docs hold {int(docs.min())}..{int(docs.max())}, out of range 0..{end - 1}")


def _map_new(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """A new file of zeros, mapped to be written; its blocks are claimed at once, so a full disk is an error here."""
    size_bytes = dtype.itemsize * math.prod(shape)
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size_bytes)
        else:
            file.truncate(size_bytes)
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)


def _ranges(counts: NDArray[np.int64], buckets_per_part: int) -> Iterable[tuple[int, int]]:
    """Ranges of whole parts with about `POSTINGS_AT_ONCE` postings, at least one part each."""
    per_part = counts.reshape(-1, buckets_per_part).sum(axis=1)
    first, total = 0, 0
    for part, num_postings in enumerate(per_part.tolist()):
        if total and total + num_postings > POSTINGS_AT_ONCE:
            yield first * buckets_per_part, part * buckets_per_part
            first, total = part, 0
        total += num_postings
    yield first * buckets_per_part, per_part.size * buckets_per_part


def _sorted_docs(
    terms: NDArray[np.uint32], is_hashed: NDArray[np.bool_], first_bucket: int, counts: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The docs of a range of buckets with `counts` docs each, list after list, and where each list starts and ends."""
    list_starts = np.zeros(counts.size + 1, dtype=np.int64)
    np.cumsum(counts, out=list_starts[1:])
    docs = np.empty(int(list_starts[-1]), dtype=np.uint64)
    _place_docs(terms, is_hashed, first_bucket, list_starts[:-1].copy(), docs)
    return docs, list_starts


def _encode_lists(
    docs: NDArray[np.uint64], list_starts: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    """The bytes of all lists, and where each starts and ends in them, `(num_lists + 1,)`."""
    values = gaps(docs)
    first_of_list = list_starts[:-1][np.diff(list_starts) > 0]
    values[first_of_list] = docs[first_of_list]
    ends = np.zeros(docs.size + 1, dtype=np.uint64)
    np.cumsum(encoded_sizes(values), out=ends[1:])
    return encode(values), ends[list_starts]


@njit(cache=True, nogil=True)
def _bucket_counts(terms: NDArray[np.uint32], is_hashed: NDArray[np.bool_], num_buckets: int) -> NDArray[np.int64]:
    counts = np.zeros(num_buckets, np.int64)
    for doc in range(terms.size):
        if is_hashed[doc]:
            counts[terms[doc]] += 1
    return counts


@njit(cache=True, nogil=True)
def _place_docs(
    terms: NDArray[np.uint32],
    is_hashed: NDArray[np.bool_],
    first_bucket: int,
    next_places: NDArray[np.int64],
    docs: NDArray[np.uint64],
) -> None:
    """Counting sort of the docs of a range of buckets: by bucket, ascending within it."""
    for doc in range(terms.size):
        bucket = np.int64(terms[doc]) - first_bucket
        if is_hashed[doc] and 0 <= bucket < next_places.size:
            docs[next_places[bucket]] = doc
            next_places[bucket] += 1
