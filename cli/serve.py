"""`neardup serve`: the lookup service over a workspace's current generation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from cli.options import DEFAULT_WORKSPACE, MEBIBYTE, dtype_option

if TYPE_CHECKING:
    from lsh.redis_store.url import StoreUrl
    from service.certificates import CertificateFiles

HELP = """\
Serve lookups over gRPC from the workspace's current generation.

A server needs --certificate, --key and --tokens. On one machine, or behind a proxy that does all that, --insecure
leaves them out; it then listens on 127.0.0.1 only, unless --listen says otherwise. SIGTERM and Ctrl-C drain: calls in
progress are finished.

\b
  neardup serve --insecure                                  images and embeddings, this machine only
  neardup serve --insecure --embedding-only                 without TensorFlow, ready in two seconds
  neardup serve --certificate tls.crt --key tls.key --tokens tokens --metrics 127.0.0.1:9100

Many servers, each of which finds what any of them registered:

\b
  neardup serve --workspace W --store redis://host          index from the workspace, uploads in Redis
  neardup serve --store redis://host                        index and uploads in Redis, nothing on disk

Give a store with a password by the environment variable NEARDUP_SERVE_STORE.

A line of the tokens file is the token's SHA-256, its scopes and a name:

\b
  echo "$(printf %s "$TOKEN" | sha256sum | cut -d' ' -f1) read,write uploader" >> tokens
"""

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command(name="serve", help=HELP)
@click.option(
    "--workspace",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_WORKSPACE,
    show_default=True,
    help="Folder that holds index/.",
)
@click.option("--store", help="Redis that keeps the uploads and, without --workspace, the index: redis://host:port.")
@click.option("--log", type=click.Path(path_type=Path, dir_okay=False), help="Upload log. [default: in the workspace]")
@click.option("--listen", help="HOST:PORT. [default: 0.0.0.0:50051; with --insecure 127.0.0.1:50051]")
@click.option("--certificate", type=_FILE, help="PEM file of the server's certificate; reloaded when it changes.")
@click.option("--key", type=_FILE, help="PEM file of its key.")
@click.option("--client-authority", type=_FILE, help="PEM file; clients must have a certificate signed by it.")
@click.option("--tokens", type=_FILE, help="Tokens and their scopes; reloaded when it changes.")
@click.option("--insecure", is_flag=True, help="No TLS, and no tokens unless --tokens is given.")
@click.option("--embedding-only", is_flag=True, help="Take embeddings, no images; TensorFlow is not loaded.")
@click.option("--embedder", default="vgg_copy", show_default=True, help="Built-in embedder, or an embedder directory.")
@dtype_option
@click.option(
    "--thorough", is_flag=True, help="Look images up with views of them, too: captioned, framed, darker copies."
)
@click.option("--max-mib", type=click.IntRange(1, 1024), default=32, show_default=True, help="Largest image file.")
@click.option("--max-megapixels", type=click.IntRange(1, 178), default=50, show_default=True, help="Largest image.")
@click.option("--decoders", type=click.IntRange(1, 256), default=2, show_default=True, help="Decoder processes.")
@click.option("--decoder-mib", type=click.IntRange(256), default=1024, show_default=True, help="Memory of each.")
@click.option("--decode-seconds", type=click.FloatRange(0.1), default=5.0, show_default=True, help="Time for an image.")
@click.option("--lookup-threads", type=click.IntRange(1, 256), default=2, show_default=True)
@click.option("--max-calls", type=click.IntRange(1), default=1024, show_default=True, help="Calls at once; more fail.")
@click.option("--metrics", help="HOST:PORT that Prometheus scrapes.")
@click.option("--traces", help="OpenTelemetry collector, for example http://localhost:4317.")
@click.option("--drain-seconds", type=click.FloatRange(0), default=10.0, show_default=True, help="For calls to finish.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "error"]), default="info", help="debug has a line a call."
)
@click.pass_context
def command(
    context: click.Context,
    *,
    workspace: Path,
    store: str | None,
    log: Path | None,
    listen: str | None,
    certificate: Path | None,
    key: Path | None,
    client_authority: Path | None,
    tokens: Path | None,
    insecure: bool,
    embedding_only: bool,
    embedder: str,
    dtype: str | None,
    thorough: bool,
    max_mib: int,
    max_megapixels: int,
    decoders: int,
    decoder_mib: int,
    decode_seconds: float,
    lookup_threads: int,
    max_calls: int,
    metrics: str | None,
    traces: str | None,
    drain_seconds: float,
    log_level: str,
) -> None:
    certificates = _certificates(certificate, key, client_authority, tokens, insecure=insecure)
    # Decoders are started by fork and exec; gRPC reads this when it is imported, and need not prepare for a fork.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from embed.decoding import ImageLimits
    from service.decoding_pool import DecodingLimits
    from service.server import run_server
    from service.settings import Limits, ServeSettings

    if store and log:
        raise click.UsageError("with --store uploads are kept in Redis; leave out --log")
    is_from_store = store and context.get_parameter_source("workspace") is ParameterSource.DEFAULT
    image_limits = ImageLimits(max_bytes=max_mib * MEBIBYTE, max_pixels=max_megapixels * 1_000_000)
    settings = ServeSettings(
        index=None if is_from_store else workspace / "index",
        log=None if store else log or workspace / "live" / "uploads.sqlite",
        store=_store_url(store),
        listen=listen or ("127.0.0.1:50051" if insecure else "0.0.0.0:50051"),
        certificates=certificates,
        tokens=tokens,
        embedder=None if embedding_only else embedder,
        dtype=dtype,
        thorough=thorough,
        metrics_listen=metrics,
        traces=traces,
        limits=Limits(lookup_threads=lookup_threads, max_calls=max_calls),
        decoding=DecodingLimits(
            image=image_limits,
            memory_bytes=decoder_mib * MEBIBYTE,
            time_s=decode_seconds,
            num_processes=decoders,
        ),
        drain_s=drain_seconds,
    )
    run_server(settings, log_level=log_level)


def _store_url(store: str | None) -> StoreUrl | None:
    from lsh.redis_store.url import StoreUrl

    return StoreUrl(store) if store else None


def _certificates(
    certificate: Path | None, key: Path | None, client_authority: Path | None, tokens: Path | None, *, insecure: bool
) -> CertificateFiles | None:
    if insecure:
        if certificate or key or client_authority:
            raise click.UsageError("--insecure serves without TLS; leave out --certificate, --key, --client-authority")
        return None
    if not (certificate and key and tokens):
        raise click.UsageError("give --certificate, --key and --tokens, or --insecure to serve this machine only")
    from service.certificates import CertificateFiles

    return CertificateFiles(certificate=certificate, key=key, client_authority=client_authority)
