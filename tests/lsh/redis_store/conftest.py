"""A generation of the small corpus, in a Redis server of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lsh.index.generation import Generation, open_generation
from lsh.redis_store.publishing import RedisStore
from lsh.redis_store.url import StoreUrl
from tests.lsh.index.conftest import Corpus, make_corpus, write_generation
from tests.redis_servers import RedisServer, redis_server


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return make_corpus()


@pytest.fixture(scope="session")
def generation(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Generation:
    return open_generation(write_generation(tmp_path_factory.mktemp("generation"), corpus, num_tables=4))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def store(server: RedisServer) -> Iterator[RedisStore]:
    """An empty store."""
    server.client().flushall()
    store = RedisStore(StoreUrl(server.url))
    yield store
    store.close()
