"""Contenders of `benchmarks serve` under the same traffic, in turns with an empty call: a row of figures for each."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.serve_corpus import Corpus
from benchmarks.serve_load import Load, LoadGenerator, Sent, write_requests
from benchmarks.serve_peers import BARE_METHOD, EMPTY_METHOD
from benchmarks.servers import Address
from service.client import NearDupClient

OURS, EMPTY, BARE = "ours", "empty call", "bare call"
LOOKUP_METHOD, REGISTER_METHOD = "/neardup.v1.NearDup/Lookup", "/neardup.v1.NearDup/Register"
REGISTERS_IN_FLIGHT = 64
ROUNDS = 10
LONGEST_LOAD_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender in one case.

    `in_flight` is what a closed loop was given, or the mean that an open loop came to. `ratio` and `p99_ratio` are over
    an empty call in the same case, in turns with it; of a promote, over the time around it. Times are those of calls
    that succeeded, `errors` counts the others.
    """

    case: str
    contender: str
    images: int
    in_flight: float
    p50_us: float
    p99_us: float
    calls_per_s: float
    recall: float | None = None
    ratio: float = 1.0
    p99_ratio: float = 1.0
    calls_ratio: float = 1.0
    errors: int = 0
    setting: str = ""

    def over(self, other: Row) -> Row:
        """With ratios over another row."""
        return replace(
            self,
            ratio=self.p50_us / other.p50_us,
            p99_ratio=self.p99_us / other.p99_us,
            calls_ratio=self.calls_per_s / other.calls_per_s if other.calls_per_s else math.nan,
        )


@dataclass(frozen=True, slots=True)
class Traffic:
    """How calls arrive: a closed loop with `in_flight`, or an open one with `rate_per_s`."""

    case: str
    in_flight: int = 0
    rate_per_s: float = 0.0


