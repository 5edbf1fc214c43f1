"""Bordered tables on standard output."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.console import Console
from rich.table import Table


def show_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, wrapped: Collection[str] = ()
) -> None:
    """Print a bordered table; the first column is text, the others are right-aligned. Empty names: no header row.

    Where the terminal is too narrow, the columns named `wrapped` take more lines and the others are cut.
    """
    table = Table(title=title, title_justify="left", show_header=any(columns))
    for number, column in enumerate(columns):
        table.add_column(
            column,
            justify="right" if number else "left",
            no_wrap=column not in wrapped,
            overflow="fold" if column in wrapped else "ellipsis",
        )
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, soft_wrap=False, markup=False)
    if not console.is_terminal:
        console.width = 160
    console.print(table)
