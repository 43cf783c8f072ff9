"""``qplan explain``: why a tensor got its bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from qplan.cli import completion
from qplan.cli.console import answer, out
from qplan.cli.documents import explain_document
from qplan.cli.modes import with_modes
from qplan.cli.rules import PlansRun, existing_run

_SHOWN = 8
"""At most this many tensors that share a format are named."""


@with_modes("explain")
def command(
    plan: Annotated[
        str,
        typer.Argument(help="A plan.json, its folder, or a budget of the run.", autocompletion=completion.plans),
    ],
    tensor: Annotated[
        str | None,
        typer.Argument(
            help="Name or pattern, e.g. `0.mlp.down_proj`.", show_default="all", autocompletion=completion.tensors
        ),
    ] = None,
    run: PlansRun = None,
) -> None:
    """Say why tensors got their bits: their losses, what a byte is worth, the next best choice.

    Examples:
        qplan explain int4
        qplan explain int4 0.mlp.down_proj
        qplan explain int4 '*.o_proj'
    """
    home = None if run is None else existing_run(run)
    from qplan.choosing.planned import planned_on  # noqa: PLC0415
    from qplan.choosing.request import limits_of  # noqa: PLC0415
    from qplan.cli.explain_tables import details, overview  # noqa: PLC0415 - scipy and pyarrow: not for --help
    from qplan.cli.tables import cache_line  # noqa: PLC0415
    from qplan.planner.explain import explain_all  # noqa: PLC0415
    from qplan.planner.patterns import matching  # noqa: PLC0415
    from qplan.report import notation  # noqa: PLC0415
    from qplan.run.plans import find_plan  # noqa: PLC0415

    found = find_plan(plan, home)
    planned = planned_on(found, home)
    table = planned.table
    limits = limits_of(found.plan, table, planned.run)
    names = list(found.plan.formats)
    chosen = None if tensor is None else matching(tensor, names, "TENSOR")
    explanations = explain_all(table, found.plan, chosen, rules=planned.rules, limits=limits)
    answer(**explain_document(found.path, explanations))
    if tensor is None:
        out.print(overview(explanations, found.plan.budget))
    else:
        for explanation in explanations:
            out.print(details(explanation))
            out.print(explanation.sentence)
            if len(explanation.members) > 1:
                out.print(f"It shares its format with {_some(explanation.members)}.")
    if found.plan.kv is not None:
        out.print(cache_line(found.plan.kv))
    for name, worth in explanations[0].other_prices.items():
        out.print(f"A limit other than the budget binds: {name} more is worth {notation.loss(worth)} nats.")


def _some(names: Sequence[str]) -> str:
    """Some names, and how many more there are: a layer may have a hundred experts."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
