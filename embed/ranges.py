"""Settings within their ranges, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embed.errors import EmbedError


def check_ranges(settings: Any, ranges: Mapping[str, tuple[float, float]], *, error: type[EmbedError]) -> None:
    """Raise `error` for the first of the attributes in `ranges` that lies outside, the ends being within."""
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise error(f"{name}={value} is out of range {low}..{high}")
