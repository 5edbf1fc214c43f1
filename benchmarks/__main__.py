"""The door to every benchmark: `python -m benchmarks --help`.

A benchmark's module, and with it TensorFlow, Spark or a peer's package, is imported only when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

SUMMARIES = {
    "batch": "Given embeddings through terms, candidates, select and cluster.",
    "codec": "Variable-byte decoding beside pyfastpfor's.",
    "dedup": "A folder of planted copies through the whole command: time, memory, precision.",
    "lookup": "The lookup engine on an index of synthetic embeddings: time, recall, bytes, beside FAISS HNSW.",
    "geometry": "Verdicts of the geometric verifier on true pairs and on the hardest false ones.",
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
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def codec(json_path: Path | None) -> None:
    """Variable-byte decoding beside pyfastpfor's `vbyte` codec, on the same lists in one run."""
    from benchmarks.codec import run

    run(json_path)


@click.command(cls=LazyCommands)
def main() -> None:
    """Measure this project beside its peers; each benchmark prints a table and can write JSON."""


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
