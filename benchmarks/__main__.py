"""The door to every benchmark: `python -m benchmarks --help`.

A benchmark's module, and with it TensorFlow, Spark or a peer's package, is imported only when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

SUMMARIES = {
    "batch": "All near pairs among embeddings, beside FAISS, Spark, MLlib and datasketch.",
    "skew": "Crowds of near-identical images in a corpus: time and memory beside the same corpus without them.",
    "capacity": "What larger corpora would take, fitted on the JSON of batch and lookup runs.",
    "codec": "Posting lists beside pyfastpfor's codecs, Roaring and raw arrays.",
    "dedup": "A folder of planted copies through the whole command: time, memory, precision.",
    "lookup": "The lookup engine on an index of synthetic embeddings: time, recall, bytes, beside FAISS HNSW.",
    "uploads": "Edited photos looked up in an index of whole images and in one with views: recall, precision, time.",
    "serve": "The service under load beside an empty call and other indexes behind the same gRPC shell.",
    "redis": "An index in Redis beside files: bytes an image, load rate, lookups; datasketch in Redis.",
    "soak": "Three replicas on one Redis under load while a replica and Redis are killed.",
    "geometry": "Verdicts of the geometric verifier on true pairs and on the hardest false ones.",
    "scoring": "Pairs a second through the pair classifier and a calibration.",
    "nightly": "One night over a known corpus beside the full run: share of its time, the same matches.",
    "kills": "Processes of real runs on a standalone cluster killed at random moments; the tables afterwards.",
    "demo": "Photos that come with installed packages, edited, deduplicated and judged.",
}


class LazyCommands(click.Group):
    """Subcommands by module name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The names, without importing anything."""
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of the module of that name."""
        if cmd_name not in SUMMARIES:
            return None
        if cmd_name == "codec":
            return codec
        command: click.Command = import_module(f"benchmarks.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list for `--help`."""
        with formatter.section("Benchmarks"):
            formatter.write_dl(list(SUMMARIES.items()))


@click.command()
@click.option("--images", "num_images", type=click.IntRange(min=2), default=1_000_000, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def codec(num_images: int, json_path: Path | None) -> None:
    """Posting lists in variable bytes beside FastPFor's codecs, Roaring and raw arrays, in one run."""
    from benchmarks.codec import run

    run(json_path, num_images=num_images)


@click.command(cls=LazyCommands)
def main() -> None:
    """Measure this project beside its peers; each benchmark prints a table and can write JSON."""


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
