"""How similar a view makes its image to a query: part of a generation's manifest, decided by who made the views."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lsh.errors import ParameterError


@dataclass(frozen=True, slots=True)
class ViewSimilarity:
    """Of each of an image's views how much less its cosine counts, and how much more for exceeding that of the image.

    Less its margin, a view counts `lift` times what it exceeds the cosine of query and image more, at most `max_lift`.
    """

    margins: tuple[float, ...]
    lift: float = 0.0
    max_lift: float = 0.0

    def __post_init__(self) -> None:
        if not self.margins or not all(map(math.isfinite, self.margins)):
            raise ParameterError(f"margins {self.margins} are none; give a number for each view of an image")
        for name, value in (("lift", self.lift), ("max_lift", self.max_lift)):
            if not (math.isfinite(value) and value >= 0):
                raise ParameterError(f"{name}={value} is out of range; pass 0 or more")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ViewSimilarity:
        """From the fields by name, `margins` as a list; raises ParameterError and TypeError."""
        return cls(**{**value, "margins": tuple(value["margins"])})

    def lowest_cosine(self, min_similarity: float) -> float:
        """No view of a lower cosine makes its image that similar.

        >>> round(ViewSimilarity(margins=(0.03, 0.02), lift=0.2, max_lift=0.05).lowest_cosine(0.8), 3)
        0.77
        """
        return max(-1.0, min_similarity + min(self.margins) - self.max_lift)
