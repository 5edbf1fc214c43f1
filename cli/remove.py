"""`neardup remove`: take images out of a server's answers."""

from __future__ import annotations

import json
from typing import Any

import click

from cli.connection import connection_options, open_client

HELP = """\
Take each IMAGE_ID out of every later answer of a server. Nothing else is deleted.

\b
  neardup remove upload-4711
"""


@click.command(name="remove", help=HELP)
@click.argument("image_ids", nargs=-1, required=True, metavar="IMAGE_ID...")
@connection_options
def command(*, image_ids: tuple[str, ...], json_output: bool, **connection: Any) -> None:
    from cli.report.wording import visible

    with open_client(**connection) as client:
        for image_id in image_ids:
            was_known = client.remove(image_id).was_known
            if json_output:
                click.echo(json.dumps({"image_id": image_id, "was_known": was_known}))
            else:
                click.echo(f"{visible(image_id)}: {'removed' if was_known else 'not known'}")
