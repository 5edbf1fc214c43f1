"""The load generator of `benchmarks serve`: a process of its own that sends prepared requests and keeps the clock.

With a number `in_flight` the next call begins when one ends. With a rate, calls begin at Poisson arrivals whatever the
server does (an open loop), and their time counts from the arrival that was planned, so a server that stalls cannot hide
it by holding up its callers. Requests and responses stay bytes: the generator spends its time on gRPC alone.

The process reads one load a line from its standard input, and `stop` to end the one in progress early.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
import uvloop
from numpy.typing import NDArray

CALL_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Calls of one method for `seconds`: closed loop with `in_flight`, or open loop with `rate_per_s`.

    `requests` is an .npy of `(n, size)` uint8, sent one after the other: each `once`, with the responses kept, or
    over and over.
    """

    address: str
    method: str
    requests: str
    seconds: float
    in_flight: int = 0
    rate_per_s: float = 0.0
    once: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sent:
    """What became of the calls, `(n,)` each, in order of their end: when they began, how long they took, their codes.

    `began_s` is of the machine's monotonic clock; a code of 0 is OK. `responses` holds bytes by request, if kept.
    """

    began_s: NDArray[np.float64]
    latency_us: NDArray[np.float64]
    codes: NDArray[np.int64]
    wall_s: float
    responses: list[bytes]

    @property
    def is_ok(self) -> NDArray[np.bool_]:
        """Which calls succeeded."""
        ok: NDArray[np.bool_] = self.codes == 0
        return ok


class LoadGenerator:
    """The process, from the side of the benchmark; a context manager."""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="neardup-load-")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serve_load", self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def run(self, load: Load) -> Sent:
        """Make a load and wait for its end."""
        self.begin(load)
        return self.finish()

    def begin(self, load: Load) -> None:
        """Start a load."""
        self._tell(json.dumps(asdict(load)))

    def stop(self) -> None:
        """End the load in progress early."""
        self._tell("stop")

    def finish(self) -> Sent:
        """Wait for the end of the load."""
        assert self._process.stdout is not None  # noqa: S101 - piped above
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load generator ended; its error is above")
        with np.load(Path(self._folder.name) / "sent.npz") as arrays:
            content = arrays["responses"].tobytes()
            ends = arrays["response_ends"].tolist()
            return Sent(
                began_s=arrays["began_s"],
                latency_us=arrays["latency_us"],
                codes=arrays["codes"],
                wall_s=float(line),
                responses=[content[start:end] for start, end in zip([0, *ends], ends, strict=False)],
            )

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 - piped above
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def write_requests(path: Path, requests: list[bytes]) -> str:
    """Requests of equal length as the .npy that a load sends; returns its path."""
    size = len(requests[0])
    np.save(path, np.frombuffer(b"".join(requests), dtype=np.uint8).reshape(len(requests), size))
    return str(path)


class _Run:
    """One load in progress."""

    def __init__(self, load: Load, call: Any) -> None:
        self.load = load
        self._call = call
        rows = [row.tobytes() for row in np.load(load.requests)]
        self._requests: Iterator[tuple[int, bytes]] = enumerate(rows) if load.once else cycle(enumerate(rows))
        self.responses: dict[int, bytes] = {}
        self.calls: list[tuple[float, float, int]] = []
        self.asked_to_stop = threading.Event()

    async def closed_loop(self) -> None:
        end = time.monotonic() + self.load.seconds

        async def one_after_the_other() -> None:
            for number, request in self._requests:
                now = time.monotonic()
                if now >= end or self.asked_to_stop.is_set():
                    return
                await self._send(number, request, now)

        await asyncio.gather(*(one_after_the_other() for _ in range(self.load.in_flight)))

    async def open_loop(self) -> None:
        """Arrivals come from a thread that sleeps, because timers of event loops round to milliseconds."""
        loop, pending = asyncio.get_running_loop(), set[asyncio.Task[None]]()

        def begin(number: int, request: bytes, planned: float) -> None:
            task = loop.create_task(self._send(number, request, planned))
            pending.add(task)
            task.add_done_callback(pending.discard)

        def arrive() -> None:
            gaps = np.random.default_rng(self.load.seed)
            planned = time.monotonic()
            end = planned + self.load.seconds
            for number, request in self._requests:
                planned += gaps.exponential(1.0 / self.load.rate_per_s)
                if planned >= end or self.asked_to_stop.is_set():
                    return
                time.sleep(max(0.0, planned - time.monotonic()))
                loop.call_soon_threadsafe(begin, number, request, planned)

        await asyncio.to_thread(arrive)
        while pending:
            await asyncio.wait(pending)

    async def _send(self, number: int, request: bytes, began: float) -> None:
        code = 0
        try:
            response = await self._call(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            code = int(error.code().value[0])
        else:
            if self.load.once:
                self.responses[number] = response
        self.calls.append((began, time.monotonic() - began, code))

    def save(self, path: Path) -> None:
        began, seconds, codes = zip(*self.calls, strict=True) if self.calls else ((), (), ())
        kept = [self.responses.get(number, b"") for number in range(max(self.responses, default=-1) + 1)]
        np.savez(
            path,
            began_s=np.array(began, dtype=np.float64),
            latency_us=np.array(seconds, dtype=np.float64) * 1e6,
            codes=np.array(codes, dtype=np.int64),
            responses=np.frombuffer(b"".join(kept), dtype=np.uint8),
            response_ends=np.cumsum([len(response) for response in kept], dtype=np.int64),
        )


async def _serve_loads(folder: Path) -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    next_line = asyncio.ensure_future(lines.readline())
    while line := await next_line:
        next_line = asyncio.ensure_future(lines.readline())
        if line.strip() == b"stop":
            continue
        load = Load(**json.loads(line))
        async with grpc.aio.insecure_channel(load.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            await channel.channel_ready()
            run = _Run(load, channel.unary_unary(load.method))
            started = time.monotonic()
            running = asyncio.ensure_future(run.closed_loop() if load.in_flight else run.open_loop())
            await asyncio.wait([running, next_line], return_when=asyncio.FIRST_COMPLETED)
            if next_line.done():
                run.asked_to_stop.set()
            await running
            wall_s = time.monotonic() - started
        run.save(folder / "sent.npz")
        print(wall_s, flush=True)


if __name__ == "__main__":
    uvloop.run(_serve_loads(Path(sys.argv[1])))
