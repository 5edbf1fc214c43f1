"""Many replicas, one Redis: what one registers all find, and every image has one original."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embed.views import NUM_VIEWS
from lsh.index.generation import open_generation
from lsh.index.publishing import generation_folder, promote
from lsh.index.store import FolderStore
from lsh.redis_store.publishing import RedisStore
from lsh.redis_store.url import StoreUrl
from service.engine import Engine
from service.errors import ImageIdTaken, LogError, LogFull
from service.redis_log import RedisLog, read_replicas
from tests.redis_servers import RedisServer, redis_server, wait_for
from tests.service.corpora import add_current_generation, add_generation, image_ids, near, random_embeddings

EMBEDDINGS = random_embeddings(200)
NEW = random_embeddings(400, seed=77)

Row = NDArray[np.float32]
OpenReplica = Callable[[], Engine]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis", append_only=True) as server:
        yield server


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """The index folder of a workspace whose current generation has 200 images."""
    add_current_generation(tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def open_replica(server: RedisServer, index: Path) -> Iterator[OpenReplica]:
    """Opens replicas with the index in files and the log in Redis."""
    engines: list[Engine] = []

    def opened() -> Engine:
        store = FolderStore(index)
        engines.append(Engine(store, str(store.current()), partial(RedisLog, StoreUrl(server.url + "?timeout_s=1"))))
        return engines[-1]

    yield opened
    for engine in engines:
        engine.close()


def register(engine: Engine, image_id: str, row: Row) -> str:
    registered, written = engine.register(image_id, row)
    written.result(timeout=30)
    return registered.canonical_id


def remove(engine: Engine, image_id: str) -> bool:
    was_known, written = engine.remove(image_id)
    written.result(timeout=30)
    return was_known


def found(engine: Engine, row: Row) -> list[str]:
    _, answers = engine.lookup(row[None], k=10, min_score=None)
    return [match.image_id for match in answers[0].matches]


def _finds(engine: Engine, row: Row, expected: list[str]) -> bool:
    return found(engine, row) == expected


def test_what_one_replica_registers_all_find_at_once(open_replica: OpenReplica) -> None:
    """Within 100 ms, in the median well below; removals too; a new replica knows them all."""
    one, other = open_replica(), open_replica()
    delays = []
    for number in range(20):
        register(one, f"new-{number}", NEW[number])
        started = time.monotonic()
        wait_for(partial(_finds, other, NEW[number], [f"new-{number}"]))
        delays.append(time.monotonic() - started)
    assert np.median(delays) < 0.1

    assert remove(other, "new-3")
    assert remove(other, "image-7")
    wait_for(lambda: found(one, NEW[3]) == [] and found(one, EMBEDDINGS[7]) == [])
    late = open_replica()
    assert found(late, NEW[5]) == ["new-5"]
    assert found(late, NEW[3]) == found(late, EMBEDDINGS[7]) == []


def test_views_of_uploads_go_to_all_replicas(open_replica: OpenReplica) -> None:
    """What a thorough replica registers every replica finds by a view, one that starts later, too."""
    one, other = open_replica(), open_replica()
    one.register("framed", NEW[0], views=NEW[100 : 100 + NUM_VIEWS])[1].result(timeout=30)
    wait_for(partial(_finds, other, NEW[105], ["framed"]))
    assert found(open_replica(), NEW[105]) == ["framed"]
    assert remove(other, "framed")
    wait_for(partial(_finds, one, NEW[105], []))


def test_concurrent_uploads_of_one_image_have_one_original(open_replica: OpenReplica) -> None:
    """Every replica is asked at the same moment, for image after image: one registers it, the others name that one."""
    replicas = [open_replica() for _ in range(3)]
    barrier = threading.Barrier(len(replicas))

    def upload(engine: Engine, name: int) -> list[tuple[bool, str]]:
        answers = []
        for number in range(100):
            barrier.wait()
            result, written = engine.lookup_or_register(f"{name}-{number}", NEW[number], k=3, min_score=None)
            written.result(timeout=30)
            answers.append((result.registered, result.canonical_id))
        return answers

    with ThreadPoolExecutor(len(replicas)) as threads:
        answers = list(threads.map(upload, replicas, range(len(replicas))))

    for number, of_one_image in enumerate(zip(*answers, strict=True)):
        assert sum(registered for registered, _ in of_one_image) == 1, number
        assert len({canonical_id for _, canonical_id in of_one_image}) == 1, number


def test_an_id_is_given_once(open_replica: OpenReplica) -> None:
    """Two images under one id at two replicas: one is registered, the other one refused."""
    replicas = [open_replica(), open_replica()]
    barrier = threading.Barrier(2)

    def upload(position: int) -> list[bool]:
        is_taken = []
        for number in range(30):
            barrier.wait()
            try:
                register(replicas[position], f"new-{number}", NEW[100 * position + number])
                is_taken.append(False)
            except ImageIdTaken:
                is_taken.append(True)
        return is_taken

    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(upload, range(2))
    assert all(a != b for a, b in zip(one, other, strict=True))


def test_lookups_go_on_while_redis_is_away_and_nothing_acknowledged_is_lost(
    open_replica: OpenReplica, server: RedisServer
) -> None:
    """Killed among registers; writes fail and say so; after its return all that was acknowledged is found."""
    one, other = open_replica(), open_replica()
    acknowledged: list[int] = []
    numbers = iter(range(len(NEW)))
    enough = threading.Event()
    failures: list[str] = []

    def upload(engine: Engine) -> None:
        for number in numbers:
            try:
                register(engine, f"new-{number}", NEW[number])
            except LogError as error:
                failures.append(str(error))
                return
            acknowledged.append(number)
            if len(acknowledged) > 60:
                enough.set()

    threads = [threading.Thread(target=upload, args=(engine,)) for engine in (one, other)]
    for thread in threads:
        thread.start()
    assert enough.wait(30)
    server.kill()
    for thread in threads:
        thread.join()

    assert len(failures) == 2
    assert all("cannot be" in failure and server.url in failure for failure in failures)
    assert found(one, EMBEDDINGS[3]) == ["image-3"]
    assert found(one, NEW[acknowledged[0]]) == [f"new-{acknowledged[0]}"]
    wait_for(lambda: one.log.unreachable_since is not None)
    server.start()
    wait_for(lambda: one.log.unreachable_since is None and other.log.unreachable_since is None)

    for engine in (one, other, open_replica()):
        assert [found(engine, NEW[number]) for number in acknowledged] == [[f"new-{n}"] for n in acknowledged]
    register(one, "after", NEW[399])
    wait_for(lambda: found(other, NEW[399]) == ["after"])


def test_a_log_that_lost_its_end_is_read_again(open_replica: OpenReplica, server: RedisServer) -> None:
    """As after a crash without AOF `always`: what Redis has lost no replica answers with, and all agree again."""
    one, other = open_replica(), open_replica()
    register(one, "kept", NEW[0])
    client = server.client()
    kept_last = client.get("neardup:{live}:last")
    register(one, "lost", NEW[1])
    wait_for(lambda: found(other, NEW[1]) == ["lost"])
    lost_id = client.get("neardup:{live}:last")
    client.xdel("neardup:{live}:entries", lost_id)  # type: ignore[arg-type]
    client.set("neardup:{live}:last", kept_last)  # type: ignore[arg-type]

    server.kill()
    server.start()

    for engine in (one, other):
        wait_for(partial(_finds, engine, NEW[1], []))
        assert found(engine, NEW[0]) == ["kept"]
    assert register(other, "again", NEW[1]) == "again"
    wait_for(lambda: found(one, NEW[1]) == ["again"])


def test_an_emptied_redis_is_told_and_not_taken_for_an_empty_log(
    open_replica: OpenReplica, server: RedisServer
) -> None:
    """Replicas keep what they know and refuse writes until they are started again."""
    engine = open_replica()
    register(engine, "new", NEW[0])
    server.client().flushall()

    with pytest.raises(LogError, match="lost its data"):
        register(engine, "other", NEW[1])
    assert found(engine, NEW[0]) == ["new"]
    again = open_replica()
    assert register(again, "other", NEW[1]) == "other"


def test_a_full_redis_is_named(open_replica: OpenReplica, server: RedisServer) -> None:
    """Registers fail as on a full disk, lookups go on, and memory that is freed is used."""
    engine = open_replica()
    server.client().config_set("maxmemory", 1)

    with pytest.raises(LogFull, match="maxmemory"):
        register(engine, "new", NEW[0])
    assert found(engine, NEW[0]) == []
    server.client().config_set("maxmemory", 0)
    assert register(engine, "new", NEW[0]) == "new"


def test_promoting_forgets_what_both_generations_contain(
    open_replica: OpenReplica, server: RedisServer, index: Path
) -> None:
    """Uploads leave the log when the generation before has them too; a rollback loses none."""
    one, other = open_replica(), open_replica()
    for number in range(3):
        register(one, f"new-{number}", NEW[number])
    before = one.served.generation_id
    ids, rows = [*image_ids(200), "new-0", "new-1"], np.concatenate([EMBEDDINGS, NEW[:2]])
    first = add_generation(index, ids, rows)
    second = add_generation(index, [*ids, "unrelated"], np.concatenate([rows, NEW[50:51]]))
    client = server.client()

    for engine in (one, other):
        engine.switch(first)
    assert client.xlen("neardup:{live}:entries") == 3
    assert found(one, NEW[0]) == ["new-0"]
    one.switch(before)
    assert found(one, NEW[0]) == ["new-0"]
    for engine in (one, other):
        engine.switch(first)
        engine.switch(second)
    assert client.xlen("neardup:{live}:entries") == 1

    promote(index, second)
    for engine in (one, other, open_replica()):
        assert [found(engine, NEW[number]) for number in range(3)] == [["new-0"], ["new-1"], ["new-2"]]
        assert len(engine.served.uploads) == 1
    register(other, "new-3", NEW[3])
    wait_for(lambda: found(one, NEW[3]) == ["new-3"])


def test_a_replica_that_missed_what_was_forgotten_reads_all_again(
    open_replica: OpenReplica, server: RedisServer, index: Path
) -> None:
    """A removal that no generation needs any more is deleted; who had not read it must not go on with the image."""
    one, other = open_replica(), open_replica()
    register(one, "new", NEW[0])
    wait_for(lambda: found(other, NEW[0]) == ["new"])
    log = other.log
    assert isinstance(log, RedisLog)
    with other._changing:  # the follower of this replica stands still
        remove(one, "new")
        one.switch(add_generation(index, image_ids(100), EMBEDDINGS[:100]))
        assert server.client().xlen("neardup:{live}:entries") == 0
        assert found(other, NEW[0]) == ["new"]
    wait_for(lambda: found(other, NEW[0]) == [])


def test_replicas_say_what_they_serve_and_how_far_they_are(open_replica: OpenReplica, server: RedisServer) -> None:
    """An operator sees each of them; one that ends signs off."""
    one, other = open_replica(), open_replica()
    register(one, "new", NEW[0])
    url = StoreUrl(server.url)
    last = server.client().get("neardup:{live}:last").decode()  # type: ignore[union-attr]

    wait_for(lambda: [said["position"] for said in read_replicas(url).values()] == [last, last])
    assert {said["generation_id"] for said in read_replicas(url).values()} == {one.served.generation_id}
    other.close()
    assert len(read_replicas(url)) == 1


def test_a_log_belongs_to_one_embedder(open_replica: OpenReplica, server: RedisServer, tmp_path: Path) -> None:
    """A server of another embedder does not start on it."""
    open_replica()
    with pytest.raises(LogError, match="embedder_digest"):
        RedisLog(StoreUrl(server.url), embedder_digest="cd" * 32, dim=64)
    RedisLog(StoreUrl(server.url + "?prefix=other"), embedder_digest="cd" * 32, dim=64).close()


def test_a_write_without_the_copies_asked_for_is_not_acknowledged(index: Path, server: RedisServer) -> None:
    """With `copies=1` and no Redis replica every register fails, though a retry finds it written."""
    store = FolderStore(index)
    engine = Engine(store, str(store.current()), partial(RedisLog, StoreUrl(server.url + "?copies=1")))
    try:
        with pytest.raises(LogError, match="copies=1"):
            register(engine, "new", NEW[0])
    finally:
        engine.close()


def test_index_and_log_in_redis_answer_as_files_do(server: RedisServer, index: Path) -> None:
    """A replica without any folder: lookups, registers, clusters, switches are those of one with files."""
    url = StoreUrl(server.url)
    store = RedisStore(url)
    clusters = {"image-3": ["image-4", "image-5"]}
    generation_id = add_generation(index, image_ids(200), EMBEDDINGS, clusters=clusters)
    later = add_generation(index, [*image_ids(200), "new"], np.concatenate([EMBEDDINGS, NEW[:1]]))
    for exported in (generation_id, later):
        store.export(open_generation(generation_folder(index, exported)))
    store.promote(generation_id)
    engine = Engine(store, str(store.current()), partial(RedisLog, url))
    promote(index, generation_id)
    files = FolderStore(index)
    mapped = Engine(files, generation_id, partial(RedisLog, StoreUrl(server.url + "?prefix=mapped")))
    try:
        for one in (engine, mapped):
            register(one, "new", NEW[0])
            register(one, "copy", near(EMBEDDINGS[4], 0.95))
            remove(one, "image-9")
        queries = np.concatenate([EMBEDDINGS[:20], NEW[:5]])
        assert engine.lookup(queries, k=5, min_score=0.5) == mapped.lookup(queries, k=5, min_score=0.5)
        for image_id in ("image-3", "copy", "image-4", "new"):
            assert engine.cluster(image_id, limit=2, page_token="") == mapped.cluster(image_id, limit=2, page_token="")
        assert not engine.served.is_known("image-9")
        engine.switch(later)
        assert len(engine.served.uploads) == 1
        assert found(engine, NEW[0]) == ["new"]
    finally:
        engine.close()
        mapped.close()
        store.close()
