"""The gRPC server: an engine, the services around it, and their life from start to drain.

One process on uvloop. The event loop only moves messages; the engine, the network and SQLite run in threads, decoders
in processes.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from time import perf_counter
from typing import Any, Final, NoReturn

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from lsh.errors import GenerationError, StoreError
from lsh.index.store import FolderStore, GenerationStore
from service import neardup_pb2 as pb
from service.admin_servicer import AdminServicer
from service.calls import Calls, rpc_handler
from service.certificates import server_credentials
from service.engine import Engine, OpenLog
from service.errors import ServiceError, SettingsError
from service.image_embedding import load_image_embedding
from service.json_logs import configure_logs
from service.lookup_servicer import LookupServicer
from service.metrics import Metrics
from service.settings import ServeSettings, host_and_port, is_loopback
from service.tokens import Tokens
from service.traces import Traces
from service.upload_log import UploadLog

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S: Final = 0.0005
"""How long a thread that wants Python's lock waits before the holder is asked for it.

Python's own 5 ms let a busy event loop keep answers waiting that a lookup's thread has at hand.
"""
_SERVICES: Final = tuple(pb.DESCRIPTOR.services_by_name[name] for name in ("NearDup", "Admin"))
_SERVICE_NAMES: Final = tuple(service.full_name for service in _SERVICES)
_KEEPALIVE_MS: Final = 60_000
_MAX_METADATA_BYTES: Final = 16 << 10


class Server:
    """A server of one workspace. `start`, then `stop`; both once."""

    def __init__(self, settings: ServeSettings) -> None:
        """Raises SettingsError for tokens, certificates or traces that cannot be used."""
        self.settings = settings
        self.metrics = Metrics()
        self.port = 0
        self._tokens = Tokens(settings.tokens)
        self._health = health.aio.HealthServicer()
        self._cleanup = AsyncExitStack()
        self._server = grpc.aio.server(
            options=server_options(max_message_bytes=settings.max_message_bytes),
            maximum_concurrent_rpcs=settings.limits.max_calls,
        )
        self._traces = Traces(settings.traces)
        self._credentials = None if settings.certificates is None else server_credentials(settings.certificates)

    async def start(self) -> None:
        """Open the generation, load the network, then listen; `port` is where.

        Raises SettingsError, GenerationRefused, LogError or EmbedderError, with nothing left behind.
        """
        started = perf_counter()
        try:
            await self._start()
        except BaseException:
            await self._cleanup.aclose()
            raise
        if self._credentials is None and not is_loopback(self.settings.listen):
            log.warning("calls from other machines are not encrypted", extra={"listen": self.settings.listen})
        served = self._engine.served
        log.info(
            "serving",
            extra={
                "listen": f"{host_and_port(self.settings.listen)[0]}:{self.port}",
                "generation_id": served.generation_id,
                "images": served.generation.manifest.num_docs,
                "live": len(served.uploads),
                "seconds": round(perf_counter() - started, 3),
                "settings": asdict(self.settings),
            },
        )

    async def stop(self) -> None:
        """Say NOT_SERVING, give balancers time to see it, finish the calls in progress, and close everything."""
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self.settings.announce_drain_s)
        await self._cleanup.aclose()
        log.info("stopped")

    async def _start(self) -> None:
        settings, cleanup = self.settings, self._cleanup
        cleanup.callback(self._traces.close)
        store = await asyncio.to_thread(_open_store, settings, cleanup)
        self._engine = await asyncio.to_thread(_open_engine, settings, store)
        cleanup.callback(self._engine.close)
        self.metrics.watch_engine(self._engine)
        images = None
        if settings.embedder is not None:
            digest = self._engine.served.generation.manifest.embedder_digest
            images = await asyncio.to_thread(load_image_embedding, settings, self.metrics, embedder_digest=digest)
            cleanup.push_async_callback(images.close)
            await images.start()
        calls = Calls(self._tokens, self.metrics, self._traces, max_call_s=settings.limits.max_call_s)
        lookups = LookupServicer(self._engine, images, calls=calls, metrics=self.metrics, limits=settings.limits)
        cleanup.callback(lookups.close)
        switches = Calls(self._tokens, self.metrics, self._traces, max_call_s=settings.limits.max_switch_s)
        admin = AdminServicer(self._engine, store, calls=switches, metrics=self.metrics)
        cleanup.callback(admin.close)
        services = zip(_SERVICES, (lookups, admin), strict=True)
        self._server.add_generic_rpc_handlers([rpc_handler(service, servicer) for service, servicer in services])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (*_SERVICE_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        self._start_metrics()
        self.port = self._listen()
        await self._server.start()
        cleanup.push_async_callback(self._server.stop, settings.drain_s)
        watch = asyncio.ensure_future(self._watch(admin))
        cleanup.callback(watch.cancel)
        for name in ("", *_SERVICE_NAMES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def _listen(self) -> int:
        listen = self.settings.listen
        host_and_port(listen)
        try:
            if self._credentials is None:
                return int(self._server.add_insecure_port(listen))
            return int(self._server.add_secure_port(listen, self._credentials))
        except RuntimeError as error:
            raise SettingsError(f"cannot listen on {listen}: is it this machine's, and free? ({error})") from error

    def _start_metrics(self) -> None:
        if self.settings.metrics_listen is None:
            return
        host, port = host_and_port(self.settings.metrics_listen)
        try:
            server, thread = start_http_server(port, host, registry=self.metrics.registry)
        except OSError as error:
            raise SettingsError(f"cannot show metrics on {self.settings.metrics_listen}: {error.strerror}") from error
        self._cleanup.callback(thread.join)
        self._cleanup.callback(server.server_close)
        self._cleanup.callback(server.shutdown)

    async def _watch(self, admin: AdminServicer) -> NoReturn:
        """Follow the pointer to the current generation and the tokens file; trouble is told when it begins and ends."""
        trouble = ""
        while True:
            await asyncio.sleep(self.settings.watch_s)
            try:
                if await asyncio.to_thread(self._tokens.reload):
                    log.info("the tokens were reloaded")
                await admin.follow_pointer()
            except (ServiceError, GenerationError, StoreError, OSError) as error:
                if not trouble:
                    log.error("the current generation cannot be followed", extra={"reason": str(error)})
                trouble = str(error)
                continue
            if trouble:
                log.info("the current generation is followed again")
                trouble = ""


def run_server(settings: ServeSettings, *, log_level: str = "info") -> None:
    """Serve until SIGTERM or SIGINT, then drain; raises what `Server` raises."""
    configure_logs(log_level)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    uvloop.run(_serve(settings))


async def _serve(settings: ServeSettings) -> None:
    server = Server(settings)
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked_to_stop.set)
    await server.start()
    await asked_to_stop.wait()
    await server.stop()


def _open_store(settings: ServeSettings, cleanup: AsyncExitStack) -> GenerationStore:
    """Where the generations are; Redis is closed by `cleanup`."""
    if settings.index is not None:
        return FolderStore(settings.index)
    assert settings.store is not None  # noqa: S101 - the settings were checked
    from lsh.redis_store.publishing import RedisStore  # noqa: PLC0415 - redis is loaded where it is used

    store = RedisStore(settings.store)
    cleanup.callback(store.close)
    return store


def _open_engine(settings: ServeSettings, store: GenerationStore) -> Engine:
    generation_id = store.current()
    if generation_id is None:
        raise SettingsError(
            f"{settings.index or settings.store} has no current generation; build one with `neardup index build`, "
            "bring it to a store with `neardup index export`, and promote it with `neardup index promote`"
        )
    return Engine(store, generation_id, _log_of(settings))


def _log_of(settings: ServeSettings) -> OpenLog:
    if settings.store is not None:
        from service.redis_log import RedisLog  # noqa: PLC0415 - redis is loaded where it is used

        return partial(RedisLog, settings.store)
    assert settings.log is not None  # noqa: S101 - the settings were checked
    return partial(UploadLog, settings.log)


def server_options(*, max_message_bytes: int) -> list[tuple[str, Any]]:
    """The options of the gRPC server."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS // 3),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.so_reuseport", 0),
    ]
