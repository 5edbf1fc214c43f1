"""The settings of one run of the pipeline: built once at the edge, stored with the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from batch_jobs.errors import BatchError
from embed.decoding import ImageLimits
from lsh.candidates import CandidateParams
from lsh.terms import TermParams, terms_for


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Everything that decides the result of a run, and how it is computed.

    `master`, `num_partitions` and `dtype` do not change which step outputs are reused, except that `dtype` decides
    the embeddings; None is the embedder's own. `num_partitions` None means: from the number of cores. Where `verified`
    is False no codes are compared: candidates of `min_shared_terms` are matches. A `thorough` run compares images with
    the views of others too, which needs codes. `terms` None are those that the workspace was made with, or,
    in a new one, for the number of images; `candidates` None those of the night before, or for the lowest similarity of
    a match. `prediction` is what the plan of `neardup tune` foretold, kept to be held against the outcome.
    """

    source: str
    workspace: Path
    embedder: str = "vgg_copy"
    dtype: str | None = None
    min_score: float | None = None
    min_shared_terms: int = 1
    verified: bool = True
    thorough: bool = False
    max_reject_ratio: float = 1.0
    uri_root: Path | None = None
    limits: ImageLimits = field(default_factory=ImageLimits)
    terms: TermParams | None = None
    candidates: CandidateParams | None = None
    master: str | None = None
    num_partitions: int | None = None
    prediction: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.min_score is not None and not -1.0 <= self.min_score <= 1.0:
            raise BatchError(f"min_score={self.min_score} is out of range -1..1; leave it out for the embedder's own")
        num_tables = (self.terms or terms_for(1)).num_tables
        if not 1 <= self.min_shared_terms <= num_tables:
            raise BatchError(f"min_shared_terms={self.min_shared_terms} is out of range 1..{num_tables}")
        if self.thorough and not self.verified:
            raise BatchError("a thorough run compares codes, and this plan keeps none; tune one with codes")
        if not 0.0 <= self.max_reject_ratio <= 1.0:
            raise BatchError(f"max_reject_ratio={self.max_reject_ratio} is out of range 0..1")
        if self.num_partitions is not None and not 1 <= self.num_partitions <= 100_000:
            raise BatchError(f"num_partitions={self.num_partitions} is out of range 1..100000")

    def to_json(self) -> dict[str, Any]:
        """Every field by its name, as JSON types; `from_json` is its inverse."""
        return as_json(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunSettings:
        """The settings that `to_json` wrote; raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            **{
                **value,
                "workspace": Path(value["workspace"]),
                "uri_root": None if value["uri_root"] is None else Path(value["uri_root"]),
                "limits": ImageLimits(**value["limits"]),
                "terms": None if value["terms"] is None else TermParams.from_json(value["terms"]),
                "candidates": None if value["candidates"] is None else CandidateParams(**value["candidates"]),
            }
        )


def digest(value: Any) -> str:
    """The SHA-256, in hex, of a value's canonical JSON.

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def as_json(params: Any) -> dict[str, Any]:
    """A parameter dataclass as plain JSON values."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(params).items()}
