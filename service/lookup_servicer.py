"""The service `NearDup`: requests checked and translated, the engine called off the event loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from time import monotonic
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from service import neardup_pb2 as pb
from service.batching import Batcher, BatchLimits, run_each
from service.calls import Call, Calls, check_parsed, status_of
from service.engine import Engine, check_image_id
from service.errors import InvalidRequest, NotServed
from service.image_embedding import EmbeddedImage, ImageEmbedding
from service.metrics import Metrics
from service.served import Answer, Match, Served, Source
from service.settings import Limits
from service.tokens import Scope

T = TypeVar("T")

_DEFAULT_K: Final = 10
_DEFAULT_PAGE: Final = 100
_ROUNDING: Final = 1e-6
"""How far from 1 the square of a unit row's length may be in float32."""
_SOURCES: Final = {Source.HASH_TABLES: pb.SOURCE_HASH_TABLES, Source.LIVE: pb.SOURCE_LIVE}


@dataclass(frozen=True, slots=True)
class _Lookup:
    image: EmbeddedImage
    k: int
    min_score: float | None

    @property
    def kind(self) -> tuple[int, float | None, bool]:
        """Lookups of one kind are answered together."""
        return self.k, self.min_score, self.image.views is not None


class LookupServicer:
    """Answers the calls of `neardup.v1.NearDup`; belongs to one event loop."""

    def __init__(
        self, engine: Engine, images: ImageEmbedding | None, *, calls: Calls, metrics: Metrics, limits: Limits
    ) -> None:
        self._engine = engine
        self._images = images
        self._metrics = metrics
        self._limits = limits
        self._version = version("neardup")
        self._started = monotonic()
        self._threads = ThreadPoolExecutor(limits.lookup_threads, thread_name_prefix="lookup")
        self._thread_of_changes = ThreadPoolExecutor(1, thread_name_prefix="change")
        queue = BatchLimits(limits.max_lookup_batch, 0.0, limits.max_lookup_queue, limits.lookup_threads)
        self._lookups: Batcher[_Lookup, tuple[str, Answer]] = Batcher("lookup", self._look_up, self._threads, queue)
        self._reads: Batcher[Callable[[], Any], Any] = Batcher("reading", run_each, self._threads, queue)
        self._changes: Batcher[Callable[[], Any], Any] = Batcher(
            "registering", run_each, self._thread_of_changes, BatchLimits(64, 0.0, limits.max_lookup_queue)
        )
        for name, batcher in (("lookup", self._lookups), ("read", self._reads), ("change", self._changes)):
            metrics.watch_queue(name, batcher)
        self.Lookup = calls.unary("Lookup", Scope.READ, self.lookup)
        self.LookupStream = calls.stream("LookupStream", Scope.READ, self.lookup_stream)
        self.Register = calls.unary("Register", Scope.WRITE, self.register)
        self.LookupOrRegister = calls.unary("LookupOrRegister", Scope.WRITE, self.lookup_or_register)
        self.Remove = calls.unary("Remove", Scope.WRITE, self.remove)
        self.GetCluster = calls.unary("GetCluster", Scope.READ, self.get_cluster)
        self.Status = calls.unary("Status", Scope.READ, self.status)

    async def lookup(self, request: pb.LookupRequest, _: Call | None = None) -> pb.LookupResponse:
        k, min_score = self._k(request.k), _min_score(request)
        query = request.query
        if query.WhichOneof("of") == "image_id":
            image_id = query.image_id
            check_image_id(image_id)
            with self._metrics.stage("lookup"):
                generation_id, answer = await self._reads(
                    lambda: self._engine.lookup_known(image_id, k=k, min_score=min_score)
                )
        else:
            image = await self._embedded(query)
            with self._metrics.stage("lookup"):
                generation_id, answer = await self._lookups(_Lookup(image, k, min_score))
        self._metrics.count_answer(answer)
        return pb.LookupResponse(
            matches=_matches(answer.matches), generation_id=generation_id, num_candidates=answer.num_candidates
        )

    async def lookup_stream(self, context: Any, call: Call) -> None:
        """Answers in order with a bounded window in flight; ends a stream on which nothing moves."""
        answers: asyncio.Queue[asyncio.Task[pb.LookupStreamResponse] | None] = asyncio.Queue(self._limits.stream_window)
        reader = asyncio.ensure_future(self._read_stream(context, call, answers))
        try:
            while (answer := await answers.get()) is not None:
                response = await answer
                async with asyncio.timeout(self._limits.max_stream_idle_s):
                    await context.write(response)
            await reader
        finally:
            reader.cancel()
            while not answers.empty():
                left = answers.get_nowait()
                if left is not None:
                    left.cancel()

    async def _read_stream(
        self, context: Any, call: Call, answers: asyncio.Queue[asyncio.Task[pb.LookupStreamResponse] | None]
    ) -> None:
        try:
            while True:
                async with asyncio.timeout(self._limits.max_stream_idle_s):
                    request = await context.read()
                check_parsed(request)
                if not isinstance(request, pb.LookupRequest):
                    return
                await answers.put(asyncio.ensure_future(self._answer_of_stream(request, call)))
        finally:
            await answers.put(None)

    async def _answer_of_stream(self, request: pb.LookupRequest, call: Call) -> pb.LookupStreamResponse:
        try:
            return pb.LookupStreamResponse(response=await self.lookup(request))
        except Exception as error:
            code, message = status_of(error, call.request_id)
            return pb.LookupStreamResponse(failure=pb.Failure(code=code.value[0], message=message))

    async def register(self, request: pb.RegisterRequest, _: Call) -> pb.RegisterResponse:
        image_id = request.image_id
        check_image_id(image_id)
        embedding, views = await self._embedded(request.query)
        registered = await self._change(lambda: self._engine.register(image_id, embedding, views=views))
        return pb.RegisterResponse(canonical_id=registered.canonical_id, was_known=registered.was_known)

    async def lookup_or_register(self, request: pb.LookupOrRegisterRequest, _: Call) -> pb.LookupOrRegisterResponse:
        image_id, k, min_score = request.image_id, self._k(request.k), _min_score(request)
        check_image_id(image_id)
        embedding, views = await self._embedded(request.query)
        result = await self._change(
            lambda: self._engine.lookup_or_register(image_id, embedding, k=k, min_score=min_score, views=views)
        )
        self._metrics.count_answer(result.answer)
        return pb.LookupOrRegisterResponse(
            registered=result.registered,
            matches=_matches(result.answer.matches),
            canonical_id=result.canonical_id,
            generation_id=result.generation_id,
        )

    async def remove(self, request: pb.RemoveRequest, _: Call) -> pb.RemoveResponse:
        image_id = request.image_id
        check_image_id(image_id)
        return pb.RemoveResponse(was_known=await self._change(lambda: self._engine.remove(image_id)))

    async def get_cluster(self, request: pb.GetClusterRequest, _: Call) -> pb.GetClusterResponse:
        image_id, page_token = request.image_id, request.page_token
        check_image_id(image_id)
        limit = _count("page_size", request.page_size, default=_DEFAULT_PAGE, top=self._limits.max_page_size)
        page, next_page_token = await self._reads(
            lambda: self._engine.cluster(image_id, limit=limit, page_token=page_token)
        )
        return pb.GetClusterResponse(
            canonical_id=page.canonical_id, image_ids=page.image_ids, size=page.size, next_page_token=next_page_token
        )

    async def status(self, _request: pb.StatusRequest, _: Call) -> pb.StatusResponse:
        served = self._engine.served
        return pb.StatusResponse(
            version=self._version,
            generation=generation_message(served),
            num_live=len(served.uploads),
            num_removed=served.uploads.num_removed,
            embedding_only=self._images is None,
            thorough=self._images is not None and self._images.makes_views,
            uptime_s=monotonic() - self._started,
        )

    def close(self) -> None:
        """Wait for the calls to the engine that have begun."""
        self._threads.shutdown(wait=True)
        self._thread_of_changes.shutdown(wait=True)

    async def _embedded(self, query: pb.Query) -> EmbeddedImage:
        kind = query.WhichOneof("of")
        if kind == "embedding":
            dim = self._engine.served.generation.manifest.dim
            return EmbeddedImage(checked_embedding(query.embedding.float32, dim=dim))
        if kind == "image_id":
            raise InvalidRequest("an image is registered by its bytes or its embedding, not by an image_id")
        if kind != "image":
            raise InvalidRequest("the query is empty; give an image, an embedding or an image_id")
        if self._images is None:
            raise NotServed("this server takes embeddings only; send an embedding, or start it with an --embedder")
        return await self._images.embed(query.image)

    async def _change(self, change: Callable[[], tuple[T, Future[None]]]) -> T:
        """The result of a change, once it is on disk."""
        with self._metrics.stage("change"):
            result, written = await self._changes(change)
        with self._metrics.stage("log"):
            await asyncio.wrap_future(written)
        changed: T = result
        return changed

    def _look_up(self, lookups: Sequence[_Lookup]) -> Sequence[tuple[str, Answer] | Exception]:
        """One engine call for all lookups that ask alike."""
        alike: dict[tuple[int, float | None, bool], list[int]] = {}
        for position, lookup in enumerate(lookups):
            alike.setdefault(lookup.kind, []).append(position)
        results: list[tuple[str, Answer] | Exception] = [InvalidRequest("not answered")] * len(lookups)
        for (k, min_score, have_views), positions in alike.items():
            images = [lookups[position].image for position in positions]
            embeddings = np.array([image.embedding for image in images])
            views = np.array([image.views for image in images]) if have_views else None
            generation_id, answers = self._engine.lookup(embeddings, k=k, min_score=min_score, views=views)
            for position, answer in zip(positions, answers, strict=True):
                results[position] = (generation_id, answer)
        return results

    def _k(self, k: int) -> int:
        return _count("k", k, default=_DEFAULT_K, top=self._limits.max_k)


