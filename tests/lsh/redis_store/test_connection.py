"""Rules of connections: TLS with certificates on both sides, and a master that sentinels replace."""

from __future__ import annotations

from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest

from lsh.errors import StoreError
from lsh.redis_store.connection import Servers
from lsh.redis_store.url import StoreUrl
from tests.redis_servers import RedisServer, free_port, redis_server, wait_for
from tests.service.test_security import Authority


def answers(servers: Servers) -> Any:
    return servers.call(b"index", methodcaller("ping"))


def test_both_sides_show_certificates(tmp_path: Path) -> None:
    """The server's must be signed by `authority`; a server that asks for ours refuses who has none."""
    ours, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    certificate, key = ours.issue("redis")
    tls_port = free_port()
    files = ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", ours.file]
    options = ["--tls-port", str(tls_port), *map(str, files)]
    with redis_server(tmp_path / "redis", *options):
        at = f"rediss://localhost:{tls_port}?authority="
        trusted = Servers(StoreUrl(f"{at}{ours.file}&certificate={certificate}&key={key}"))
        assert answers(trusted)
        trusted.close()
        for url in (f"{at}{ours.file}", f"{at}{other.file}&certificate={certificate}&key={key}"):
            refused = Servers(StoreUrl(url))
            with pytest.raises(StoreError, match="cannot be reached"):
                answers(refused)
            refused.close()


def test_sentinels_name_the_master_after_a_failover(tmp_path: Path) -> None:
    """The master is killed; its replica takes over, has what was written, and takes writes."""
    with (
        redis_server(tmp_path / "master") as master,
        redis_server(tmp_path / "replica", "--replicaof", "127.0.0.1", str(master.port)) as replica,
    ):
        wait_for(lambda: replica.client().info("replication")["master_link_status"] == "up")
        sentinel = RedisServer(tmp_path / "sentinel")
        sentinel.folder.mkdir()
        (sentinel.folder / "sentinel.conf").write_text(
            f"sentinel monitor main 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n"
        )
        sentinel.start(sentinel=True)
        servers = Servers(StoreUrl(f"redis+sentinel://127.0.0.1:{sentinel.port}/main?timeout_s=5"))
        try:
            servers.call(b"index", methodcaller("set", "known", "1"))
            servers.call(b"index", methodcaller("wait", 1, 1000))
            wait_for(lambda: sentinel.client().execute_command("SENTINEL", "replicas", "main"))  # type: ignore[no-untyped-call]
            master.kill()

            def is_written() -> bool:
                try:
                    return bool(servers.call(b"index", methodcaller("set", "after", "1")))
                except StoreError:
                    return False

            wait_for(is_written, timeout_s=60)
            assert servers.call(b"index", methodcaller("get", "known")) == b"1"
        finally:
            servers.close()
            sentinel.kill()
