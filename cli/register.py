"""`neardup register`: make images findable on a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cli.connection import connection_options, open_client

HELP = """\
Register each IMAGE on a server; its path as given is its image id, unless --id names the only one.

With --unless-known an image with a near-duplicate on the server is not registered; its original is printed instead.

\b
  neardup register upload.jpg --id upload-4711
  neardup register uploads/*.jpg --unless-known --json
"""


@click.command(name="register", help=HELP)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--id", "image_id", help="The image id of the only IMAGE.")
@click.option("--unless-known", is_flag=True, help="Only when no near-duplicate is known.")
@connection_options
def command(
    *, images: tuple[Path, ...], image_id: str | None, unless_known: bool, json_output: bool, **connection: Any
) -> None:
    from cli.lookup import matches_as_json
    from cli.report.wording import visible

    if image_id is not None and len(images) > 1:
        raise click.UsageError(f"--id {image_id} names one image, {len(images)} are given; leave it out")
    with open_client(**connection) as client:
        for path in images:
            name = image_id or str(path)
            row: dict[str, Any] = {"image_id": name}
            if unless_known:
                answer = client.lookup_or_register(name, path.read_bytes())
                row |= {"registered": answer.registered, "canonical_id": answer.canonical_id}
                row["matches"] = matches_as_json(answer.matches)
            else:
                known = client.register(name, path.read_bytes())
                row |= {"registered": True, "canonical_id": known.canonical_id, "was_known": known.was_known}
            if json_output:
                click.echo(json.dumps(row))
            else:
                verb = "registered" if row["registered"] else "not registered"
                alone = row["canonical_id"] == name
                original = "" if alone else f", a near-duplicate of {visible(row['canonical_id'])}"
                click.echo(f"{visible(name)}: {verb}{original}")
