"""The frontier as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from qplan.cli.view import table_view
from qplan.jobs.frontier import Swept
from qplan.report import notation
from qplan.report.frontier_rows import KNEE, FrontierRow, frontier_rows
from qplan.report.palette import BITS, text_on

_BAR, _LEAST_BAR = 12, 4
"""Characters of a bar, where there is room for them and where there is not."""

_WIDTH = 80
"""Columns of a plain terminal."""

_GIGABYTE = 1e9
"""From here on sizes are told in whole tenths of a megabyte."""

_LABEL = ""


def frontier_table(swept: Swept, width: int = _WIDTH) -> Table:
    """One line per plan and per uniform format, by size; losses in nats per token.

    Args:
        swept: the plans.
        width: columns of the terminal: the bars give way, so that no number is cut.
    """
    apart = swept.table.model.embedding is not None
    rows = frontier_rows(swept.table, swept.frontier)
    numbers, words = [_numbers(row) for row in rows], [_words(row, apart=apart) for row in rows]
    before = ("MB", "bpw", "RAM", "de-\ncode", "pre-\nfill", "KL", "of\nunif.")
    after = ("head", *(["embed."] if apart else []), _LABEL)
    others = sum(_widest(column) for column in zip(before, *numbers, strict=True))
    others += sum(_widest(column) for column in zip(after, *words, strict=True))
    # a space between columns, and one at either end
    room = width - others - len(before) - len(after) - 2
    bar = max(_LEAST_BAR, min(_BAR, room))
    without = "the head's and the embedding's" if apart else "the head's"
    view = table_view(
        (*before, "bits", *after),
        left=("bits", *after),
        heading=f"{len(swept.frontier.points)} plans in {swept.frontier.seconds:.1f} s: predicted KL to FP32, "
        f"nats per token, memory {swept.table.goal}",
        gap=1,
        note="RAM: MB of the weights; decode, prefill: times over uniform int8's; predicted. 'plan' and a name: takes "
        "no more of these than that uniform format; of unif.: loss over that of the best uniform format of at most "
        f"these bytes (head int8, same rounding); bits: {bar} equal shares of the weights but {without}, F is 16"
        + ("; embed.: format of the untied embedding, scales of 32 bits" if apart else ""),
    )
    view.columns[-1].no_wrap = room >= _LEAST_BAR  # words may take two lines, numbers may not
    for row, left, right in zip(rows, numbers, words, strict=True):
        style = "dim" if row.is_uniform else ("bold" if row.label == KNEE else "")
        view.add_row(*left, _bar(row.widths, bar), *right, style=style)
    return view


def _numbers(row: FrontierRow) -> tuple[str, ...]:
    large = row.total_bytes >= _GIGABYTE
    return (
        f"{row.total_bytes / 1e6:,.{1 if large else 3}f}",
        "" if row.bpw is None else f"{row.bpw:.2f}",
        "" if row.ram_bytes is None else f"{row.ram_bytes / 1e6:,.{0 if large else 2}f}",
        "" if row.decode is None else f"{row.decode:.2f}",
        "" if row.prefill is None else f"{row.prefill:.2f}",
        notation.loss(row.joint_nats),
        "" if row.against_uniform is None else notation.ratio(row.against_uniform),
    )


def _words(row: FrontierRow, *, apart: bool) -> tuple[str, ...]:
    label = row.label if row.is_uniform or row.is_named else f"◀ {row.label}" if row.label else ""
    return (row.head, *([row.embedding.removesuffix("-s32")] if apart else []), label)


def _widest(column: Sequence[str]) -> int:
    return max(cell_len(line) for text in column for line in text.split("\n"))


def _bar(shares: Mapping[int, float], length: int) -> Text:
    """Widths as one character per equal share of the weights, in the report's colors: ``33344444445555688F``."""
    bar, total, drawn = Text(), 0.0, 0
    for bits, share in shares.items():
        total += share
        count = round(total * length) - drawn
        drawn += count
        fill = BITS[bits]
        bar.append(("F" if bits == 16 else str(bits)) * count, style=f"{text_on(fill)} on {fill}")
    return bar
