"""Everything a server is started with, in frozen objects made once at the edge."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from embed.decoding import ImageLimits
from lsh.redis_store.url import StoreUrl
from service.certificates import CertificateFiles
from service.decoding_pool import DecodingLimits
from service.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one caller, or all together, may ask for.

    Images that come while the network is busy go to it together; to wait for more of them costs a lone upload those
    milliseconds and gains nothing (`docs/benchmarks.md`).
    """

    max_k: int = 1000
    max_page_size: int = 10_000
    max_calls: int = 1024
    max_call_s: float = 30.0
    max_switch_s: float = 3600.0
    max_stream_idle_s: float = 60.0
    stream_window: int = 64
    lookup_threads: int = 2
    max_lookup_batch: int = 32
    max_lookup_queue: int = 1024
    embed_batch: int = 8
    max_embed_wait_s: float = 0.0
    max_embed_queue: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """`embedder` None is the embedding-only mode; `certificates` None serves without TLS.

    `thorough` looks images up with their views.
    Generations come from the folder `index`, else from `store`; the upload log is in `store`, else the file `log`.
    """

    index: Path | None
    log: Path | None
    listen: str
    store: StoreUrl | None = None
    certificates: CertificateFiles | None = None
    tokens: Path | None = None
    embedder: str | None = None
    dtype: str | None = None
    thorough: bool = False
    metrics_listen: str | None = None
    traces: str | None = None
    limits: Limits = field(default_factory=Limits)
    decoding: DecodingLimits = field(default_factory=lambda: DecodingLimits(image=ImageLimits(max_pixels=50_000_000)))
    watch_s: float = 1.0
    drain_s: float = 10.0
    announce_drain_s: float = 1.0

    def __post_init__(self) -> None:
        if self.store is None and (self.index is None or self.log is None):
            raise SettingsError("there is nothing to serve; give a --workspace, a --store, or both")
        if self.thorough and self.embedder is None:
            raise SettingsError("--thorough makes views of images, and --embedding-only takes none; leave one out")

    @property
    def max_message_bytes(self) -> int:
        """The largest request: an image, or an embedding and names."""
        return 1 << 20 if self.embedder is None else self.decoding.image.max_bytes + (1 << 16)


def host_and_port(listen: str) -> tuple[str, int]:
    """The parts of `HOST:PORT` or `[IPV6]:PORT`; raises SettingsError."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise SettingsError(f"{listen!r} is no address; write HOST:PORT, for example 127.0.0.1:50051")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(listen: str) -> bool:
    """Whether an address can be reached from its own machine only."""
    host, _ = host_and_port(listen)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
