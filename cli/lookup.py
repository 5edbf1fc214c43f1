"""`neardup lookup`: ask a server whether images were seen before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.connection import connection_options, open_client

if TYPE_CHECKING:
    from service import neardup_pb2 as pb

HELP = """\
Ask a server for the near-duplicates of each IMAGE, best first, and for the original of each.

\b
  neardup lookup upload.jpg
  neardup lookup *.jpg --json
  neardup lookup --id photo-17.jpg            an image that the server knows
"""


@click.command(name="lookup", help=HELP)
@click.argument("images", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--id", "image_ids", multiple=True, help="A known image id; repeat for several.")
@click.option("--k", type=click.IntRange(1, 1000), default=10, show_default=True, help="Matches at most.")
@click.option("--min-score", type=click.FloatRange(-1.0, 1.0), help="Lowest score. [default: the generation's]")
@connection_options
def command(
    *,
    images: tuple[Path, ...],
    image_ids: tuple[str, ...],
    k: int,
    min_score: float | None,
    json_output: bool,
    **connection: Any,
) -> None:
    if not images and not image_ids:
        raise click.UsageError("give IMAGE files, or --id with the id of a known image")
    with open_client(**connection) as client:
        queries: list[tuple[str, Path | str]] = [(str(path), path) for path in images]
        queries += [(image_id, image_id) for image_id in image_ids]
        for name, query in queries:
            content = query if isinstance(query, str) else query.read_bytes()
            response = client.lookup(content, k=k, min_score=min_score)
            click.echo(json.dumps(_as_json(name, response)) if json_output else _as_text(name, response))


def _as_json(name: str, response: pb.LookupResponse) -> dict[str, Any]:
    return {"query": name, "generation": response.generation_id, "matches": matches_as_json(response.matches)}


def matches_as_json(matches: Any) -> list[dict[str, Any]]:
    """Matches by the names of the protocol; the source without its prefix."""
    from service import neardup_pb2 as pb

    return [
        {
            "image_id": match.image_id,
            "canonical_id": match.canonical_id,
            "score": round(match.score, 6),
            "similarity": round(match.similarity, 6),
            "shared_terms": match.shared_terms,
            "source": pb.Source.Name(match.source).removeprefix("SOURCE_").lower(),
            "by_view": match.by_view,
        }
        for match in matches
    ]


def _as_text(name: str, response: pb.LookupResponse) -> str:
    from cli.report.wording import visible

    if not response.matches:
        return f"{visible(name)}: no near-duplicate is known"
    lines = [f"{visible(name)}: a near-duplicate of {visible(response.matches[0].canonical_id)}"]
    lines += [
        f"  {match.score:.4f}  {visible(match.image_id)}{', by a view' if match.by_view else ''}"
        for match in response.matches
    ]
    return "\n".join(lines)
