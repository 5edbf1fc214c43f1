"""Micro-batches across requests: what waits while a worker is busy goes to the next free one together.

A bounded queue in front of work that is cheaper in batches or must leave the event loop. Full, it refuses at once
instead of making everybody slow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from service.errors import Overloaded

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """At most `max_batch` items at once, begun at most `max_wait_s` after the first came; `max_queue` may wait."""

    max_batch: int
    max_wait_s: float
    max_queue: int
    num_workers: int = 1


class Batcher(Generic[Item, Result]):
    """Calls `process` on an executor with the items of several callers. Belongs to one event loop."""

    def __init__(
        self,
        name: str,
        process: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        executor: Executor,
        limits: BatchLimits,
    ) -> None:
        """`process` returns one result, or one exception to raise at its caller, for each item in order."""
        self.name = name
        self._process = process
        self._executor = executor
        self._limits = limits
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._num_running = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    async def __call__(self, item: Item) -> Result:
        """The result for one item; raises Overloaded when too many wait. A cancelled caller's item is not begun."""
        if len(self._waiting) >= self._limits.max_queue:
            raise Overloaded(f"{len(self._waiting)} requests wait for {self.name} already; try again later")
        told: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, told))
        self._begin()
        return await told

    def _begin(self) -> None:
        """Begin batches as long as a worker is free and one is due."""
        while self._waiting and self._num_running < self._limits.num_workers:
            if self._limits.max_wait_s and len(self._waiting) < self._limits.max_batch:
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(self._limits.max_wait_s, self._time_is_up)
                return
            self._begin_batch()

    def _time_is_up(self) -> None:
        self._timer = None
        if self._waiting and self._num_running < self._limits.num_workers:
            self._begin_batch()
        self._begin()

    def _begin_batch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self._limits.max_batch:
            item, told = self._waiting.popleft()
            if not told.done():
                batch.append((item, told))
        if not batch:
            return
        self._num_running += 1
        self._executor.submit(self._process_batch, batch, asyncio.get_running_loop())

    def _process_batch(
        self, batch: Sequence[tuple[Item, asyncio.Future[Result]]], loop: asyncio.AbstractEventLoop
    ) -> None:
        """In a worker: process the items and tell the event loop. One message back is half of what awaiting costs."""
        results: Sequence[Result | BaseException]
        try:
            results = self._process([item for item, _ in batch])
        except BaseException as error:
            results = [error] * len(batch)
        loop.call_soon_threadsafe(self._finish, [told for _, told in batch], results)

    def _finish(self, callers: Sequence[asyncio.Future[Result]], results: Sequence[Result | BaseException]) -> None:
        self._num_running -= 1
        for told, result in zip(callers, results, strict=True):
            if told.done():
                continue
            if isinstance(result, BaseException):
                told.set_exception(result)
            else:
                told.set_result(result)
        self._begin()


def run_each(calls: Sequence[Callable[[], Result]]) -> list[Result | Exception]:
    """Call each in order; its result or what it raised. The `process` of a queue of unlike calls."""
    results: list[Result | Exception] = []
    for call in calls:
        try:
            results.append(call())
        except Exception as error:
            results.append(error)
    return results
