"""The options of every command that talks to a server, and the client made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from service.client import NearDupClient

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add where the server is, and how to be let in."""
    for option in reversed(
        (
            click.option("--server", default="127.0.0.1:50051", show_default=True, help="HOST:PORT of the server."),
            click.option("--tls", is_flag=True, help="Encrypt, trusting the system's authorities."),
            click.option("--authority", type=_FILE, help="Encrypt, trusting the authority of this PEM file."),
            click.option("--certificate", type=_FILE, help="The client's certificate, for mutual TLS."),
            click.option("--key", type=_FILE, help="Its key."),
            click.option("--token-file", type=_FILE, help="File that holds the token, which must not be an argument."),
            click.option("--timeout", type=click.FloatRange(0.001), default=30.0, show_default=True, help="Seconds."),
            click.option("--json", "json_output", is_flag=True, help="Print one JSON object a line."),
        )
    ):
        command = option(command)
    return command


def open_client(
    *,
    server: str,
    tls: bool,
    authority: Path | None,
    certificate: Path | None,
    key: Path | None,
    token_file: Path | None,
    timeout: float,
) -> NearDupClient:
    """A client from a command's options; raises SettingsError."""
    from service.client import Connection, NearDupClient

    return NearDupClient(
        Connection(
            address=server,
            tls=tls,
            authority=authority,
            certificate=certificate,
            key=key,
            token=None if token_file is None else token_file.read_text("utf-8").strip(),
            timeout_s=timeout,
        )
    )
