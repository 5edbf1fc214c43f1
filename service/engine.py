"""The lookup engine: what the service answers, without a network.

Holds the served generation and the upload log. Lookups take no lock. Changes take one lock: an upload is decided,
handed to the log and applied to the live index under it, then waited for outside of it, so that two equal uploads at
once see each other while a hundred share one flush of the disk. What the log could not write is taken back.

A log that other replicas write to may answer that this one was overtaken: it then reads what they wrote and decides
again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from embed.errors import EmbedError
from lsh.codes import quantize
from lsh.errors import LshError, StoreError
from lsh.index.manifest import Manifest
from lsh.index.store import GenerationStore, Tables
from service.errors import (
    GenerationChanged,
    GenerationRefused,
    ImageIdTaken,
    InvalidRequest,
    LogError,
    Overtaken,
    UnknownImage,
)
from service.served import Answer, ClusterPage, Served
from service.upload_log import Log, LogEntry

T = TypeVar("T")

MAX_IMAGE_ID_BYTES = 1024
_MAX_DECISIONS = 100


class OpenLog(Protocol):
    """Opens the upload log for a generation's embedder; raises LogError."""

    def __call__(self, *, embedder_digest: str, dim: int) -> Log: ...


@dataclass(frozen=True, slots=True)
class Registered:
    """`canonical_id` stands for the image; `was_known` when it was registered before."""

    canonical_id: str
    was_known: bool


@dataclass(frozen=True, slots=True)
class LookedUpOrRegistered:
    """`answer` has the near-duplicates that were known; without any, the image is registered."""

    answer: Answer
    registered: bool
    canonical_id: str
    generation_id: str


@dataclass(frozen=True, slots=True)
class Switched:
    """A generation that took over from another."""

    generation_id: str
    previous_generation_id: str


