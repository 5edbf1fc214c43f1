"""`python -m benchmarks soak`: three replicas on one Redis under load, while a replica and then Redis are killed.

Callers look known images up and upload new ones, every tenth twice at once under two ids at two replicas. A call that
fails is tried at the other replicas. It ends with an error when an answer was wrong, when an acknowledged upload is not
found afterwards at every replica, when an image got two originals, or when a call failed at all replicas although
something could serve it: lookups never may, uploads only while Redis is away.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import redis
from numpy.typing import NDArray

from benchmarks.results import versions, write_json
from cli.tables import show_table
from lsh.index.layout import params_for
from lsh.index.publishing import new_generation, promote
from lsh.index.writing import GenerationSpec, GenerationWriter
from service.client import Connection, NearDupClient
from service.errors import CallFailed

NUM_REPLICAS = 3
NUM_IMAGES, DIM = 2000, 64
NUM_CALLERS = 12
AVOID_S = 1.0
TWICE_EVERY = 10
GRACE_S = 3.0
"""After Redis is back, uploads may fail this long: replicas connect again, and a busy machine schedules them late."""

Rows = NDArray[np.float32]


@dataclass
class Tally:
    """What the callers saw."""

    lookups: int = 0
    uploads: int = 0
    retried: int = 0
    failed: int = 0
    wrong: list[str] = field(default_factory=list)
    acknowledged: dict[int, set[str]] = field(default_factory=dict)
    """Number of the uploaded row -> the originals that its callers were told."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Redis:
    """A Redis server with AOF `always`, that is killed and started again on its port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        with redis.Redis(port=self.port) as client:
            for _ in range(3000):
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    time.sleep(0.02)
        raise click.ClickException("redis-server did not start")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Replica:
    """A server that is killed and started again on its port, and a client that outlives it."""

    def __init__(self, workspace: Path, store: str, log: Path) -> None:
        self._command = [sys.executable, "-m", "cli", "serve", "--insecure", "--embedding-only"]
        self._command += ["--workspace", str(workspace), "--store", store]
        self._log = log
        self._address = "127.0.0.1:0"
        self.avoid_until = 0.0
        self.start()
        self.client = NearDupClient(Connection(address=self._address, timeout_s=10.0))

    def start(self) -> None:
        """Start it and wait until it says where it listens."""
        with self._log.open("wb") as output:
            command = [*self._command, "--listen", self._address]
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while self._process.poll() is None:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            if lines and lines[0].endswith("\n"):
                self._address = str(json.loads(lines[0])["listen"])
                return
            time.sleep(0.05)
        raise click.ClickException(f"a replica did not start:\n{self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Soak:
    """The load, the kills and what came of them."""

    def __init__(self, replicas: Sequence[Replica], server: Redis, known: Rows, *, seed: int) -> None:
        self._replicas = replicas
        self._server = server
        self._known = known
        self._rng = np.random.default_rng([seed, 1])
        self._started = time.monotonic()
        self._away: tuple[float, float] = (float("inf"), float("inf"))
        self.tally = Tally()

    def run(self, *, seconds: float, lookups_per_s: float, registers_per_s: float) -> None:
        """Calls at fixed moments, whoever is free makes them; a replica dies after a third, Redis after two thirds."""
        num = int(seconds * (lookups_per_s + registers_per_s))
        is_upload = self._rng.random(num) < registers_per_s / (lookups_per_s + registers_per_s)
        numbers, started = iter(range(num)), time.monotonic()
        self._started = started

        def call() -> None:
            for number in numbers:
                time.sleep(max(0.0, started + number / num * seconds - time.monotonic()))
                if is_upload[number]:
                    self._upload(number)
                else:
                    self._look_up(number)

        with ThreadPoolExecutor(NUM_CALLERS) as callers:
            ends = [callers.submit(call) for _ in range(NUM_CALLERS)]
            time.sleep(seconds / 3)
            self._replicas[1].kill()
            time.sleep(seconds / 30)
            self._replicas[1].start()
            time.sleep(max(0.0, started + seconds * 2 / 3 - time.monotonic()))
            since = time.monotonic()
            self._away = (since, float("inf"))
            self._server.kill()
            time.sleep(seconds / 30)
            self._server.start()
            self._away = (since, time.monotonic() + GRACE_S)
            for end in ends:
                end.result()

    def check(self) -> None:
        """Every replica finds every acknowledged upload under its one original; adds what is wrong to the tally."""
        time.sleep(1.0)
        for number, originals in sorted(self.tally.acknowledged.items()):
            for position, replica in enumerate(self._replicas):
                matches = replica.client.lookup(upload_row(number)).matches
                if {match.image_id for match in matches} != originals:
                    found = [match.image_id for match in matches]
                    self.tally.wrong.append(
                        f"upload {number}: acknowledged {originals}, replica {position} has {found}"
                    )

    def _seconds(self, moment: float) -> str:
        return f"{moment - self._started:.1f} s, Redis away {self._away[0] - self._started:.1f} s on"

    def _look_up(self, number: int) -> None:
        doc = number % NUM_IMAGES
        matches = self._call(number, lambda client: client.lookup(self._known[doc], k=1).matches, is_write=False)
        if matches is not None and [match.image_id for match in matches] != [image_id_of(doc)]:
            self.tally.wrong.append(f"image {doc}: found {[match.image_id for match in matches]}")
        with self.tally.lock:
            self.tally.lookups += 1

    def _upload(self, number: int) -> None:
        """One upload, or two of one image at two replicas at once."""
        names = [f"upload-{number}", f"again-{number}"][: 2 if number % TWICE_EVERY == 0 else 1]
        with ThreadPoolExecutor(len(names)) as threads:
            originals = list(threads.map(lambda i: self._register(number + i, names[i], number), range(len(names))))
        with self.tally.lock:
            self.tally.uploads += len(names)
            told = {original for original in originals if original is not None}
            if told:
                self.tally.acknowledged[number] = told
            if len(told) > 1:
                self.tally.wrong.append(f"upload {number} has the originals {told}")

    def _register(self, first: int, name: str, number: int) -> str | None:
        row = upload_row(number)
        answer = self._call(first, lambda client: client.lookup_or_register(name, row), is_write=True)
        return None if answer is None else str(answer.canonical_id)

    def _call(self, first: int, ask: Callable[[NearDupClient], Any], *, is_write: bool) -> Any:
        """The first answer of any replica, tried in turn; None when none had one."""
        error: CallFailed | None = None
        started = time.monotonic()
        replicas = [self._replicas[(first + i) % NUM_REPLICAS] for i in range(NUM_REPLICAS)]
        for replica in sorted(replicas, key=lambda one: one.avoid_until > started):
            try:
                return ask(replica.client)
            except CallFailed as failure:
                error = failure
                replica.avoid_until = time.monotonic() + AVOID_S
                with self.tally.lock:
                    self.tally.retried += 1
        since, until = self._away
        is_excused = is_write and started < until and time.monotonic() > since
        with self.tally.lock:
            self.tally.failed += 1
            if not is_excused:
                what = "an upload" if is_write else "a lookup"
                self.tally.wrong.append(f"{what} failed at every replica after {self._seconds(started)}: {error}")
        return None


def image_id_of(doc: int) -> str:
    return f"known-{doc}"


def upload_row(number: int) -> NDArray[np.float32]:
    """The embedding of an upload, the same whenever it is asked for."""
    row: NDArray[np.float32] = _unit(np.random.default_rng([2, number]).standard_normal((1, DIM)))[0]
    return row


def write_known(index: Path, *, seed: int) -> Rows:
    """A current generation of images far from each other; returns their embeddings."""
    rows = _unit(np.random.default_rng([seed, 0]).standard_normal((NUM_IMAGES, DIM)))
    spec = GenerationSpec(
        num_docs=NUM_IMAGES,
        term_params=params_for(NUM_IMAGES, dim=DIM, num_tables=8),
        num_probes=64,
        embedder_digest=f"soak-{seed}",
        min_score=0.9,
    )
    with new_generation(index) as folder:
        writer = GenerationWriter(folder, spec)
        writer.add_embeddings(np.arange(NUM_IMAGES), rows)
        writer.write_image_ids(image_id_of(doc) for doc in range(NUM_IMAGES))
        writer.write_clusters(np.empty(0, np.int64), np.empty(0, np.int64))
        generation_id = writer.finish().generation_id
    promote(index, generation_id)
    return rows


def soak(*, seconds: float, lookups_per_s: float, registers_per_s: float, seed: int) -> Tally:
    """Run everything on this machine; returns what the callers saw."""
    with tempfile.TemporaryDirectory(prefix="neardup-soak-") as name, ExitStack() as stack:
        scratch = Path(name)
        known = write_known(scratch / "workspace" / "index", seed=seed)
        server = Redis(scratch)
        stack.callback(server.kill)
        store = f"redis://127.0.0.1:{server.port}"
        replicas = []
        for number in range(NUM_REPLICAS):
            replicas.append(Replica(scratch / "workspace", store, scratch / f"replica-{number}.log"))
            stack.callback(replicas[-1].kill)
            stack.enter_context(replicas[-1].client)
        run = Soak(replicas, server, known, seed=seed)
        run.run(seconds=seconds, lookups_per_s=lookups_per_s, registers_per_s=registers_per_s)
        run.check()
        return run.tally


@click.command()
@click.option("--seconds", type=click.FloatRange(5), default=600.0, show_default=True)
@click.option(
    "--lookups", "lookups_per_s", type=click.FloatRange(1), default=600.0, show_default=True, help="A second."
)
@click.option(
    "--registers", "registers_per_s", type=click.FloatRange(1), default=60.0, show_default=True, help="A second."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def command(*, seconds: float, lookups_per_s: float, registers_per_s: float, seed: int, json_path: Path | None) -> None:
    """Kill a replica and Redis under load; an error unless no answer was wrong and nothing acknowledged was lost.

    Example: python -m benchmarks soak --seconds 600
    """
    tally = soak(seconds=seconds, lookups_per_s=lookups_per_s, registers_per_s=registers_per_s, seed=seed)
    figures = {
        "lookups": tally.lookups,
        "uploads": tally.uploads,
        "acknowledged": len(tally.acknowledged),
        "tried at another replica": tally.retried,
        "uploads failed while Redis was away": tally.failed,
        "wrong": len(tally.wrong),
    }
    show_table("soak", ["", ""], [[name, f"{value:,}"] for name, value in figures.items()])
    write_json(
        json_path, {"benchmark": "soak", "seed": seed, "versions": versions("redis", "grpcio"), "rows": [figures]}
    )
    if tally.wrong:
        raise click.ClickException("\n".join(tally.wrong[:20]))


def _unit(rows: NDArray[np.float64]) -> Rows:
    unit: Rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit
