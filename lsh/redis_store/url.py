"""The address of a store in Redis, as an operator writes it: servers, credentials, certificates.

    redis://[[user]:password@]host[:port][/database]            one server
    redis+sentinel://[[user]:password@]host[:port],.../name     the master that sentinels know by this name
    redis+cluster://[[user]:password@]host[:port],...           any nodes of a cluster

`rediss` in place of `redis` asks for TLS. Options follow a `?`: `prefix` of all keys, `authority`, `certificate` and
`key` (PEM files), `timeout_s`, `copies` (Redis replicas that must have a write before it is acknowledged), `kept_mib`
(a server keeps a generation's sketches in memory up to this size), `sentinel_username` and `sentinel_password`.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from lsh.errors import ParameterError

_SCHEMES: Final = {"redis": "single", "redis+sentinel": "sentinel", "redis+cluster": "cluster"}
_OPTIONS: Final = (
    "prefix",
    "authority",
    "certificate",
    "key",
    "timeout_s",
    "copies",
    "kept_mib",
    "sentinel_username",
    "sentinel_password",
)
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_DEFAULT_PORTS: Final = {"single": 6379, "sentinel": 26379, "cluster": 6379}


class StoreUrl:
    """A parsed address. `str` and `repr` show no credentials; not a dataclass, so that none spells them out either."""

    def __init__(self, text: str) -> None:
        """Raises ParameterError, which shows no credentials."""
        try:
            parts = urlsplit(text)
            options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
        except ValueError as error:
            raise ParameterError(
                f"the store's URL cannot be read: {_unsecret(text)}; write redis://host:port"
            ) from error
        scheme = parts.scheme.replace("rediss", "redis", 1)
        if scheme not in _SCHEMES:
            raise ParameterError(
                f"{_unsecret(text)} is no store; write redis://, redis+sentinel:// or redis+cluster:// "
                "(rediss for TLS) and host:port"
            )
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise ParameterError(f"the store's URL has unknown options {unknown}; known are {', '.join(_OPTIONS)}")
        credentials, _, servers = parts.netloc.rpartition("@")
        username, _, password = credentials.partition(":")
        self.kind = _SCHEMES[scheme]
        self.is_encrypted = parts.scheme.startswith("rediss")
        self.username = unquote(username) or None
        self.password = unquote(password) or None
        self.servers = tuple(_server(one, _DEFAULT_PORTS[self.kind], text) for one in servers.split(","))
        self.service, self.database = self._path(parts.path)
        self.prefix = options.get("prefix", "neardup")
        if not _PREFIX.fullmatch(self.prefix):
            raise ParameterError(f"prefix={self.prefix!r} must be 1 to 64 letters, digits or any of _ . : -")
        self.authority, self.certificate, self.key = (options.get(one) for one in ("authority", "certificate", "key"))
        self.timeout_s = _number("timeout_s", options.get("timeout_s", "2"), least=0.01, most=60.0)
        self.copies = int(_number("copies", options.get("copies", "0"), least=0, most=16))
        self.kept_mib = int(_number("kept_mib", options.get("kept_mib", "1024"), least=0, most=1 << 20))
        self.sentinel_username = options.get("sentinel_username")
        self.sentinel_password = options.get("sentinel_password")

    def __str__(self) -> str:
        scheme = ("rediss" if self.is_encrypted else "redis") + ("" if self.kind == "single" else f"+{self.kind}")
        servers = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.servers)
        path = {"single": f"/{self.database}", "sentinel": f"/{self.service}", "cluster": ""}[self.kind]
        secret = "***@" if self.password else ""
        return f"{scheme}://{secret}{servers}{path}?prefix={self.prefix}"

    __repr__ = __str__

    def _path(self, path: str) -> tuple[str, int]:
        """The service's name and the database's number."""
        name, _, database = path.lstrip("/").partition("/")
        if self.kind == "single":
            name, database = "", name
        if self.kind == "sentinel" and not name:
            raise ParameterError(f"{self.servers[0][0]} names no service; write redis+sentinel://host:port/service")
        if self.kind == "cluster" and (name or database):
            raise ParameterError("a cluster has one database only; leave the path out")
        if database and not (database.isascii() and database.isdigit()):
            raise ParameterError(f"database {database!r} is no number; write redis://host:port/0")
        return name, int(database or 0)


def _server(text: str, default_port: int, url: str) -> tuple[str, int]:
    host, colon, port = (text, "", "") if text.endswith("]") else text.rpartition(":")
    if not colon:
        host, port = text, str(default_port)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise ParameterError(f"{_unsecret(url)} names no server; write redis://host:port")
    return host, int(port)


def _number(name: str, text: str, *, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise ParameterError(f"{name}={text!r} is out of range {least:g}..{most:g}")
    return value


def _unsecret(text: str) -> str:
    """A URL that could not be parsed, without what may be a credential."""
    return re.sub(r"(?<=://)[^/]*@", "***@", text.split("?", maxsplit=1)[0])
