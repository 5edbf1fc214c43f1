"""Who is told how a run goes on."""

from __future__ import annotations

from typing import Protocol


class Listener(Protocol):
    """Told how a run goes on."""

    def stage_started(self, stage: str) -> None: ...

    def stage_progressed(self, stage: str, share: float) -> None: ...

    def stage_waiting(self, stage: str, why: str) -> None: ...

    def stage_finished(self, stage: str, *, seconds: float, reused: bool, num_images: int) -> None: ...


class SilentListener:
    """Tells nobody."""

    def stage_started(self, stage: str) -> None: ...

    def stage_progressed(self, stage: str, share: float) -> None: ...

    def stage_waiting(self, stage: str, why: str) -> None: ...

    def stage_finished(self, stage: str, *, seconds: float, reused: bool, num_images: int) -> None: ...
