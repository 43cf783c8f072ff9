"""The one look of tables in the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text


class View(Table):
    """A table with a heading above it and a note on how to read it below.

    Both may be wider than the table; rich's own title and caption are folded to its width.
    """

    heading: str = ""
    note: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw heading, table and note."""
        if self.heading:
            yield Text(self.heading, style="bold")
        yield from super().__rich_console__(console, options)
        if self.note:
            yield Text(self.note, style="dim")


def mark(*, holds: bool) -> Text:
    """A tick for what holds, a cross for what does not."""
    return Text("✓", "green") if holds else Text("✗", "bold red")


def table_view(
    columns: Sequence[str], *, left: Collection[str] = (), heading: str = "", note: str = "", gap: int = 2
) -> View:
    """An empty table; numbers go right, words left.

    Args:
        columns: headings.
        left: the columns of words.
        heading: what the table shows.
        note: how to read it.
        gap: spaces between columns.
    """
    view = View(box=SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), pad_edge=False)
    view.heading, view.note = heading, note
    for column in columns:
        view.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return view
