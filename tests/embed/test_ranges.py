"""Rules of settings within ranges."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from embed.errors import TrainingError
from embed.ranges import check_ranges


@pytest.mark.parametrize("epochs", [1, 5])
def test_both_ends_of_a_range_are_allowed(epochs: int) -> None:
    """Nothing is raised for a value at either end."""
    check_ranges(SimpleNamespace(epochs=epochs), {"epochs": (1, 5)}, error=TrainingError)


@pytest.mark.parametrize("epochs", [0, 6])
def test_a_value_outside_is_named_with_its_range(epochs: int) -> None:
    """The error says which setting, its value and what is allowed."""
    with pytest.raises(TrainingError, match=rf"epochs={epochs} is out of range 1\.\.5"):
        check_ranges(SimpleNamespace(epochs=epochs), {"epochs": (1, 5)}, error=TrainingError)
