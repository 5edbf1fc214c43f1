"""Which generations a store in Redis has, and which one is served: a hash, and one key that names the current one.

<prefix>:{index}:generations     id -> StoredGeneration; entered when every page was written and verified
<prefix>:{index}:current         JSON as in a workspace's `current`
<prefix>:{index}:exports         number -> StoredGeneration of exports that have not ended
<prefix>:{index}:export:<n>      there while export n goes on
<prefix>:{index}:number          the number of the last export
"""

from __future__ import annotations

import json
from collections.abc import Callable
from operator import methodcaller
from typing import Any, Final

from lsh.errors import GenerationError
from lsh.index.generation import Generation
from lsh.index.publishing import GENERATION_ID, ListedGeneration, Pointer
from lsh.redis_store.connection import Servers
from lsh.redis_store.generation import RedisGeneration
from lsh.redis_store.keys import StoredGeneration, spread_tags
from lsh.redis_store.loading import Advance, count_chunks, remove_pages, verify_pages, write_pages
from lsh.redis_store.lookup import RedisHashTables
from lsh.redis_store.url import StoreUrl

_TAG: Final = b"index"
_PARTITIONS_PER_MASTER: Final = 4
_EXPORT_ALIVE_S: Final = 60
_SET_IF: Final = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""


class RedisStore:
    """The generations of a store in Redis; close it at the end. Every method may raise StoreError."""

    def __init__(self, url: StoreUrl) -> None:
        self.servers = Servers(url)
        self._prefix = url.prefix.encode()

    @property
    def url(self) -> StoreUrl:
        return self.servers.url

    def close(self) -> None:
        self.servers.close()

    def list_generations(self) -> list[ListedGeneration]:
        """All generations, oldest first; those that cannot be read come last."""
        served = self.current()
        entries: dict[bytes, bytes] = self._command("hgetall", self._key("generations"))
        listed = []
        for name in sorted(entries):
            generation_id = name.decode(errors="replace")
            manifest, problem = None, None
            try:
                manifest = self._parsed(generation_id, entries[name]).manifest
            except GenerationError as error:
                problem = str(error)
            listed.append(
                ListedGeneration(
                    generation_id=generation_id,
                    is_current=generation_id == served,
                    manifest=manifest,
                    problem=problem,
                )
            )
        return sorted(listed, key=lambda one: (one.manifest is None, one.manifest.created_at if one.manifest else ""))

    def current(self) -> str | None:
        """The id of the current generation, None before the first promotion; raises GenerationError."""
        return self._pointer()[0].current

    def previous(self) -> str | None:
        """The id of the generation that `rollback` goes back to, None if there is none; raises GenerationError."""
        before = self._pointer()[0].previous
        return before[-1] if before else None

    def open(self, generation_id: str) -> RedisHashTables:
        return RedisHashTables(RedisGeneration(self.servers, self.stored(generation_id)))

    def open_to_switch(self, generation_id: str) -> RedisHashTables:
        """Its pages never change after they were verified, so they are not read again by each replica."""
        return self.open(generation_id)

    def verify(self, generation_id: str) -> None:
        """Read every page; raises GenerationError when they do not give the files of the manifest."""
        verify_pages(self.servers, self.stored(generation_id))

    def promote(self, generation_id: str) -> None:
        """Verify a generation and make it current; raises GenerationError and changes nothing if it is not whole."""
        self.verify(generation_id)
        self._change(lambda pointer: pointer.promoted(generation_id))

    def rollback(self) -> str:
        """Make the generation before the current one current again; returns its id, raises GenerationError."""
        generation_id = self.previous()
        if generation_id is None:
            raise GenerationError(
                f"{self.url} has no generation before the current one; there is nothing to roll back to"
            )
        self.verify(generation_id)
        self._change(lambda pointer: pointer.rolled_back(generation_id))
        return generation_id

    def collect_garbage(self, keep: int) -> list[str]:
        """Remove generations older than the current one, but the last `keep` that were current, and broken exports."""
        if keep < 0:
            raise GenerationError(f"keep={keep} is out of range; keep 0 or more generations to roll back to")
        self._remove_broken_exports()
        pointer, _ = self._pointer()
        if pointer.current is None:
            return []
        kept = {pointer.current, *pointer.previous[max(0, len(pointer.previous) - keep) :]}
        made_at = {
            one.generation_id: one.manifest.created_at if one.manifest else "" for one in self.list_generations()
        }
        removed = {one for one in made_at if made_at[one] <= made_at.get(pointer.current, "")} - kept
        self._change(lambda pointer: pointer.without(removed))
        for generation_id in removed:
            self._remove(generation_id)
        return sorted(removed)

    def export(
        self, generation: Generation, *, num_partitions: int | None = None, advance: Advance = lambda _: None
    ) -> bool:
        """Load a verified generation, read it back, enter it; False when the store has it already.

        `num_partitions` is how many servers may share it at most, by default 1, or 4 for each master of a cluster.
        `advance` is called with bytes written. Raises StoreError, StoreFullError or GenerationError; the broken
        export is removed by the next `collect_garbage`.
        """
        generation_id = generation.manifest.generation_id
        if self._command("hexists", self._key("generations"), generation_id):
            return False
        masters = self.servers.num_masters
        default = 1 if masters == 1 and self.url.kind != "cluster" else _PARTITIONS_PER_MASTER * masters
        number = int(self._command("incr", self._key("number")))
        tags = spread_tags(number, num_partitions or default)
        stored = StoredGeneration(generation.manifest, self._prefix, tags, count_chunks(generation))
        text = json.dumps(stored.to_json())
        alive = self._key(f"export:{number}")

        def go_on(num_bytes: int) -> None:
            self._command("set", alive, "1", ex=_EXPORT_ALIVE_S)
            advance(num_bytes)

        go_on(0)
        self._command("hset", self._key("exports"), str(number), text)
        write_pages(self.servers, stored, generation, advance=go_on)
        verify_pages(self.servers, stored)
        self._command("hsetnx", self._key("generations"), generation_id, text)
        if self._command("hget", self._key("generations"), generation_id) != text.encode():
            remove_pages(self.servers, stored)  # another export of it was faster
        self._command("hdel", self._key("exports"), str(number))
        self._command("delete", alive)
        return True

    def stored(self, generation_id: str) -> StoredGeneration:
        """What the store says of a generation; raises GenerationError for an id that is none or is not there."""
        if not GENERATION_ID.fullmatch(generation_id):
            raise GenerationError(f"generation {generation_id!r} is not 16 hex digits; see `neardup index list`")
        text: bytes | None = self._command("hget", self._key("generations"), generation_id)
        if text is None:
            raise GenerationError(
                f"generation {generation_id} is not in {self.url}; see `neardup index list`, or `neardup index export`"
            )
        return self._parsed(generation_id, text)

    def _remove(self, generation_id: str) -> None:
        try:
            stored = self.stored(generation_id)
        except GenerationError:
            stored = None
        self._command("hdel", self._key("generations"), generation_id)
        if stored is not None:
            remove_pages(self.servers, stored)

    def _remove_broken_exports(self) -> None:
        exports: dict[bytes, bytes] = self._command("hgetall", self._key("exports"))
        for number, text in exports.items():
            if self._command("exists", self._key(f"export:{int(number)}")):
                continue
            generation_id = json.loads(json.loads(text)["manifest"])["generation_id"]
            if (
                self._command("hget", self._key("generations"), generation_id) != text
            ):  # it may have been entered and killed before it said so
                remove_pages(self.servers, self._parsed(generation_id, text))
            self._command("hdel", self._key("exports"), number)

    def _pointer(self) -> tuple[Pointer, bytes]:
        """The pointer, and its text for a change."""
        text: bytes = self._command("get", self._key("current")) or b""
        if not text:
            return Pointer(None, ()), text
        try:
            return Pointer.from_json(json.loads(text)), text
        except (ValueError, KeyError, TypeError) as error:
            raise GenerationError(
                f"the pointer in {self.url} cannot be read ({error}); delete {self._key('current')} and promote again"
            ) from error

    def _change(self, changed: Callable[[Pointer], Pointer]) -> None:
        """Replace the pointer, again when another process did so meanwhile."""
        while True:
            pointer, text = self._pointer()
            new = changed(pointer)
            if new == pointer:
                return
            if self._command("eval", _SET_IF, 1, self._key("current"), text, json.dumps(new.to_json())):
                return

    def _parsed(self, generation_id: str, text: bytes) -> StoredGeneration:
        try:
            value: Any = json.loads(text)
        except ValueError:
            value = None
        return StoredGeneration.from_json(value, prefix=self._prefix, generation_id=generation_id)

    def _command(self, name: str, *arguments: object, **options: object) -> Any:
        """What redis-py's method of that name returns."""
        return self.servers.call(_TAG, methodcaller(name, *arguments, **options))

    def _key(self, name: str) -> str:
        return f"{self._prefix.decode()}:{{{_TAG.decode()}}}:{name}"
