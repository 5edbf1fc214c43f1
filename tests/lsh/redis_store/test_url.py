"""Rules of a store's address: every form is understood, no form shows its secrets."""

from __future__ import annotations

import pytest

from lsh.errors import ParameterError
from lsh.redis_store.url import StoreUrl


def test_every_form_is_understood() -> None:
    """One server, sentinels, a cluster; TLS, ACL users, databases, several hosts, IPv6, options."""
    one = StoreUrl("rediss://ann:p%40ss@[::1]:7000/3?prefix=team-a&authority=/ca.pem&timeout_s=0.5&copies=1")
    sentinel = StoreUrl("redis+sentinel://:secret@a,b:26380/main/2?sentinel_password=other")
    cluster = StoreUrl("rediss+cluster://a:7001,b:7002")

    assert (one.kind, one.servers, one.database, one.is_encrypted) == ("single", (("::1", 7000),), 3, True)
    assert (one.username, one.password, one.prefix, one.authority) == ("ann", "p@ss", "team-a", "/ca.pem")
    assert (one.timeout_s, one.copies) == (0.5, 1)
    assert sentinel.servers == (("a", 26379), ("b", 26380))
    assert (sentinel.service, sentinel.database, sentinel.password) == ("main", 2, "secret")
    assert sentinel.sentinel_password == "other"  # noqa: S105
    assert (cluster.kind, cluster.servers) == ("cluster", (("a", 7001), ("b", 7002)))
    assert StoreUrl("redis://localhost").servers == (("localhost", 6379),)


@pytest.mark.parametrize(
    "text", ["redis://ann:hunter2@host/0?prefix=x", "redis+sentinel://:hunter2@host/main?sentinel_password=hunter2"]
)
def test_secrets_are_masked(text: str) -> None:
    """In everything that is printed or logged."""
    url = StoreUrl(text)
    assert "hunter2" not in f"{url} {url!r}"
    assert "***@host" in str(url)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http://:hunter2@host", "no store"),
        ("redis://:hunter2@", "no server"),
        ("redis://:hunter2@host:port", "no server"),
        ("redis://:hunter2@host/name", "no number"),
        ("redis+sentinel://:hunter2@host", "no service"),
        ("redis+cluster://:hunter2@host/1", "one database"),
        ("redis://host?password=hunter2", "unknown options"),
        ("redis://host?timeout_s=never", "out of range"),
        ("redis://host?prefix={x}", "prefix"),
        ("redis://host?copies", "cannot be read"),
    ],
)
def test_what_cannot_be_a_store_is_refused_without_its_secret(text: str, reason: str) -> None:
    """The message has what is wrong and never the password."""
    with pytest.raises(ParameterError, match=reason) as refused:
        StoreUrl(text)
    assert "hunter2" not in str(refused.value)
