"""Cards for notebooks: HTML that reads well on light and dark pages and needs no script."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import pandas as pd
from markupsafe import Markup

from qplan.report import notation
from qplan.report.literal import markdown, markdown_code, visible
from qplan.report.palette import BITS, text_on

_BITS_STYLE = "".join(
    f".qplan .b{bits} rect{{fill:{fill}}}.qplan .b{bits} text{{fill:{text_on(fill)}}}" for bits, fill in BITS.items()
)

# colors come from the page: JupyterLab, VS Code and mkdocs set `color`; only bits have their own
_STYLE = Markup(  # noqa: S704 - constants
    "<style>"
    ".qplan{font-family:system-ui,sans-serif;font-size:13px;line-height:1.45;color:inherit;max-width:1100px}"
    ".qplan .title{font-size:15px;font-weight:600}"
    ".qplan .soft{opacity:.72}"
    ".qplan .scroll{overflow-x:auto;margin-top:8px}"
    ".qplan table{border-collapse:collapse;margin:0;font-variant-numeric:tabular-nums;color:inherit;font-size:13px}"
    ".qplan th,.qplan td{padding:3px 12px 3px 0;text-align:right;border:0;background:none}"
    ".qplan th,.qplan td{color:inherit;white-space:nowrap}"
    ".qplan thead th{border-bottom:1px solid rgba(128,128,128,.5);font-weight:600}"
    ".qplan th:first-child,.qplan td:first-child{text-align:left}"
    ".qplan svg{display:block}.qplan svg text{fill:currentColor;font-size:12px}"
    ".qplan svg .axis,.qplan svg .mean{font-size:11px;opacity:.72}"
    ".qplan svg .absent{fill:none;stroke:rgba(128,128,128,.35)}"
    ".qplan .bits text{font-size:11.5px;font-weight:600}.qplan .small text{font-size:8px}"
    f"{_BITS_STYLE}</style>"
)


def card(title: str, lines: Iterable[str], *blocks: Markup) -> str:
    """A titled card.

    Args:
        title: first line.
        lines: plain text below it.
        blocks: tables or pictures below.
    """
    parts = [Markup('<div class="title">{}</div>').format(title)]
    parts += [Markup('<div class="soft">{}</div>').format(line) for line in lines]
    parts += [Markup('<div class="scroll">{}</div>').format(block) for block in blocks]
    return str(Markup('<div class="qplan">{}{}</div>').format(_STYLE, Markup("").join(parts)))


def text_card(title: str, lines: Iterable[str], *blocks: str) -> str:
    """`card` for a terminal; blocks are text too."""
    return visible("\n".join([title, *lines, *blocks]))


def markdown_card(title: str, lines: Iterable[str], *blocks: str) -> str:
    """`card` for Markdown; blocks are Markdown already."""
    return "\n\n".join([f"**{markdown(title)}**", "; ".join(map(markdown, lines)), *blocks])


def rows_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """A table; the first column is text, the others are numbers."""
    cells = Markup("").join(Markup("<th>{}</th>").format(name) for name in head)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row))
        for row in rows
    )
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(cells, body)


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """`rows_table` for a terminal: columns aligned by spaces."""
    every = [list(head), *map(list, rows)]
    widths = [max(len(row[i]) for row in every) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in every
    )


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """`rows_table` for Markdown."""
    return _markdown_lines(head, ([markdown(cell) for cell in row] for row in rows))


def _markdown_lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, [":--" if i == 0 else "--:" for i in range(len(head))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def frame_markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table, with numbers as pandas displays them, and as many rows."""
    most = pd.get_option("display.max_rows")
    named = frame.reset_index() if frame.index.names != [None] else frame
    floats = pd.get_option("display.float_format") or "{:.4g}".format
    rows = [[_cell(value, floats) for value in row] for row in named.head(most).itertuples(index=False)]
    table = _markdown_lines([markdown(column) for column in named.columns], rows)
    return table if len(named) <= most else f"{table}\n\n{most} of {len(named):,} rows"


def _cell(value: object, floats: Callable[[float], str]) -> str:
    if value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return notation.MISSING
    if isinstance(value, float):
        return floats(value)
    if isinstance(value, str):
        return markdown_code(repr(value), in_table=True) if value != value.strip() else markdown(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
