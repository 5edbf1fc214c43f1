"""Rules of the capacity model."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from benchmarks.capacity import Cost, command, fit


@pytest.mark.parametrize("exponent", [1.0, 1.1, 1.3])
def test_a_law_is_found_from_three_points_on_it(exponent: float) -> None:
    """Fixed costs, costs an image and the exponent are those that made the points."""
    law = Cost(fixed=30.0, per_image=2e-4, exponent=exponent, largest=1_000_000)
    found = fit((size, law.at(size)) for size in (125_000, 250_000, 500_000, 1_000_000))
    assert found.exponent == pytest.approx(exponent, abs=0.02)
    assert found.at(1_000_000_000) == pytest.approx(law.at(1_000_000_000), rel=0.2)


def test_two_points_make_a_line() -> None:
    """The exponent needs a third size."""
    found = fit([(100, 20.0), (300, 40.0)])
    assert [found.fixed, found.per_image, found.exponent] == pytest.approx([10.0, 0.1, 1.0])


def test_what_gets_cheaper_by_the_image_is_not_believed() -> None:
    """Costs that grow slower than the images are fixed costs: the law is linear, and nothing in it is negative."""
    found = fit([(100, 10.0), (1000, 30.0), (10_000, 90.0)])
    assert found.exponent == 1.0
    assert found.fixed >= 0
    assert found.per_image > 0


def test_one_size_is_not_enough() -> None:
    """A single measurement says nothing of growth."""
    with pytest.raises(click.ClickException, match="two or more are needed"):
        fit([(100, 20.0), (100, 21.0)])


def test_what_is_beyond_the_largest_run_is_called_extrapolated(tmp_path: Path) -> None:
    """The table tells measured, fitted and extrapolated rows apart; the JSON holds the law and its values."""
    rows = [
        {"contender": "ours", "images": images, "cpu_s": 20.0 + images / 1e4, "shuffle_bytes": images, "disk_bytes": 1}
        for images in (100_000, 1_000_000)
    ]
    (tmp_path / "batch.json").write_text(json.dumps({"benchmark": "batch", "rows": rows}))
    arguments = [str(tmp_path / "batch.json"), "--images", "500000", "--images", "8000000000"]
    result = CliRunner().invoke(command, [*arguments, "--json", str(tmp_path / "capacity.json")])
    assert result.exit_code == 0
    assert [result.output.count(word) for word in ("measured", "fitted", "extrapolated")] == [2, 1, 1]
    found = json.loads((tmp_path / "capacity.json").read_text())
    assert found["rows"][1]["cpu_s"] == pytest.approx(800_020, rel=1e-6)


def test_other_json_is_refused_by_name(tmp_path: Path) -> None:
    """A file of something else is a plain error."""
    (tmp_path / "other.json").write_text("{}")
    result = CliRunner().invoke(command, [str(tmp_path / "other.json")])
    assert result.exit_code == 1
    assert "other.json is no JSON of a benchmark" in result.output
