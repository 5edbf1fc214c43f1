"""An open generation: its arrays, memory-mapped, and the questions of the catalogue and the clusters.

Opening reads the manifest and the size of every file, so it takes milliseconds whatever the corpus; `verify_generation`
reads every byte.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.errors import GenerationError, ParameterError
from lsh.index import layout
from lsh.index.layout import Parts
from lsh.index.manifest import MANIFEST_NAME, FileEntry, Manifest
from lsh.index.views import Views

_CHUNK_BYTES = 1 << 16


def open_generation(folder: Path) -> Generation:
    """The generation in `folder`, memory-mapped.

    Raises GenerationError, naming the file, when one is missing, of another size than the manifest says, or does not
    fit the others.
    """
    return Generation(folder, read_manifest(folder))


def verify_generation(folder: Path) -> None:
    """Read every byte of the generation in `folder`; raises GenerationError naming the first file that is not right."""
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        _check_size(folder / name, entry)
        digest = file_sha256(folder / name)
        if digest != entry.sha256:
            raise GenerationError(
                f"{folder / name} has SHA-256 {digest[:16]}..., the manifest says {entry.sha256[:16]}...; "
                f"it is damaged or belongs to another generation, build the index again"
            )
    Generation(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the generation in `folder`; raises GenerationError."""
    path = folder / MANIFEST_NAME
    try:
        text = path.read_bytes()
    except OSError as error:
        raise GenerationError(f"{path} cannot be read ({error.strerror}); is {folder} a generation?") from error
    manifest = Manifest.from_bytes(text, name=str(path))
    expected = {*layout.DTYPES, *(layout.VIEW_DTYPES if manifest.view_similarity else ())}
    if set(manifest.files) - set(layout.SCORER_FILES) != expected:
        raise GenerationError(f"{path} lists {sorted(manifest.files)}, expected {sorted(expected)}; build it again")
    return manifest


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex. Steps back after each chunk, for lookups that wait for the processor meanwhile."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            os.sched_yield()
    return digest.hexdigest()


def _check_size(path: Path, entry: FileEntry) -> None:
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise GenerationError(f"{path} is missing ({error.strerror}); build the index again") from error
    if size_bytes != entry.size_bytes:
        raise GenerationError(
            f"{path} has {size_bytes} bytes, the manifest says {entry.size_bytes}; "
            f"it is truncated or belongs to another generation, build the index again"
        )