class Engine:
    """Answers lookups and takes changes. A change returns its result with the future to wait for before it is told."""

    def __init__(self, store: GenerationStore, generation_id: str, open_log: OpenLog) -> None:
        """Open a generation and the log, and replay it; raises GenerationRefused, LogError or StoreError."""
        tables = _opened(store.open, generation_id)
        manifest = tables.generation.manifest
        self._store = store
        self.log = open_log(embedder_digest=manifest.embedder_digest, dim=manifest.dim)
        self._changing = threading.RLock()  # the log may report in the very thread that appends
        self._switching = threading.Lock()
        self._last_told = _done()
        self._changes_since_switch_began: list[LogEntry] | None = None
        self._num_taken_back = 0
        self._is_broken = False
        served = _served(tables)
        served.uploads.replay(self.log.removed_ids(), self.log.registered())
        served.warm_up()
        self._served = served
        self.log.follow(self._catch_up)

    @property
    def served(self) -> Served:
        """What is being served; keep it for the length of one query."""
        return self._served

    def lookup(
        self,
        embeddings: NDArray[np.float32],
        *,
        k: int,
        min_score: float | None,
        views: NDArray[np.float32] | None = None,
    ) -> tuple[str, list[Answer]]:
        """The generation's id and the matches of each of `(n, dim)` float32 unit rows; `views` as `Served.lookup`."""
        served = self._served
        answers = served.lookup(embeddings, k=k, min_score=_or_default(min_score, served), views=views)
        return served.generation_id, answers

    def lookup_known(self, image_id: str, *, k: int, min_score: float | None) -> tuple[str, Answer]:
        """The matches of a known image without itself; raises UnknownImage."""
        served = self._served
        embedding = served.embedding_of(image_id)
        if embedding is None:
            raise _unknown(image_id)
        answer = served.lookup(embedding[None], k=k + 1, min_score=_or_default(min_score, served))[0]
        others = tuple(match for match in answer.matches if match.image_id != image_id)[:k]
        return served.generation_id, replace(answer, matches=others)

    def register(
        self, image_id: str, embedding: NDArray[np.float32], *, views: NDArray[np.float32] | None = None
    ) -> tuple[Registered, Future[None]]:
        """Make a `(dim,)` float32 unit row findable; raises ImageIdTaken when the id belongs to another image.

        With its `views` `(NUM_VIEWS, dim)` it is found by these, too.
        """
        check_image_id(image_id)

        def decide(served: Served) -> tuple[Registered, Future[None]]:
            if _is_registered(served, image_id, embedding):
                known = Registered(served.canonical_of(image_id), was_known=True)
                return known, self._once_told(lambda: self._served.is_known(image_id))
            best = served.lookup(
                embedding[None], k=1, min_score=served.generation.manifest.min_score, views=_of_one(views)
            )[0].matches
            canonical_id = best[0].canonical_id if best else image_id
            return Registered(canonical_id, was_known=False), self._add(image_id, embedding, views, canonical_id)

        return self._decide(decide)

    def lookup_or_register(
        self,
        image_id: str,
        embedding: NDArray[np.float32],
        *,
        k: int,
        min_score: float | None,
        views: NDArray[np.float32] | None = None,
    ) -> tuple[LookedUpOrRegistered, Future[None]]:
        """The matches of a `(dim,)` float32 unit row and its `views` or, without any, its registration.

        Raises ImageIdTaken.
        The best match may be an upload that is still being written: then the future waits for it, and fails with it.
        """
        check_image_id(image_id)

        def decide(served: Served) -> tuple[LookedUpOrRegistered, Future[None]]:
            generation_id = served.generation_id
            if _is_registered(served, image_id, embedding):
                known = LookedUpOrRegistered(Answer((), 0), True, served.canonical_of(image_id), generation_id)
                return known, self._once_told(lambda: self._served.is_known(image_id))
            answer = served.lookup(
                embedding[None], k=k, min_score=_or_default(min_score, served), views=_of_one(views)
            )[0]
            if answer.matches:
                best = answer.matches[0]
                found = LookedUpOrRegistered(answer, False, best.canonical_id, generation_id)
                return found, self._once_told(lambda: self._served.is_known(best.image_id))
            new = LookedUpOrRegistered(answer, True, image_id, generation_id)
            return new, self._add(image_id, embedding, views, image_id)

        return self._decide(decide)

    def remove(self, image_id: str) -> tuple[bool, Future[None]]:
        """Take an image out of every later answer; False when it was not known."""
        check_image_id(image_id)

        def decide(served: Served) -> tuple[bool, Future[None]]:
            if not served.is_known(image_id):
                return False, self._once_told(lambda: not self._served.is_known(image_id))
            previous = served.uploads.entry_of(image_id)
            return True, self._change(LogEntry(image_id, None, ""), lambda: self._restore(image_id, previous))

        return self._decide(decide)

    def cluster(self, image_id: str, *, limit: int, page_token: str) -> tuple[ClusterPage, str]:
        """A page of the cluster of an image and the token of the next; raises UnknownImage, GenerationChanged."""
        served = self._served
        generation_id = served.generation_id
        offset = _offset(page_token, generation_id)
        if not served.is_known(image_id):
            raise _unknown(image_id)
        page = served.cluster(image_id, offset=offset, limit=limit)
        return page, "" if page.next_offset is None else f"{generation_id}/{page.next_offset}"

    def switch(self, generation_id: str, *, before: Callable[[], object] | None = None) -> Switched:
        """Verify, load and warm a generation beside the served one, call `before`, then serve it.

        Raises GenerationRefused, with the old one served on, when it is damaged or of another embedder, and LogError
        when the log fails meanwhile. Uploads that both generations contain leave the log, so that going back one
        generation loses none.
        """
        with self._switching:
            old = self._served
            new = _served(_like(_opened(self._store.open_to_switch, generation_id), old.generation.manifest))
            with self._changing:
                self._changes_since_switch_began, last_told = [], self._last_told
                num_taken_back = self._num_taken_back
            try:
                wait([last_told])
                last_seq = self.log.last_seq()
                contained = new.uploads.replay(self.log.removed_ids(), self.log.registered())
                new.warm_up()
                if before is not None:
                    before()
                with self._changing:
                    if self._num_taken_back != num_taken_back:
                        raise LogError("the upload log failed during the switch; try again once it can be written")
                    for entry in self._changes_since_switch_began:
                        new.uploads.apply(entry)
                    self._served = new
            finally:
                self._changes_since_switch_began = None
            self.log.forget(self._forgettable(old, new, contained), until_seq=last_seq)
            return Switched(new.generation_id, old.generation_id)

    def close(self) -> None:
        """Write what is waiting and close the log."""
        self.log.close()

    def _forgettable(self, old: Served, new: Served, contained: list[str]) -> list[str]:
        """The image ids whose entries neither of two generations needs: uploads in both, removals in none."""
        is_in_old = old.generation.docs_of(contained) >= 0
        uploads = [image_id for image_id, is_in in zip(contained, is_in_old.tolist(), strict=True) if is_in]
        removed = [image_id for image_id in self.log.removed_ids() if new.uploads.row_of(image_id) is None]
        is_in_any = (old.generation.docs_of(removed) >= 0) | (new.generation.docs_of(removed) >= 0)
        return uploads + [image_id for image_id, is_in in zip(removed, is_in_any.tolist(), strict=True) if not is_in]

    def _decide(self, decide: Callable[[Served], T]) -> T:
        """What `decide` makes of all that is known, made again whenever another replica wrote to the log meanwhile."""
        with self._changing:
            for _ in range(_MAX_DECISIONS):
                if self._is_broken:
                    self._catch_up()
                try:
                    return decide(self._served)
                except Overtaken:
                    self._catch_up()
            raise LogError("other replicas write faster than this one can decide; try again")

    def _catch_up(self) -> str:
        """Apply what other replicas wrote; returns the generation that is served. Raises LogError."""
        with self._changing:
            is_done = False
            while not is_done:
                unread = self.log.unread()
                self._is_broken |= unread.is_broken
                if self._is_broken:
                    self._reload()
                for entry in unread.entries:
                    self._apply(entry)
                is_done = not unread.entries
            return self._served.generation_id

    def _reload(self) -> None:
        """Forget the uploads and read the log again, because it is not the one that was followed any more."""
        try:
            served = Served(self._served.tables)
            served.uploads.replay(self.log.removed_ids(), self.log.registered())
        except StoreError as error:
            raise LogError(f"uploads cannot be read again: {error}") from error
        self._served = served
        self._is_broken = False
        self._num_taken_back += 1  # so that a switch in progress starts again

    def _apply(self, entry: LogEntry) -> None:
        """Make an entry of the log visible, here and in a generation that is about to take over."""
        try:
            self._served.uploads.apply(entry)
        except StoreError as error:
            self._is_broken = True
            raise LogError(f"an upload was written, but cannot be shown yet: {error}; try again") from error
        if self._changes_since_switch_began is not None:
            self._changes_since_switch_began.append(entry)

    def _add(
        self, image_id: str, embedding: NDArray[np.float32], views: NDArray[np.float32] | None, canonical_id: str
    ) -> Future[None]:
        rows = embedding[None] if views is None else np.concatenate([embedding[None], views])
        entry = LogEntry(image_id, quantize(rows).tobytes(), canonical_id)
        return self._change(entry, lambda: self._take_back(entry))

    def _change(self, entry: LogEntry, undo: Callable[[], None]) -> Future[None]:
        """Log an entry and apply it, under the lock that the caller holds; `undo` runs if it cannot be written."""
        written = self.log.append(entry)
        self._apply(entry)
        told: Future[None] = Future()

        def tell(written: Future[None]) -> None:
            error = written.exception()
            if error is None:
                told.set_result(None)
                return
            with self._changing:
                undo()
                self._num_taken_back += 1
            told.set_exception(error)

        self._last_told = told
        written.add_done_callback(tell)
        return told

    def _take_back(self, added: LogEntry) -> None:
        current = self._served.uploads.entry_of(added.image_id)
        if current is not None and current.code == added.code:
            self._served.uploads.apply(LogEntry(added.image_id, None, ""))

    def _restore(self, image_id: str, previous: LogEntry | None) -> None:
        if previous is not None:
            self._served.uploads.apply(previous)
        else:
            self._served.uploads.restore_doc(image_id)

    def _once_told(self, still_holds: Callable[[], bool]) -> Future[None]:
        """Done when every change until now is on disk; fails if what the answer rests on was taken back."""
        settled: Future[None] = Future()

        def settle(_: Future[None]) -> None:
            if still_holds():
                settled.set_result(None)
            else:
                settled.set_exception(LogError("the answer rested on a change that could not be written; try again"))

        self._last_told.add_done_callback(settle)
        return settled


