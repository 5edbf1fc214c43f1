"""The chaos run in its short form; `make soak` runs it for ten minutes."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.soak import soak


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server")
def test_nothing_acknowledged_is_lost_and_no_answer_is_wrong() -> None:
    """A replica and Redis are killed among lookups and uploads."""
    tally = soak(seconds=9, lookups_per_s=30, registers_per_s=5, seed=1)

    assert tally.wrong == []
    assert tally.lookups > 200
    assert len(tally.acknowledged) > 20