class Generation:
    """One immutable index. Arrays are read-only maps of its files; `docs` are int64 in `0..num_docs - 1`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.parts = Parts.of(manifest.term_params)
        dtypes = {**layout.DTYPES, **layout.VIEW_DTYPES}
        self._arrays = {name: self._map(name, dtype) for name, dtype in dtypes.items() if name in manifest.files}
        self.views = self._views()
        self._check_counts()
        self.sketches: NDArray[np.uint64] = self._arrays[layout.SKETCHES].reshape(-1, layout.WORDS_PER_SKETCH)
        self.coarse_centroids: NDArray[np.float32] = self._arrays[layout.CENTROIDS].reshape(-1, manifest.dim)

    @property
    def all_codes(self) -> NDArray[np.int8]:
        """The codes of every doc, then of every view, `(n, dim)` int8; zeros where an image could not be embedded."""
        codes: NDArray[np.int8] = self._arrays[layout.CODES].reshape(-1, self.manifest.dim)
        return codes

    def array(self, name: str) -> NDArray[Any]:
        """One of the arrays that `layout` names, flat."""
        return self._arrays[name]

    def doc_of(self, image_id: str) -> int | None:
        """The doc of an image id, None if the generation has none."""
        doc = int(self.docs_of([image_id])[0])
        return None if doc < 0 else doc

    def docs_of(self, image_ids: Sequence[str]) -> NDArray[np.int64]:
        """The doc of each image id, `(m,)` int64, -1 where the generation has none."""
        texts = [image_id.encode() for image_id in image_ids]
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        docs = np.empty(len(texts), dtype=np.int64)
        _find_image_ids(
            np.frombuffer(b"".join(texts), dtype=np.uint8),
            ends,
            self._arrays[layout.IMAGE_IDS],
            self._arrays[layout.IMAGE_ID_STARTS],
            self._arrays[layout.DOCS_BY_IMAGE_ID],
            docs,
        )
        return docs

    def image_ids(self, docs: NDArray[np.int64]) -> list[str]:
        """The image id of each doc."""
        return [self._image_id_bytes(doc).decode() for doc in self._checked(docs).tolist()]

    def canonicals(self, docs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The doc of the canonical of each doc, itself when it stands alone."""
        canonicals: NDArray[np.int64] = self._arrays[layout.CANONICALS][self._checked(docs)].astype(np.int64)
        return canonicals

    def codes(self, docs: NDArray[np.int64]) -> NDArray[np.int8]:
        """The codes of `docs`, `(m, dim)` int8."""
        return self.all_codes[self._checked(docs)]

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
        members = self._arrays[layout.CLUSTER_MEMBERS]
        page: NDArray[np.int64] = members[min(start + offset, end) : min(start + offset + limit, end)].astype(np.int64)
        return page

    def _cluster(self, canonical: int) -> tuple[int, int]:
        """Where the members of `canonical` start and end; an empty range when it has none but itself."""
        self._checked(np.array([canonical]))
        heads, starts = self._arrays[layout.CLUSTER_CANONICALS], self._arrays[layout.CLUSTER_STARTS]
        position = int(np.searchsorted(heads, np.uint32(canonical)))
        if position == heads.size or int(heads[position]) != canonical:
            return 0, 0
        return int(starts[position]), int(starts[position + 1])

    def _image_id_bytes(self, doc: int) -> bytes:
        starts = self._arrays[layout.IMAGE_ID_STARTS]
        text: bytes = self._arrays[layout.IMAGE_IDS][int(starts[doc]) : int(starts[doc + 1])].tobytes()
        return text

    def _checked(self, docs: NDArray[np.int64]) -> NDArray[np.int64]:
        if docs.size and not 0 <= int(docs.min()) <= int(docs.max()) < self.manifest.num_docs:
            raise ParameterError(
                f"docs hold {int(docs.min())}..{int(docs.max())}, out of range 0..{self.manifest.num_docs - 1}"
            )
        return docs

    def _views(self) -> Views:
        owners = self._arrays.get(layout.VIEW_OWNERS, np.empty(0, np.uint32))
        if owners.size and int(owners.max()) >= self.manifest.num_docs:
            raise GenerationError(
                f"{self.folder / layout.VIEW_OWNERS} names doc {int(owners.max())} of {self.manifest.num_docs}; "
                "it belongs to another generation, build the index again"
            )
        return Views(
            self.manifest,
            owners=lambda places: owners[places].astype(np.int64),
            codes=lambda docs: (self.all_codes, docs),
        )

    def _map(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        path = self.folder / name
        entry = self.manifest.files[name]
        _check_size(path, entry)
        if entry.size_bytes % dtype.itemsize:
            raise GenerationError(
                f"{path} has {entry.size_bytes} bytes, no multiple of {dtype.itemsize}; build it again"
            )
        if entry.size_bytes == 0:
            return np.empty(0, dtype=dtype)
        return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)

    def _check_counts(self) -> None:
        """Every array has the length that the manifest's counts ask for."""
        manifest, parts = self.manifest, self.parts
        expected = {
            layout.CODES: self.views.num_rows * manifest.dim,
            layout.SKETCHES: self.views.num_rows * layout.WORDS_PER_SKETCH,
            layout.POSTING_OFFSETS: parts.num_parts * (parts.buckets_per_part + 1),
            layout.PART_STARTS: parts.num_parts + 1,
            layout.IMAGE_ID_STARTS: manifest.num_docs + 1,
            layout.DOCS_BY_IMAGE_ID: manifest.num_docs,
            layout.CANONICALS: manifest.num_docs,
            layout.CLUSTER_CANONICALS: manifest.num_clusters,
            layout.CLUSTER_STARTS: manifest.num_clusters + 1,
        }
        for name, size in expected.items():
            if self._arrays[name].size != size:
                raise GenerationError(
                    f"{self.folder / name} holds {self._arrays[name].size} values, the manifest asks for {size}; "
                    f"it belongs to another generation, build the index again"
                )
        for starts, data in (
            (layout.PART_STARTS, layout.POSTINGS),
            (layout.IMAGE_ID_STARTS, layout.IMAGE_IDS),
            (layout.CLUSTER_STARTS, layout.CLUSTER_MEMBERS),
        ):
            if int(self._arrays[starts][-1]) != self._arrays[data].size:
                raise GenerationError(
                    f"{self.folder / starts} ends at {int(self._arrays[starts][-1])}, {data} holds "
                    f"{self._arrays[data].size} values; they belong to different generations, build the index again"
                )
        if self._arrays[layout.CENTROIDS].size % manifest.dim:
            raise GenerationError(f"{self.folder / layout.CENTROIDS} does not hold rows of {manifest.dim} values")


@njit(cache=True, nogil=True)
def _find_image_ids(  # noqa: PLR0917 - numba kernels take their arrays one by one
    wanted: NDArray[np.uint8],
    ends: NDArray[np.int64],
    image_ids: NDArray[np.uint8],
    starts: NDArray[np.uint64],
    order: NDArray[np.uint32],
    docs: NDArray[np.int64],
) -> None:
    """Binary search for each wanted text, which ends at `ends`; bytes that are not there count as none."""
    first = 0
    for i in range(ends.size):
        low, high = 0, order.size
        docs[i] = -1
        while low < high:
            middle = (low + high) // 2
            doc = np.int64(order[middle])
            if doc >= starts.size - 1:
                break
            start, end = np.int64(starts[doc]), np.int64(starts[doc + 1])
            if not 0 <= start <= end <= image_ids.size:
                break
            compared = _compare(image_ids[start:end], wanted[first : ends[i]])
            if compared == 0:
                docs[i] = doc
                break
            if compared < 0:
                low = middle + 1
            else:
                high = middle
        first = ends[i]


@njit(cache=True, nogil=True)
def _compare(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> np.int64:
    """Negative, 0 or positive as `left` sorts before, is or sorts after `right`."""
    for i in range(min(left.size, right.size)):
        if left[i] != right[i]:
            return np.int64(left[i]) - np.int64(right[i])
    return np.int64(left.size - right.size)