def check_image_id(image_id: str) -> None:
    """Raises InvalidRequest unless an image id is 1 to 1024 bytes of UTF-8."""
    num_bytes = len(image_id.encode(errors="surrogatepass"))
    if not 1 <= num_bytes <= MAX_IMAGE_ID_BYTES:
        raise InvalidRequest(f"image_id has {num_bytes} bytes; it must have 1 to {MAX_IMAGE_ID_BYTES}")


def _opened(open_tables: Callable[[str], Tables], generation_id: str) -> Tables:
    try:
        return open_tables(generation_id)
    except StoreError:
        raise
    except (LshError, OSError) as error:
        raise GenerationRefused(f"generation {generation_id} is damaged, or cannot be opened: {error}") from error


def _like(tables: Tables, served: Manifest) -> Tables:
    """Tables of the same embedder as the `served` generation; raises GenerationRefused."""
    manifest = tables.generation.manifest
    for name in ("embedder_digest", "dim"):
        found, wanted = getattr(manifest, name), getattr(served, name)
        if found != wanted:
            raise GenerationRefused(
                f"generation {manifest.generation_id} has {name} {found}, the served one {wanted}; build it with the "
                "same embedder, or start another server for the new one"
            )
    return tables


def _served(tables: Tables) -> Served:
    try:
        return Served(tables)
    except EmbedError as error:
        generation_id = tables.generation.manifest.generation_id
        raise GenerationRefused(f"generation {generation_id} cannot score pairs: {error}") from error


def _is_registered(served: Served, image_id: str, embedding: NDArray[np.float32]) -> bool:
    if not served.is_known(image_id):
        return False
    if served.is_same_image(image_id, embedding):
        return True
    raise ImageIdTaken(f"image id {image_id!r} belongs to another image; choose another id, or remove that one first")


def _of_one(views: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
    return None if views is None else views[None]


def _or_default(min_score: float | None, served: Served) -> float:
    return served.generation.manifest.min_score if min_score is None else min_score


def _offset(page_token: str, generation_id: str) -> int:
    if not page_token:
        return 0
    owner, _, offset = page_token.rpartition("/")
    if not (offset.isascii() and offset.isdigit() and len(offset) < 16):
        raise InvalidRequest(f"page_token {page_token[:80]!r} is none that this service gave; start with an empty one")
    if owner != generation_id:
        raise GenerationChanged("another generation is served since the first page; start again without a page_token")
    return int(offset)


def _unknown(image_id: str) -> UnknownImage:
    return UnknownImage(f"image id {image_id!r} is not known; register the image, or check the spelling")


def _done() -> Future[None]:
    done: Future[None] = Future()
    done.set_result(None)
    return done
