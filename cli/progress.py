"""How a run shows itself while it works: a live bar on a terminal, lines with `--verbose`, else next to nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from batch_jobs.listeners import Listener

STAGE_LABELS = {
    "start": "starting",
    "catalogue": "reading images",
    "embed": "embedding",
    "terms": "hashing",
    "candidates": "finding candidates",
    "select": "selecting matches",
    "views": "embedding views",
    "view_terms": "hashing views",
    "compare": "comparing views",
    "cluster": "clustering",
    "report": "writing report",
}


class QuietProgress:
    """Nothing, but a line on standard error when a stage waits: nobody would find out otherwise."""

    def stage_started(self, stage: str) -> None:
        pass

    def stage_progressed(self, stage: str, share: float) -> None:
        pass

    def stage_waiting(self, stage: str, why: str) -> None:
        click.echo(f"{stage}: {why}", err=True)

    def stage_finished(self, stage: str, *, seconds: float, reused: bool, num_images: int) -> None:
        pass


class LineProgress(QuietProgress):
    """One line on standard error when a stage starts and when it ends."""

    def stage_started(self, stage: str) -> None:
        click.echo(f"{stage}: started", err=True)

    def stage_finished(self, stage: str, *, seconds: float, reused: bool, num_images: int) -> None:
        how = "reused" if reused else f"{seconds:.1f} s{_rate(num_images, seconds)}"
        click.echo(f"{stage}: {how}", err=True)


class BarProgress:
    """A live line per stage: its share, images a second and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description:<19}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[note]:>14}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, Any] = {}
        self._started: dict[str, float] = {}

    def __enter__(self) -> BarProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def stage_started(self, stage: str) -> None:
        self._started[stage] = time.monotonic()
        self._tasks[stage] = self._progress.add_task(STAGE_LABELS[stage], total=1.0, note="")

    def stage_progressed(self, stage: str, share: float) -> None:
        self._progress.update(self._tasks[stage], completed=min(share, 0.99))

    def stage_waiting(self, stage: str, why: str) -> None:
        self._progress.console.print(f"{stage}: {why}")

    def stage_finished(self, stage: str, *, seconds: float, reused: bool, num_images: int) -> None:
        note = "reused" if reused else _rate(num_images, seconds).strip(" ,")
        self._progress.update(self._tasks[stage], completed=1.0, note=note)


def _rate(num_images: int, seconds: float) -> str:
    return f", {num_images / seconds:,.0f} images/s" if num_images and seconds > 0 else ""


@contextmanager
def progress(*, verbose: bool, json_output: bool = False) -> Iterator[Listener]:
    """What shows a run: a bar for a person who watches, lines for one who asked for them, else nothing."""
    if sys.stderr.isatty() and not json_output and not verbose:
        with BarProgress() as bar:
            yield bar
    else:
        yield LineProgress() if verbose else QuietProgress()
