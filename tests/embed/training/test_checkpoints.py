"""The checkpoint folder belongs to one training."""

from __future__ import annotations

from pathlib import Path

import pytest

from embed.errors import TrainingError

pytestmark = pytest.mark.tensorflow


def test_checkpoints_of_another_training_are_refused(tmp_path: Path) -> None:
    """Other settings or photos are named, with what they were and what they are."""
    from embed.training import checkpoints

    record = {"seed": 0, "batch_size": 8, "photos_sha256": "aa"}
    checkpoints.claim(tmp_path / "c", record)
    checkpoints.claim(tmp_path / "c", record)

    with pytest.raises(TrainingError, match="seed: there 0, now 1, photos_sha256: there 'aa', now 'bb'"):
        checkpoints.claim(tmp_path / "c", record | {"seed": 1, "photos_sha256": "bb"})


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    """A record that is no JSON object is an error, never taken for a match."""
    from embed.training import checkpoints

    (tmp_path / "training.json").write_text(text)

    with pytest.raises(TrainingError):
        checkpoints.claim(tmp_path, {"seed": 0})


def test_a_half_written_checkpoint_is_ignored(tmp_path: Path) -> None:
    """Only complete checkpoints count; what a killed process left under its temporary name does not."""
    from embed.training import checkpoints

    (tmp_path / ".partial.weights.h5").write_bytes(b"half")
    (tmp_path / "epoch-00002.weights.h5").write_bytes(b"")
    (tmp_path / "epoch-00010.weights.h5").write_bytes(b"")

    assert checkpoints.last_epoch(tmp_path) == 10
