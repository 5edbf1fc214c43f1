"""The state of a training on disk: one file per finished epoch, and the settings and photos it belongs to.

Used by `trainer`. A checkpoint carries its epoch in its name and appears by renaming, so a process killed at any
moment leaves either the old checkpoint or the new one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from embed.errors import TrainingError
from embed.keras_backend import keras

_RECORD: Final = "training.json"
_CHECKPOINT: Final = re.compile(r"epoch-(\d{5})\.weights\.h5")


def claim(folder: Path, record: Mapping[str, object]) -> None:
    """Reserve `folder` for the training that `record` describes; raises TrainingError when it belongs to another."""
    path = folder / _RECORD
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            partial = folder / f".{_RECORD}.partial"
            partial.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
            partial.replace(path)
            return
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"the checkpoint folder {folder} cannot be used: {error}") from error
    if found != record:
        raise TrainingError(
            f"{folder} holds checkpoints of another training ({_differences(found, record)}); "
            f"repeat it with the same settings and photos, or give another checkpoint folder"
        )


def _differences(found: Any, wanted: Mapping[str, object]) -> str:
    if not isinstance(found, dict):
        return f"{_RECORD} is damaged"
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    return ", ".join(f"{name}: there {found.get(name)!r}, now {wanted.get(name)!r}" for name in names)


def last_epoch(folder: Path) -> int:
    """How many epochs are finished."""
    return max((epoch for epoch, _ in _found(folder)), default=0)


def restore(folder: Path, model: keras.Model) -> int:
    """Load the last checkpoint into `model`, which was called and whose optimizer is built; the epochs finished."""
    epoch, path = max(_found(folder), default=(0, None))
    if path is None:
        return 0
    try:
        model.load_weights(path)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrainingError(f"the checkpoint {path} is damaged ({reason}); delete it to start again") from error
    return epoch


def save(folder: Path, model: keras.Model, epoch: int) -> None:
    """Write the state after `epoch` epochs, then delete the older ones."""
    older = [path for _, path in _found(folder)]
    partial = folder / ".partial.weights.h5"
    model.save_weights(partial, overwrite=True)
    path = folder / f"epoch-{epoch:05d}.weights.h5"
    partial.replace(path)
    for other in older:
        if other != path:
            other.unlink(missing_ok=True)


def _found(folder: Path) -> list[tuple[int, Path]]:
    matches = ((_CHECKPOINT.fullmatch(path.name), path) for path in folder.iterdir())
    return [(int(match[1]), path) for match, path in matches if match]
