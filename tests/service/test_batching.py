"""Micro-batching: what goes together, what is refused, what is forgotten."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from service.batching import Batcher, BatchLimits, run_each
from service.errors import InvalidRequest, Overloaded


def run(
    test: Callable[[Batcher[int, int], list[list[int]], threading.Event], Coroutine[Any, Any, None]],
    limits: BatchLimits,
) -> list[list[int]]:
    """Run a test against a batcher that adds one, and whose work waits for an event; returns its batches."""
    batches: list[list[int]] = []
    may_work = threading.Event()

    def add_one(items: Sequence[int]) -> Sequence[int | Exception]:
        batches.append(list(items))
        assert may_work.wait(10)
        return [InvalidRequest("negative") if item < 0 else item + 1 for item in items]

    async def main(executor: ThreadPoolExecutor) -> None:
        await test(Batcher("adding", add_one, executor, limits), batches, may_work)

    with ThreadPoolExecutor(limits.num_workers) as executor:
        asyncio.run(main(executor))
    return batches


def test_what_waits_for_a_worker_goes_together() -> None:
    """The first item starts at once, the others share the next batches, each caller gets its own result."""

    async def test(batcher: Batcher[int, int], _: list[list[int]], may_work: threading.Event) -> None:
        calls = [asyncio.ensure_future(batcher(number)) for number in range(7)]
        await asyncio.sleep(0.05)
        may_work.set()
        assert await asyncio.gather(*calls) == [1, 2, 3, 4, 5, 6, 7]

    assert run(test, BatchLimits(max_batch=4, max_wait_s=0.0, max_queue=10)) == [[0], [1, 2, 3, 4], [5, 6]]


def test_a_batch_waits_for_company_but_not_long() -> None:
    """Items that come within the wait share a batch, a full batch starts at once, a lonely item is not forgotten."""

    async def test(batcher: Batcher[int, int], batches: list[list[int]], may_work: threading.Event) -> None:
        may_work.set()
        assert list(await asyncio.gather(batcher(0), batcher(1), batcher(2))) == [1, 2, 3]
        assert list(await asyncio.wait_for(asyncio.gather(batcher(3), batcher(4)), 5)) == [4, 5]
        assert await asyncio.wait_for(batcher(5), 5) == 6

    assert run(test, BatchLimits(max_batch=3, max_wait_s=0.05, max_queue=10)) == [[0, 1, 2], [3, 4], [5]]


def test_a_full_queue_refuses() -> None:
    """One is worked on, two wait, the fourth is told to come back."""

    async def test(batcher: Batcher[int, int], _: list[list[int]], may_work: threading.Event) -> None:
        calls = [asyncio.ensure_future(batcher(number)) for number in range(3)]
        await asyncio.sleep(0)
        assert len(batcher) == 2
        with pytest.raises(Overloaded, match="2 requests wait for adding"):
            await batcher(3)
        may_work.set()
        assert await asyncio.gather(*calls) == [1, 2, 3]

    run(test, BatchLimits(max_batch=1, max_wait_s=0.0, max_queue=2))


def test_an_error_reaches_its_own_caller_only() -> None:
    """The others of the batch have their results."""

    async def test(batcher: Batcher[int, int], _: list[list[int]], may_work: threading.Event) -> None:
        may_work.set()
        results = await asyncio.gather(batcher(1), batcher(-1), batcher(3), return_exceptions=True)
        assert (results[0], results[2]) == (2, 4)
        assert isinstance(results[1], InvalidRequest)

    run(test, BatchLimits(max_batch=3, max_wait_s=0.5, max_queue=5))


def test_who_gave_up_is_not_worked_for() -> None:
    """A cancelled caller's item is dropped before its batch begins."""

    async def test(batcher: Batcher[int, int], _: list[list[int]], may_work: threading.Event) -> None:
        calls = [asyncio.ensure_future(batcher(number)) for number in range(4)]
        await asyncio.sleep(0)
        calls[1].cancel()
        calls[3].cancel()
        await asyncio.sleep(0)
        may_work.set()
        assert (await calls[0], await calls[2]) == (1, 3)

    assert run(test, BatchLimits(max_batch=1, max_wait_s=0.0, max_queue=5)) == [[0], [2]]


def test_calls_are_run_one_by_one() -> None:
    """What one raises is its result; the next one is called."""

    def fail() -> int:
        raise InvalidRequest("no")

    results = run_each([lambda: 1, fail, lambda: 3])

    assert (results[0], results[2]) == (1, 3)
    assert isinstance(results[1], InvalidRequest)
