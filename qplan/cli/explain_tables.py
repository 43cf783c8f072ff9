"""Explanations of a plan's formats as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from qplan.cli.view import table_view
from qplan.planner.explain import Alternative, Explanation
from qplan.report import notation
from qplan.tensors import short_name

_MB = 1e6


def overview(explanations: Sequence[Explanation], budget: str) -> Table:
    """One line per group: what it loses, what narrower and wider formats would trade, the next best."""
    price = explanations[0].price_nats_per_byte * _MB
    view = table_view(
        ("tensor", "format", "loss", "narrower", "loses/MB", "wider", "saves/MB"),
        left=("tensor", "format", "narrower", "wider"),
        heading=f"Plan for {budget}: one more MB of budget is worth {notation.loss(price)} nats/token",
        note="loss: KL in nats per token. narrower, loses/MB: the best smaller format, and what it loses more for "
        "each MB that it saves; wider, saves/MB: the best larger format, and what it loses less for each MB more. "
        "A format is kept while the narrower loses more per MB than the price above and the wider saves less; where "
        "not, whole bytes or another limit decide. ◁: what would change first",
    )
    for explanation in explanations:
        chosen = explanation.chosen
        more = len(explanation.members) - 1
        view.add_row(
            short_name(explanation.tensor) + (f" +{more}" if more else ""),
            chosen.format.name,
            notation.loss(chosen.loss_nats),
            *_trade(explanation, [o for o in explanation.alternatives if o.bytes < chosen.bytes]),
            *_trade(explanation, [o for o in explanation.alternatives if o.bytes > chosen.bytes]),
        )
    return view


def _trade(explanation: Explanation, options: Sequence[Alternative]) -> tuple[str, str]:
    """The best of ``options`` at the budget's price, and what it trades; marked if it is the next best of all."""
    option = min(options, key=lambda o: o.net_nats, default=None)
    if option is None or option.marginal_nats_per_byte is None:
        return "-", ""
    mark = " ◁" if option == explanation.next_best else ""
    return option.format.name + mark, notation.loss(option.marginal_nats_per_byte * _MB)


def details(explanation: Explanation) -> Table:
    """Every allowed format of one tensor, at the budget's price."""
    price = explanation.price_nats_per_byte * _MB
    view = table_view(
        ("format", "bytes", "nats/token", "per MB", "at price", ""),
        left=("format", ""),
        heading=f"{explanation.tensor}: one more MB of budget is worth {notation.loss(price)} nats/token",
        note="per MB: what a larger format loses less for each MB more than the planned one, or a smaller one loses "
        "more for each MB that it saves. at price: loss, and bytes at the price above, beyond those of the best "
        "format; the plan takes the best where whole bytes and other limits let it",
        gap=3,
    )
    for option in explanation.alternatives:
        planned, following = option.format == explanation.format, option == explanation.next_best
        marginal = option.marginal_nats_per_byte
        view.add_row(
            option.format.name,
            f"{option.bytes:,}",
            notation.loss(option.loss_nats),
            "" if planned or marginal is None else notation.loss(marginal * _MB),
            f"+{notation.loss(option.net_nats)}" if option.net_nats else "cheapest",
            "◀ planned" if planned else "◁ next best" if following else "",
            style="bold" if planned else "",
        )
    return view
