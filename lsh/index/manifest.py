"""The manifest of a generation: what is in it, for which embedder and parameters, and the digest of every file.

A generation is named by its content: its id is the digest of everything in the manifest but the time of its making, so
equal inputs give an equal id, and a manifest that was altered no longer fits its own id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lsh.errors import GenerationError, LshError
from lsh.index import layout
from lsh.index.view_similarity import ViewSimilarity
from lsh.terms import TermParams

FORMAT_VERSION = 3
MANIFEST_NAME = "manifest.json"
_ID_LENGTH = 16


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size and SHA-256 (hex) of one file of a generation."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that is known of a generation without reading its arrays.

    `num_hashed` docs have a code and postings of their own; the others share one or could not be embedded.
    `view_similarity` is None in a generation of whole images. `created_at` is UTC, ISO 8601.
    """

    format_version: int
    created_at: str
    num_docs: int
    num_hashed: int
    num_postings: int
    num_clusters: int
    dim: int
    embedder_digest: str
    min_score: float
    term_params: TermParams
    num_probes: int
    view_similarity: ViewSimilarity | None
    files: Mapping[str, FileEntry]

    @property
    def num_views(self) -> int:
        """Views of images in the hash tables, 0 in a generation of whole images."""
        return self.num_owners * len(self.view_similarity.margins) if self.view_similarity else 0

    @property
    def num_owners(self) -> int:
        """Images that have views."""
        if layout.VIEW_OWNERS not in self.files:
            return 0
        return self.files[layout.VIEW_OWNERS].size_bytes // layout.VIEW_DTYPES[layout.VIEW_OWNERS].itemsize

    @property
    def generation_id(self) -> str:
        """The first 16 hex digits of the digest of all fields but `created_at`."""
        content = {name: value for name, value in self.to_json().items() if name != "created_at"}
        return hashlib.sha256(_canonical(content)).hexdigest()[:_ID_LENGTH]

    def to_json(self) -> dict[str, Any]:
        """Every field by its name, as JSON types."""
        return asdict(self)

    def to_bytes(self) -> bytes:
        """The text of `manifest.json`: the fields and the id they give."""
        value = {"generation_id": self.generation_id, **self.to_json()}
        return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, text: bytes, *, name: str = MANIFEST_NAME) -> Manifest:
        """The manifest that `to_bytes` wrote; raises GenerationError, which names the file `name`, otherwise."""
        try:
            value = json.loads(text)
            version = value["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise GenerationError(
                f"{name} is no manifest of a generation ({error!r}); build the index again"
            ) from error
        if version != FORMAT_VERSION:
            raise GenerationError(
                f"{name} has format version {version}, this program reads version {FORMAT_VERSION}; "
                f"build the index again with this program"
            )
        generation_id = value.pop("generation_id", None)
        manifest = cls._from_json(value, name)
        if manifest.generation_id != generation_id:
            raise GenerationError(
                f"{name} says generation {generation_id}, its fields give {manifest.generation_id}; "
                f"it was altered, build the index again"
            )
        return manifest

    @classmethod
    def _from_json(cls, value: dict[str, Any], name: str) -> Manifest:
        expected = {field.name for field in fields(cls)}
        if set(value) != expected:
            raise GenerationError(
                f"{name} has fields {sorted(value)}, expected {sorted(expected)}; build the index again"
            )
        try:
            return cls(
                **{
                    **value,
                    "term_params": TermParams.from_json(value["term_params"]),
                    "view_similarity": value["view_similarity"] and ViewSimilarity.from_json(value["view_similarity"]),
                    "files": {file: FileEntry(**entry) for file, entry in value["files"].items()},
                }
            )
        except (LshError, KeyError, TypeError, AttributeError) as error:
            raise GenerationError(f"{name} is damaged: {error}; build the index again") from error


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
