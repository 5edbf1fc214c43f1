"""The service `Admin`, and the watch over the pointer to the current generation: both switch the engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from lsh.errors import GenerationError
from lsh.index.store import GenerationStore
from service import neardup_pb2 as pb
from service.calls import Call, Calls
from service.engine import Engine, Switched
from service.errors import GenerationRefused
from service.lookup_servicer import generation_message
from service.metrics import Metrics
from service.tokens import Scope

log = logging.getLogger(__name__)


class AdminServicer:
    """Answers the calls of `neardup.v1.Admin`. A switch goes on when its caller gives up."""

    def __init__(self, engine: Engine, store: GenerationStore, *, calls: Calls, metrics: Metrics) -> None:
        self._engine = engine
        self._store = store
        self._metrics = metrics
        self._refused: str | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="switch")
        self.ListGenerations = calls.unary("ListGenerations", Scope.ADMIN, self.list_generations)
        self.Promote = calls.unary("Promote", Scope.ADMIN, self.promote)
        self.Rollback = calls.unary("Rollback", Scope.ADMIN, self.rollback)

    async def list_generations(self, _request: pb.ListGenerationsRequest, _: Call) -> pb.ListGenerationsResponse:
        found = await asyncio.to_thread(self._store.list_generations)
        served = self._engine.served.generation_id
        return pb.ListGenerationsResponse(
            generations=[
                pb.GenerationEntry(generation_id=entry.generation_id, is_current=entry.generation_id == served)
                for entry in found
            ]
        )

    async def promote(self, request: pb.PromoteRequest, _: Call) -> pb.PromoteResponse:
        generation_id = request.generation_id
        publish = partial(self._store.promote, generation_id, is_opened=True)
        return self._response(await asyncio.shield(self._switch(generation_id, publish)))

    async def rollback(self, _request: pb.RollbackRequest, _: Call) -> pb.PromoteResponse:
        generation_id = await asyncio.to_thread(self._store.previous)
        if generation_id is None:
            raise GenerationRefused("no generation was served before this one; see ListGenerations")
        publish = partial(self._store.rollback, opened=generation_id)
        return self._response(await asyncio.shield(self._switch(generation_id, publish)))

    async def follow_pointer(self) -> None:
        """Serve the current generation if another process promoted one; a refused one is told once.

        Raises LogError or StoreError when the log or the store is away; the next call tries again.
        """
        generation_id = await asyncio.to_thread(self._store.current)
        if generation_id in (None, self._engine.served.generation_id, self._refused):
            return
        assert generation_id is not None  # noqa: S101 - see above
        try:
            await self._switch(generation_id, None)
        except GenerationRefused as error:
            self._refused = generation_id
            log.error("a generation was refused", extra={"generation_id": generation_id, "reason": str(error)})

    def close(self) -> None:
        """Wait for a switch that has begun."""
        self._thread.shutdown(wait=True)

    async def _switch(self, generation_id: str, publish: Callable[[], object] | None) -> Switched:
        try:
            loop = asyncio.get_running_loop()
            switch = partial(self._engine.switch, generation_id, before=publish)
            switched = await loop.run_in_executor(self._thread, switch)
        except GenerationError as error:
            self._metrics.refused_generations.inc()
            raise GenerationRefused(str(error)) from error
        except GenerationRefused:
            self._metrics.refused_generations.inc()
            raise
        self._refused = None
        log.info(
            "another generation is served",
            extra={"generation_id": switched.generation_id, "previous": switched.previous_generation_id},
        )
        return switched

    def _response(self, switched: Switched) -> pb.PromoteResponse:
        return pb.PromoteResponse(
            generation=generation_message(self._engine.served), previous_generation_id=switched.previous_generation_id
        )
