"""What tuning is asked for and what it answers: a target, and plans with what each is predicted to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lsh.candidates import CandidateParams
from lsh.errors import ParameterError
from lsh.terms import TermParams

MAX_TABLES = 96
MIN_TABLES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningTarget:
    """What is asked for: this share of the pairs of a similarity just above `min_similarity`, of `num_images`.

    Where `verified` is False, codes will not be read: candidates that share enough terms are matches, and of these no
    more than `max_false_ratio` may have a smaller similarity than `min_similarity`.
    """

    num_images: int
    min_similarity: float = 0.8
    target_recall: float = 0.95
    verified: bool = True
    max_false_ratio: float = 0.5
    max_tables: int = MAX_TABLES

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_images", 2, 1 << 40),
            ("min_similarity", 0.3, 0.999),
            ("target_recall", 0.1, 0.9999),
            ("max_false_ratio", 0.0, 1.0),
            ("max_tables", MIN_TABLES, MAX_TABLES),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ParameterError(f"{name}={value} is out of range {low}..{high}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCosts:
    """Core-seconds of one posting through both blocks, of one pair walked, kept by its sketch, and verified."""

    posting_s: float
    walked_s: float
    kept_s: float
    verified_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a plan does, foretold or measured; per image, but for `recall`, `false_ratio` and `largest_bucket`.

    `walked` pairs are compared by sketch, once for each shared term; `candidates` are distinct and shared at least
    `min_shared_terms`. `false_ratio` is the share of candidates below `min_similarity`.
    """

    recall: float
    false_ratio: float
    walked: float
    candidates: float
    term_block_bytes: float
    pair_block_bytes: float
    largest_bucket: int
    hash_s: float
    join_s: float
    verify_s: float

    @property
    def core_s(self) -> float:
        """Core-seconds of the kernels for one image."""
        return self.hash_s + self.join_s + self.verify_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to run the batch, and what it is predicted to do."""

    terms: TermParams
    candidates: CandidateParams
    min_shared_terms: int
    verified: bool
    prediction: Prediction

    def to_json(self) -> dict[str, Any]:
        """Every field by its name, as JSON types; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        """The plan that `to_json` wrote; raises ParameterError for missing, unknown or wrong fields."""
        try:
            return cls(
                terms=TermParams.from_json(value["terms"]),
                candidates=CandidateParams(**value["candidates"]),
                min_shared_terms=int(value["min_shared_terms"]),
                verified=bool(value["verified"]),
                prediction=Prediction(**value["prediction"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ParameterError(f"this is no plan of `neardup tune` ({error}); make it again") from error
