"""Decoding in processes of its own, so that a hostile image ends at most one of them.

Each process decodes one image at a time within limits of memory and time; one that dies or takes too long is replaced
and its image rejected. Bytes go through pipes, nothing is pickled.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embed.decoding import ImageLimits, ImageRejected, RejectReason
from service.decode_worker import ANSWER, PIXELS, REQUEST, square_sizes
from service.errors import Overloaded, SettingsError

_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "VIRTUAL_ENV", "HOME")
_START_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingLimits:
    """Of one image, of one process, and of how many images may wait."""

    image: ImageLimits
    memory_bytes: int = 1 << 30
    time_s: float = 5.0
    num_processes: int = 2
    max_queue: int = 64
    max_queue_bytes: int = 256 << 20


class DecodingPool:
    """A fixed number of decoder processes. Belongs to one event loop."""

    def __init__(self, *, size: int, limits: DecodingLimits, with_views: bool = False) -> None:
        self.num_restarts = 0
        self._size = size
        self._with_views = with_views
        self._limits = limits
        self._idle: asyncio.Queue[asyncio.subprocess.Process] = asyncio.Queue()
        self._processes: set[asyncio.subprocess.Process] = set()
        self._num_waiting = 0
        self._waiting_bytes = 0
        self._jobs: set[asyncio.Task[list[NDArray[np.uint8]]]] = set()

    def __len__(self) -> int:
        return self._num_waiting

    async def start(self) -> None:
        """Start the processes and wait until each has decoded an image; raises SettingsError."""
        for _ in range(self._limits.num_processes):
            await self._add_process()
        started = [await self._idle.get() for _ in range(self._limits.num_processes)]
        for process in started:
            try:
                await asyncio.wait_for(self._ask(process, b"not an image"), _START_TIMEOUT_S)
            except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
                raise SettingsError(
                    "a decoder process does not start within its limits; give it more memory: --decoder-mib"
                ) from error
            except ImageRejected:
                self._idle.put_nowait(process)

    async def decode(self, content: bytes) -> list[NDArray[np.uint8]]:
        """An image file as `(size, size, 3)` uint8 RGB, and as the squares of its views where they are wanted.

        Raises ImageRejected, or Overloaded when too many wait.
        """
        if self._num_waiting >= self._limits.max_queue or self._waiting_bytes > self._limits.max_queue_bytes:
            raise Overloaded(f"{self._num_waiting} images wait to be decoded already; try again later")
        self._num_waiting += 1
        self._waiting_bytes += len(content)
        # A caller that gives up must not leave a process with half an answer in its pipe.
        job = asyncio.ensure_future(self._decode(content))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return await asyncio.shield(job)

    async def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.kill()
        await asyncio.gather(*(process.wait() for process in self._processes))

    async def _decode(self, content: bytes) -> list[NDArray[np.uint8]]:
        try:
            process = await self._living_process()
        finally:
            self._num_waiting -= 1
            self._waiting_bytes -= len(content)
        try:
            pixels = await asyncio.wait_for(self._ask(process, content), self._limits.time_s)
        except TimeoutError as error:
            await self._replace(process)
            detail = f"decoding takes longer than {self._limits.time_s:g} s"
            raise ImageRejected(RejectReason.UNREADABLE, detail) from error
        except (OSError, asyncio.IncompleteReadError) as error:
            await self._replace(process)
            raise ImageRejected(RejectReason.UNREADABLE, "the image ended its decoder") from error
        except BaseException:
            self._idle.put_nowait(process)
            raise
        self._idle.put_nowait(process)
        return pixels

    async def _living_process(self) -> asyncio.subprocess.Process:
        """One that waits for an image; those that ended while they waited are replaced."""
        while _has_ended(process := await self._idle.get()):
            await self._replace(process)
        return process

    async def _ask(self, process: asyncio.subprocess.Process, content: bytes) -> list[NDArray[np.uint8]]:
        assert process.stdin is not None  # noqa: S101 - both are pipes
        assert process.stdout is not None  # noqa: S101
        process.stdin.write(REQUEST.pack(len(content)))
        process.stdin.write(content)
        await process.stdin.drain()
        status, length = ANSWER.unpack(await process.stdout.readexactly(ANSWER.size))
        payload = await process.stdout.readexactly(length)
        if status == PIXELS:
            sizes = square_sizes(self._size, with_views=self._with_views)
            parts = np.split(np.frombuffer(payload, dtype=np.uint8), np.cumsum([3 * size**2 for size in sizes])[:-1])
            return [part.reshape(size, size, 3) for part, size in zip(parts, sizes, strict=True)]
        reason, _, detail = payload.decode().partition("\n")
        raise ImageRejected(RejectReason(reason), detail)

    async def _replace(self, process: asyncio.subprocess.Process) -> None:
        """End a process and start another; raises Overloaded when the machine has no room for it now."""
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        try:
            await self._add_process()
        except OSError as error:
            self._idle.put_nowait(process)  # it keeps its place, and the next image tries again
            raise Overloaded(f"no decoder process can be started ({error}); try again later") from error
        self._processes.discard(process)
        self.num_restarts += 1

    async def _add_process(self) -> None:
        limits = self._limits
        images = limits.image
        arguments = (self._size, int(self._with_views), images.max_bytes, images.max_pixels, limits.memory_bytes)
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "service.decode_worker",
            *map(str, arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**environment, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self._processes.add(process)
        self._idle.put_nowait(process)


def _has_ended(process: asyncio.subprocess.Process) -> bool:
    return process.returncode is not None or process.stdin is None or process.stdin.is_closing()