def checked_embedding(content: bytes, *, dim: int) -> NDArray[np.float32]:
    """Little-endian float32 bytes -> a `(dim,)` unit row; raises InvalidRequest."""
    if len(content) != 4 * dim:
        raise InvalidRequest(
            f"the embedding has {len(content)} bytes; this generation's has {dim} float32 values, {4 * dim} bytes"
        )
    # Of bytes it would be read-only, and every kernel that takes it would be compiled for that as well.
    row: NDArray[np.float32] = np.frombuffer(bytearray(content), dtype="<f4")
    if abs(float(np.vdot(row, row)) - 1.0) < _ROUNDING:
        return row
    wide = row.astype(np.float64)
    length = math.sqrt(float(wide @ wide))
    if not math.isfinite(length):
        raise InvalidRequest("the embedding holds NaN or infinity; check the embedder that made it")
    if length < 1e-6:
        raise InvalidRequest(f"the embedding has length {length:.3g}; only one that points somewhere can be looked up")
    return (wide / length).astype(np.float32)


def generation_message(served: Served) -> pb.Generation:
    """A generation in the words of the protocol."""
    manifest = served.generation.manifest
    message = pb.Generation(
        generation_id=served.generation_id,
        num_docs=manifest.num_docs,
        dim=manifest.dim,
        embedder_digest=manifest.embedder_digest,
        min_score=manifest.min_score,
        num_views=manifest.num_views,
    )
    message.created_at.FromJsonString(served.created_at.isoformat())
    return message


def _matches(matches: Sequence[Match]) -> list[pb.Match]:
    return [
        pb.Match(
            image_id=match.image_id,
            score=match.score,
            similarity=match.similarity,
            shared_terms=match.shared_terms,
            source=_SOURCES[match.source],
            canonical_id=match.canonical_id,
            by_view=match.by_view,
        )
        for match in matches
    ]


def _min_score(request: pb.LookupRequest | pb.LookupOrRegisterRequest) -> float | None:
    if not request.HasField("min_score"):
        return None
    if not -1.0 <= request.min_score <= 1.0:
        raise InvalidRequest(f"min_score={request.min_score:g} is out of range -1..1")
    return request.min_score


def _count(name: str, value: int, *, default: int, top: int) -> int:
    if value > top:
        raise InvalidRequest(f"{name}={value} is out of range 0..{top}")
    return value or default
