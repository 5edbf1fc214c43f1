"""`neardup completion`: the script that makes a shell complete commands and options."""

from __future__ import annotations

import click

HELP = """\
Print a script that makes a shell complete `neardup`'s commands and options.

\b
  neardup completion bash >> ~/.bashrc
  neardup completion zsh >> ~/.zshrc
  neardup completion fish > ~/.config/fish/completions/neardup.fish
"""


@click.command(name="completion", help=HELP)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(*, shell: str) -> None:
    from click.shell_completion import get_completion_class

    from cli.main import neardup

    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click knows these three
    click.echo(kind(neardup, {}, "neardup", "_NEARDUP_COMPLETE").source())