class Comparison:
    """Contenders in turns with an empty call."""

    def __init__(self, generator: LoadGenerator, corpus: Corpus, empty: Address, *, seconds: float) -> None:
        self._generator = generator
        self._corpus = corpus
        self._seconds = seconds
        self._empty = Load(
            address=empty.address,
            method=EMPTY_METHOD,
            requests=write_requests(corpus.folder / "empty.npy", [b""]),
            seconds=seconds / ROUNDS,
        )
        self._empty_sent: dict[Traffic, list[Sent]] = {}

    def lookups(self, contender: str, server: Address, traffic: Traffic, *, images: int, recall: float) -> Row:
        """Held-out images over and over."""
        load = Load(
            address=server.address, method=LOOKUP_METHOD, requests=self._corpus.requests, seconds=self._empty.seconds
        )
        return replace(self._in_turns(contender, load, traffic, images), recall=recall, setting=server.setting)

    def bare(self, traffic: Traffic) -> Row:
        """An empty call without the call wrapper."""
        return self._in_turns(BARE, replace(self._empty, method=BARE_METHOD), traffic, 0)

    def registers(self, server: Address, requests: str, *, images: int) -> Row:
        """New images, each registered once and on disk before its answer."""
        traffic = Traffic("register", in_flight=REGISTERS_IN_FLIGHT)
        load = Load(
            address=server.address,
            method=REGISTER_METHOD,
            requests=requests,
            seconds=LONGEST_LOAD_S,
            in_flight=traffic.in_flight,
            once=True,
        )
        empty = _row([self._send_empty(traffic, seed=0)], traffic, EMPTY, 0)
        return _row([self._generator.run(load)], traffic, OURS, images).over(empty)

    def promote(self, server: Address, generation_id: str, *, rate_per_s: float, images: int) -> list[Row]:
        """Lookups at a rate around and during a switch to another generation."""
        self._generator.begin(
            Load(
                address=server.address,
                method=LOOKUP_METHOD,
                requests=self._corpus.requests,
                seconds=LONGEST_LOAD_S,
                rate_per_s=rate_per_s,
            )
        )
        with NearDupClient(server.address) as client:
            client.status()
            time.sleep(self._seconds)
            began_s = time.monotonic()
            client.promote(generation_id)
            ended_s = time.monotonic()
        time.sleep(self._seconds)
        self._generator.stop()
        sent = self._generator.finish()
        is_during = (sent.began_s + sent.latency_us / 1e6 >= began_s) & (sent.began_s <= ended_s)
        switch_s = ended_s - began_s
        steady = _row([_part(sent, ~is_during, sent.wall_s - switch_s)], Traffic("promote, around"), OURS, images)
        during = _row([_part(sent, is_during, switch_s)], Traffic("promote, during"), OURS, images)
        return [steady, replace(during.over(steady), setting=f"{switch_s:.1f} s")]

    def uploads_beside_lookups(
        self, server: Address, uploads: str, *, rate_per_s: float, seconds: float, images: int
    ) -> list[Row]:
        """New images and lookups, each at a rate: each upload once, held-out images over and over."""
        lookups = Load(
            address=server.address,
            method=LOOKUP_METHOD,
            requests=self._corpus.requests,
            seconds=seconds,
            rate_per_s=rate_per_s,
        )
        registers = replace(lookups, method=REGISTER_METHOD, requests=uploads, once=True, seed=1)
        with LoadGenerator() as uploader:
            uploader.begin(registers)
            looked_up = self._generator.run(lookups)
            registered = uploader.finish()
        rows = [
            _row([sent], Traffic(f"{what}, beside each other", rate_per_s=rate_per_s), OURS, images)
            for what, sent in (("lookups", looked_up), ("uploads", registered))
        ]
        return [replace(row, setting=f"{seconds:.0f} s") for row in rows]

    def empty_rows(self) -> list[Row]:
        """The empty call itself, over all rounds of each case."""
        return [_row(sent, traffic, EMPTY, 0) for traffic, sent in self._empty_sent.items()]

    def _in_turns(self, contender: str, load: Load, traffic: Traffic, images: int) -> Row:
        """A row over as many rounds of the empty call."""
        load = replace(load, in_flight=traffic.in_flight, rate_per_s=traffic.rate_per_s)
        sent, empty = [], []
        for number in range(ROUNDS):
            empty.append(self._send_empty(traffic, seed=number))
            sent.append(self._generator.run(replace(load, seed=number)))
        return _row(sent, traffic, contender, images).over(_row(empty, traffic, EMPTY, 0))

    def _send_empty(self, traffic: Traffic, *, seed: int) -> Sent:
        sent = self._generator.run(
            replace(self._empty, in_flight=traffic.in_flight, rate_per_s=traffic.rate_per_s, seed=seed)
        )
        self._empty_sent.setdefault(traffic, []).append(sent)
        return sent


def _row(sent: Sequence[Sent], traffic: Traffic, contender: str, images: int) -> Row:
    latency_us = np.concatenate([one.latency_us[one.is_ok] for one in sent])
    p50, p99 = np.quantile(latency_us, [0.5, 0.99]).tolist() if latency_us.size else (math.nan, math.nan)
    wall_s = sum(one.wall_s for one in sent)
    return Row(
        case=traffic.case,
        contender=contender,
        images=images,
        # Little's law: calls in progress are their rate times their length.
        in_flight=traffic.in_flight or float(latency_us.sum()) / 1e6 / wall_s,
        p50_us=p50,
        p99_us=p99,
        calls_per_s=latency_us.size / wall_s,
        errors=sum(int((~one.is_ok).sum()) for one in sent),
    )


def _part(sent: Sent, mask: NDArray[np.bool_], wall_s: float) -> Sent:
    return replace(
        sent, began_s=sent.began_s[mask], latency_us=sent.latency_us[mask], codes=sent.codes[mask], wall_s=wall_s
    )
