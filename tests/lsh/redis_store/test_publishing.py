"""Rules of generations in Redis: nothing is entered unverified, one key says what is served, damage is found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lsh.errors import GenerationError, StoreError, StoreFullError
from lsh.index.generation import Generation, open_generation, verify_generation
from lsh.index.lookup import HashTables
from lsh.redis_store.loading import write_folder
from lsh.redis_store.publishing import RedisStore
from lsh.redis_store.url import StoreUrl
from tests.lsh.index.conftest import Corpus, make_corpus, write_generation
from tests.redis_servers import RedisServer, redis_cluster, redis_server, wait_for

CATEGORIES = ["+@read", "+@write", "+@scripting", "+@transaction", "+@connection"]


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Generation]:
    """Two more, small ones."""
    return [
        open_generation(
            write_generation(tmp_path_factory.mktemp("other"), make_corpus(60, seed=seed), num_tables=2, num_probes=8)
        )
        for seed in (1, 2)
    ]


def test_promote_and_roll_back_move_one_key(
    store: RedisStore, generation: Generation, others: list[Generation]
) -> None:
    """As in a workspace; every process that opens the store sees the same."""
    first, second = generation.manifest.generation_id, others[0].manifest.generation_id
    assert store.current() is None
    for one in (generation, others[0]):
        assert store.export(one)
    assert [one.generation_id for one in store.list_generations()] == sorted(
        [first, second], key=lambda one: (store.stored(one).manifest.created_at, one)
    )

    store.promote(first)
    store.promote(second)
    other = RedisStore(store.url)
    assert (other.current(), other.previous()) == (second, first)
    assert other.rollback() == first
    assert (store.current(), store.previous()) == (first, None)
    with pytest.raises(GenerationError, match="nothing to roll back"):
        store.rollback()
    with pytest.raises(GenerationError, match="is not in redis://"):
        store.promote("0" * 16)
    with pytest.raises(GenerationError, match="16 hex digits"):
        store.promote("../x")
    other.close()


def test_an_export_is_imported_byte_for_byte(store: RedisStore, generation: Generation, tmp_path: Path) -> None:
    """The folder that comes out has every digest of the manifest; exporting again is nothing to do."""
    assert store.export(generation)
    assert not store.export(generation)
    stored = store.stored(generation.manifest.generation_id)

    write_folder(store.servers, stored, tmp_path)

    verify_generation(tmp_path)
    assert open_generation(tmp_path).manifest == generation.manifest


def test_every_damaged_page_is_found(store: RedisStore, server: RedisServer, others: list[Generation]) -> None:
    """A changed, a cut and a missing page of each letter; promote refuses, and nothing is current."""
    store.export(others[0])
    generation_id = others[0].manifest.generation_id
    client = server.client()
    letters = {b"b", b"s", b"c", b"n", b"h", b"k", b"t", b"m", b"z"}
    for letter in letters:
        name = store.stored(generation_id).keys(letter, [0])[0]
        whole: bytes = client.get(name)  # type: ignore[assignment]
        for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-1], None):
            client.delete(name) if damaged is None else client.set(name, damaged)
            with pytest.raises((GenerationError, StoreError), match=generation_id):
                store.promote(generation_id)
        client.set(name, whole)
    assert store.current() is None
    store.promote(generation_id)


def test_garbage_is_removed_to_the_last_key(
    store: RedisStore, server: RedisServer, generation: Generation, others: list[Generation]
) -> None:
    """What was current before `keep` generations, and what an export that was killed has left."""
    ids = []
    for one in (generation, *others):
        store.export(one)
        store.promote(one.manifest.generation_id)
        ids.append(one.manifest.generation_id)
    assert store.collect_garbage(keep=1) == [ids[0]]
    assert (store.current(), store.previous()) == (ids[2], ids[1])
    assert store.collect_garbage(keep=0) == [ids[1]]
    num_keys = server.client().dbsize()

    def break_off(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.export(generation, advance=break_off)
    assert store.collect_garbage(keep=0) == []  # it may still be going on
    server.client().delete("neardup:{index}:export:4")
    store.collect_garbage(keep=0)
    assert server.client().dbsize() == num_keys
    assert ids[0] not in [one.generation_id for one in store.list_generations()]


def test_a_redis_that_is_full_or_away_is_named(generation: Generation, tmp_path: Path) -> None:
    """Without its password; nothing is entered."""
    with redis_server(tmp_path, "--requirepass", "hunter2") as server:
        url = f"redis://:hunter2@127.0.0.1:{server.port}"
        store, wrong = RedisStore(StoreUrl(url)), RedisStore(StoreUrl(url.replace("hunter2", "hunter3")))
        with pytest.raises(StoreError, match="refused the credentials"):
            wrong.current()
        store.servers.call(b"index", lambda client: client.config_set("maxmemory", 1))
        with pytest.raises(StoreFullError, match="maxmemory"):
            store.export(generation)
        assert store.list_generations() == []
        server.kill()
        with pytest.raises(StoreError, match=f"127.0.0.1:{server.port}") as away:
            store.current()
    assert "hunter2" not in str(away.value)
    store.close()
    wrong.close()


def test_an_acl_user_with_our_keys_only_is_enough(generation: Generation, tmp_path: Path) -> None:
    """The commands and keys that docs/redis-format.md names."""
    with redis_server(tmp_path) as server:
        server.client().acl_setuser(
            "neardup", enabled=True, passwords=["+secret"], keys=["neardup:*"], categories=CATEGORIES
        )
        store = RedisStore(StoreUrl(f"redis://neardup:secret@127.0.0.1:{server.port}"))
        store.export(generation)
        store.promote(generation.manifest.generation_id)
        store.close()
        foreign = RedisStore(StoreUrl(f"redis://neardup:secret@127.0.0.1:{server.port}?prefix=other"))
        with pytest.raises(StoreError, match="refused"):
            foreign.current()
        foreign.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    with redis_cluster(tmp_path_factory.mktemp("cluster"), num_replicas=1) as servers:
        yield servers


def test_a_cluster_shares_a_generation_and_survives_a_killed_master(
    cluster: list[RedisServer], generation: Generation, corpus: Corpus
) -> None:
    """Every master has a share; a lookup asks each once a step; after a failover the answers are the same."""
    url = StoreUrl("redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in cluster[:3]))
    store = RedisStore(url)
    store.export(generation)
    generation_id = generation.manifest.generation_id
    store.promote(generation_id)
    assert len(store.stored(generation_id).tags) == 12
    sizes = [server.client().dbsize() for server in cluster[:3]]
    assert min(sizes) > 0.8 * max(sizes)
    queries, mapped = corpus.embeddings[:20], HashTables(generation)
    tables = store.open(generation_id)
    expected = mapped.lookup(queries, k=5, min_similarity=0.5)
    np.testing.assert_array_equal(tables.lookup(queries, k=5, min_similarity=0.5).docs, expected.docs)

    for replica in cluster[3:]:
        wait_for(lambda replica=replica: replica.client().info("replication")["master_link_status"] == "up")  # type: ignore[misc]
    cluster[1].kill()

    def answers() -> bool:
        try:
            return bool((tables.lookup(queries, k=5, min_similarity=0.5).docs == expected.docs).all())
        except StoreError:
            return False

    wait_for(answers)
    assert store.current() == generation_id
    store.close()
