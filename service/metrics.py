"""What Prometheus sees of a server; names begin with `neardup_`."""

from __future__ import annotations

from collections.abc import Callable, Sized
from contextlib import AbstractContextManager
from functools import cache
from time import perf_counter, time
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.engine import Engine
from service.served import Answer

_SECONDS: Final = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_CANDIDATES: Final = (0, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000)


class _Stage:
    """Observes how long a block takes; a class, because a generator costs a call twice as much."""

    __slots__ = ("_histogram", "_started")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram

    def __enter__(self) -> None:
        self._started = perf_counter()

    def __exit__(self, *_: object) -> None:
        self._histogram.observe(perf_counter() - self._started)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # `labels` checks names and takes a lock each time.
        self._child: Callable[..., Any] = cache(lambda metric, *labels: metric.labels(*labels))
        self.calls = Counter("neardup_calls", "Finished calls.", ["method", "code"], registry=self.registry)
        self.call_seconds = Histogram(
            "neardup_call_seconds", "Duration of calls.", ["method"], buckets=_SECONDS, registry=self.registry
        )
        self.stage_seconds = Histogram(
            "neardup_stage_seconds",
            "Duration of decode, embed, lookup, change and log, waiting included.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.candidates = Histogram(
            "neardup_candidates", "Candidates of a lookup.", buckets=_CANDIDATES, registry=self.registry
        )
        self.lookups = Counter(
            "neardup_lookups", "Lookups by where the best match came from.", ["found_in"], registry=self.registry
        )
        self.rejected_images = Counter(
            "neardup_rejected_images", "Images that could not be decoded.", ["reason"], registry=self.registry
        )
        self.refused_generations = Counter(
            "neardup_refused_generations", "Generations that were not served.", registry=self.registry
        )

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Measure one stage of a call."""
        return _Stage(self._child(self.stage_seconds, name))

    def finish_call(self, method: str, code: str, seconds: float) -> None:
        """Count one call."""
        self._child(self.calls, method, code).inc()
        self._child(self.call_seconds, method).observe(seconds)

    def count_answer(self, answer: Answer) -> None:
        """Count a lookup by its best match's source."""
        self.candidates.observe(answer.num_candidates)
        self._child(self.lookups, answer.matches[0].source.value if answer.matches else "none").inc()

    def watch_engine(self, engine: Engine) -> None:
        """Show the state of the engine whenever Prometheus asks."""
        self._gauge("neardup_live_images", "Images in the live index.", lambda: len(engine.served.uploads))
        self._gauge(
            "neardup_removed_images", "Removed images of the generation.", lambda: engine.served.uploads.num_removed
        )
        self._gauge(
            "neardup_generation_docs", "Images of the generation.", lambda: engine.served.generation.manifest.num_docs
        )
        self._gauge(
            "neardup_generation_age_seconds",
            "Time since the generation was cut.",
            lambda: time() - engine.served.created_at.timestamp(),
        )

        self._gauge(
            "neardup_log_away_seconds",
            "How long the upload log has been out of reach; 0 while it is there.",
            lambda: 0.0 if engine.log.unreachable_since is None else time() - engine.log.unreachable_since,
        )

    def watch_queue(self, name: str, queue: Sized) -> None:
        """Show the length of a queue whenever Prometheus asks."""
        self._gauge(f"neardup_{name}_queue", f"Requests that wait for {name}.", lambda: len(queue))

    def _gauge(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        Gauge(name, documentation, registry=self.registry).set_function(value)
