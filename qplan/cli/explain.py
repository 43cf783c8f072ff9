"""``qplan explain``: why a tensor got its bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from qplan.cli.console import out
from qplan.report import notation

if TYPE_CHECKING:
    from qplan.planner.explain import Alternative, Explanation

_MB = 1e6
_SHOWN = 8
"""Tensors that share a format and are named."""


def command(
    plan: Annotated[str, typer.Argument(help="A plan.json, its folder, or a budget of the run.")],
    tensor: Annotated[
        str | None, typer.Argument(help="Name or pattern, e.g. `0.mlp.down_proj`.  [default: all]")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder.  [default: the plan's, else the latest]")] = None,
) -> None:
    """Say why tensors got their bits: their losses, what a byte is worth, the next best choice.

    Example: `qplan explain int4 0.mlp.down_proj`
    """
    from qplan.pipeline.plans import find_plan, run_of, table_of  # noqa: PLC0415
    from qplan.pipeline.runs import Run  # noqa: PLC0415
    from qplan.pipeline.wanted import limits_of  # noqa: PLC0415
    from qplan.planner.explain import explain_all  # noqa: PLC0415
    from qplan.planner.patterns import matching  # noqa: PLC0415

    home = None if run is None else Run(run)
    found = find_plan(plan, home)
    table = table_of(found, home)
    limits = limits_of(found.plan, table, home or run_of(found.path))
    if tensor is None:
        explanations = explain_all(table, found.plan, limits=limits)
        out.print(_overview(explanations, found.plan.budget))
    else:
        names = matching(tensor, [planned.name for planned in found.plan.tensors], "TENSOR")
        explanations = explain_all(table, found.plan, names, limits=limits)
        for explanation in explanations:
            out.print(_details(explanation))
            out.print(explanation.sentence, markup=False)
            if len(explanation.members) > 1:
                out.print(f"It shares its format with {_some(explanation.members)}.", markup=False)
    for name, worth in explanations[0].other_prices.items():
        out.print(f"A limit besides the budget binds: {name} more is worth {notation.loss(worth)} nats.", markup=False)


def _overview(explanations: Sequence[Explanation], budget: str) -> Table:
    """One line per group: what it loses, what narrower and wider formats would trade, the next best."""
    price = explanations[0].price_nats_per_byte * _MB
    view = Table(
        title=f"Plan for {budget}: one more MB of budget is worth {notation.loss(price)} nats/token",
        caption="a narrower format should lose more than that per MB, a wider one save less (where not, whole bytes or "
        "another limit decide); ◁ is the next best choice",
        box=SIMPLE_HEAD,
        title_style="",
        padding=(0, 0),
        pad_edge=False,
    )
    for column in ("tensor", "format", "loss", "narrower", "loses/MB", "wider", "saves/MB"):
        left = column in ("tensor", "format", "narrower", "wider")
        view.add_column(column, justify="left" if left else "right", no_wrap=True)
    for explanation in explanations:
        chosen = explanation.chosen
        more = len(explanation.members) - 1
        view.add_row(
            _short(explanation.tensor) + (f" +{more}" if more else ""),
            chosen.format.name,
            notation.loss(chosen.loss_nats),
            *_trade(explanation, [o for o in explanation.alternatives if o.bytes < chosen.bytes]),
            *_trade(explanation, [o for o in explanation.alternatives if o.bytes > chosen.bytes]),
        )
    return view


def _some(names: Sequence[str]) -> str:
    """Some names, and how many more there are: a layer may have a hundred experts."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _short(name: str) -> str:
    """``0.mlp.down_proj`` for a tensor of layer 0: what patterns understand."""
    return name.removeprefix("model.").removeprefix("layers.")


def _trade(explanation: Explanation, options: Sequence[Alternative]) -> tuple[str, str]:
    """The best of some other formats at the budget's price, and what it trades; the next best of all is marked."""
    option = min(options, key=lambda o: o.net_nats, default=None)
    if option is None or option.marginal_nats_per_byte is None:
        return "-", ""
    mark = " ◁" if option == explanation.next_best else ""
    return option.format.name + mark, notation.loss(option.marginal_nats_per_byte * _MB)


def _details(explanation: Explanation) -> Table:
    """Every allowed format of one tensor, at the budget's price."""
    price = explanation.price_nats_per_byte * _MB
    view = Table(
        title=f"{explanation.tensor}: one more MB of budget is worth {notation.loss(price)} nats/token",
        caption="per MB: loss saved by a byte more or added by a byte less than planned, times 10^6; "
        "at price: loss plus bytes at what the budget pays, above the cheapest format's",
        box=SIMPLE_HEAD,
        title_style="",
        padding=(0, 1),
        pad_edge=False,
    )
    for column in ("format", "bytes", "nats/token", "per MB", "at price", ""):
        view.add_column(column, justify="left" if column in ("format", "") else "right", no_wrap=True)
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
