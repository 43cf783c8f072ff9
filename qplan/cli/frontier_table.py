"""The frontier as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from qplan.cli.view import table_view
from qplan.jobs.frontier import Swept
from qplan.report import notation
from qplan.report.frontier_rows import KNEE, frontier_rows
from qplan.report.palette import BITS, text_on

_BAR = 12
"""Characters of a bar."""


def frontier_table(swept: Swept) -> Table:
    """One line per plan and per uniform format, by size; losses in nats per token."""
    view = table_view(
        ("MB", "bpw", "RAM", "decode", "prefill", "KL", "of unif.", "bits of weights", "head", ""),
        left=("bits of weights", "head", ""),
        heading=f"{len(swept.frontier.points)} plans in {swept.frontier.seconds:.1f} s: predicted KL to FP32, "
        f"nats per token, memory {swept.table.goal}",
        gap=1,
        note="RAM: MB of the weights; decode, prefill: times over uniform int8's; predicted. 'plan' and a name: takes "
        "no more of these than that uniform format; of unif.: loss over that of the best uniform format of at most "
        f"these bytes (head int8, same rounding); bits: {_BAR} equal shares of the weights but the head's, F is 16",
    )
    for row in frontier_rows(swept.table, swept.frontier):
        style = "dim" if row.is_uniform else ("bold" if row.label == KNEE else "")
        view.add_row(
            f"{row.total_bytes / 1e6:,.3f}",
            "" if row.bpw is None else f"{row.bpw:.2f}",
            "" if row.ram_bytes is None else f"{row.ram_bytes / 1e6:,.2f}",
            "" if row.decode is None else f"{row.decode:.2f}",
            "" if row.prefill is None else f"{row.prefill:.2f}",
            notation.loss(row.joint_nats),
            "" if row.against_uniform is None else notation.ratio(row.against_uniform),
            _bar(row.widths),
            row.head,
            row.label if row.is_uniform or row.is_named else f"◀ {row.label}" if row.label else "",
            style=style,
        )
    return view


def _bar(shares: Mapping[int, float]) -> Text:
    """Widths as one character per equal share of the weights, in the report's colors: ``33344444445555688F``."""
    bar, total, drawn = Text(), 0.0, 0
    for bits, share in shares.items():
        total += share
        count = round(total * _BAR) - drawn
        drawn += count
        fill = BITS[bits]
        bar.append(("F" if bits == 16 else str(bits)) * count, style=f"{text_on(fill)} on {fill}")
    return bar
