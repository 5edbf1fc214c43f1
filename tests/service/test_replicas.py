"""Several `neardup serve --store` processes on one Redis: what callers see when one of them, or Redis, is killed."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from lsh.index.generation import open_generation
from lsh.index.publishing import current, generation_folder
from lsh.redis_store.publishing import RedisStore
from lsh.redis_store.url import StoreUrl
from service.client import NearDupClient
from service.errors import CallFailed
from tests.redis_servers import RedisServer, redis_server, wait_for
from tests.service.conftest import server_process, store_process
from tests.service.corpora import add_generation, image_ids, random_embeddings

EMBEDDINGS = random_embeddings(200)
NEW = random_embeddings(40, seed=77)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis", append_only=True) as server:
        yield server


def _serves(client: NearDupClient, generation_id: str) -> bool:
    return bool(client.status().generation.generation_id == generation_id)


def test_replicas_without_state_follow_one_key(server: RedisServer, index: Path) -> None:
    """Registered at one, found at the other; promote and rollback of the store reach both; one is killed."""
    store = RedisStore(StoreUrl(server.url))
    first = str(current(index))
    second = add_generation(index, image_ids(150), EMBEDDINGS[:150])
    for generation_id in (first, second):
        store.export(open_generation(generation_folder(index, generation_id)))
    store.promote(first)
    with (
        store_process(server.url) as one,
        store_process(server.url) as other,
        NearDupClient(one.address) as at_one,
        NearDupClient(other.address) as at_other,
    ):
        at_one.register("new", NEW[0])
        wait_for(lambda: [match.image_id for match in at_other.lookup(NEW[0]).matches] == ["new"])
        assert at_other.lookup(EMBEDDINGS[180]).matches[0].image_id == "image-180"
        store.promote(second)
        for client in (at_one, at_other):
            wait_for(partial(_serves, client, second))
            assert not client.lookup(EMBEDDINGS[180]).matches
        store.rollback()
        wait_for(partial(_serves, at_other, first))

        one.process.send_signal(signal.SIGKILL)
        assert [match.image_id for match in at_other.lookup(NEW[0]).matches] == ["new"]
        assert at_other.register("more", NEW[1]).canonical_id == "more"
    store.close()


def test_writes_fail_while_redis_is_away_and_lookups_go_on(server: RedisServer, index: Path) -> None:
    """A replica with the index in files: UNAVAILABLE that names the store, then all is well by itself."""
    with (
        server_process(index.parent, "--embedding-only", "--store", server.url) as replica,
        NearDupClient(replica.address) as client,
    ):
        client.register("new", NEW[0])
        server.kill()
        assert client.lookup(NEW[0]).matches[0].image_id == "new"
        assert client.lookup(EMBEDDINGS[3]).matches[0].image_id == "image-3"
        with pytest.raises(CallFailed, match="uploads cannot be written") as failed:
            client.register("other", NEW[1])
        assert failed.value.code == "UNAVAILABLE"
        server.start()
        started = time.monotonic()
        assert client.register("other", NEW[1]).canonical_id == "other"
        assert time.monotonic() - started < 15
        assert client.lookup(NEW[0]).matches[0].image_id == "new"
