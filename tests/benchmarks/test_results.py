"""Rules of keeping figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.results import write_json


def test_figures_that_json_cannot_hold_become_null(tmp_path: Path) -> None:
    """An infinite threshold is null in the JSON file, deep inside too."""
    figures: dict[str, Any] = {"threshold": float("inf"), "results": [{"recall": 0.5, "threshold": float("inf")}]}
    write_json(tmp_path / "new" / "figures.json", figures)
    written = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert written == {"threshold": None, "results": [{"recall": 0.5, "threshold": None}]}
