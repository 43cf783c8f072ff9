"""What a plan is asked for: budgets, limits and the target, as ``emit``, ``plan`` and ``quantize`` take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from qplan.choosing.request import Increase, PlanRequest
from qplan.cli import completion, panels
from qplan.cost.kv_cache import KvMode
from qplan.cost.target import target_names
from qplan.planner.budget import parse_budgets
from qplan.planner.rules import Rules
from qplan.planner.size import Size
from qplan.settings import DynamicOption, Objective

AUTO: Literal["auto"] = "auto"
"""Value of ``--dynamic-option`` and of ``--kv`` that leaves the choice to qplan."""

KV_MODES = tuple(mode.value for mode in KvMode)

BudgetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        help="No more than a uniform export takes (`int8`, `int4`, `fp16`; see --parity), or files of `4.5bpw`, "
        "`300MB` or `60%` of fp16; repeat it or use commas for several.",
        show_default=f"{PlanRequest.budgets[0].text}, if nothing else is limited",
        metavar="BUDGET",
        autocompletion=completion.budgets,
        rich_help_panel=panels.LIMITS,
    ),
]
MaxKl = Annotated[
    float | None,
    typer.Option(metavar="NATS", help="Maximum KL to FP32, nats per token.", rich_help_panel=panels.LIMITS),
]
MaxPplIncrease = Annotated[
    str | None,
    typer.Option(
        metavar="GROWTH",
        help="Maximum increase of the perplexity: `0.5`, or `1%` of FP32's.",
        rich_help_panel=panels.LIMITS,
    ),
]
MaxRam = Annotated[
    str | None,
    typer.Option(
        metavar="BYTES",
        help="Maximum RAM of the weights after loading, e.g. `300MB`; with --context also of the KV cache.",
        rich_help_panel=panels.LIMITS,
    ),
]
ContextOption = Annotated[
    int | None,
    typer.Option(
        "--context",
        metavar="TOKENS",
        help="Tokens that the KV cache is to hold: counts its RAM, and chooses how it is stored.",
        rich_help_panel=panels.LIMITS,
    ),
]
MaxDecodeMs = Annotated[
    float | None,
    typer.Option(
        metavar="MS",
        help="Maximum milliseconds per decoded token; needs `qplan profile`.",
        rich_help_panel=panels.LIMITS,
    ),
]
MaxPrefillMs = Annotated[
    float | None,
    typer.Option(
        metavar="MS",
        help="Maximum milliseconds for the profile's prompt; needs `qplan profile`.",
        rich_help_panel=panels.LIMITS,
    ),
]
ObjectiveOption = Annotated[
    Objective,
    typer.Option(
        metavar="OBJECTIVE",
        help="What to optimize: least `loss`, or `smallest` or `fastest` under a limit on the loss.",
        rich_help_panel=panels.LIMITS,
    ),
]
TargetOption = Annotated[
    str,
    typer.Option(
        metavar="TARGET",
        help=f"Where it will run: {', '.join(f'`{name}`' for name in target_names())}.",
        autocompletion=completion.targets,
        rich_help_panel=panels.ENGINE,
    ),
]
EngineOption = Annotated[
    str | None,
    typer.Option(
        metavar="VERSION",
        help="MNN version that the model must run on, e.g. `3.5.0`.",
        show_default="the plan's, else the installed",
        rich_help_panel=panels.ENGINE,
    ),
]
DynamicOptionChoice = Annotated[
    Literal["auto", DynamicOption],
    typer.Option(
        help="2 gives int8 activations a scale per block: more exact, slower. auto takes 2 where it pays.",
        rich_help_panel=panels.ENGINE,
    ),
]
KvOption = Annotated[
    Literal["auto", "float", "k8", "kv8", "ktq4", "tq4", "ktq3", "tq3"],
    typer.Option(
        metavar="MODE",
        help=f"How the KV cache is stored: {', '.join(f'`{mode}`' for mode in KV_MODES)}; auto is float, or under "
        "--max-ram what loses least.",
        rich_help_panel=panels.ENGINE,
    ),
]


def request_of(
    budgets: Sequence[str] | None,
    rules: Rules,
    *,
    objective: Objective = PlanRequest.objective,
    max_kl: float | None = None,
    max_ppl_increase: str | None = None,
    max_ram: str | None = None,
    context: int | None = None,
    kv: str = AUTO,
    max_decode_ms: float | None = None,
    max_prefill_ms: float | None = None,
) -> PlanRequest:
    """What is asked for, from options as typed; the default budget if nothing else is limited.

    Raises:
        InputError: an option that is not understood.
    """
    wanted = parse_budgets(budgets or ())
    if not wanted and objective == "loss" and (max_decode_ms, max_prefill_ms, max_ram) == (None,) * 3:
        wanted = PlanRequest.budgets
    return PlanRequest(
        budgets=wanted,
        objective=objective,
        max_kl=max_kl,
        max_ppl_increase=None if max_ppl_increase is None else Increase.parse(max_ppl_increase),
        max_decode_ms=max_decode_ms,
        max_prefill_ms=max_prefill_ms,
        max_ram=None if max_ram is None else Size.parse(max_ram, "--max-ram"),
        context=context,
        kv=None if kv == AUTO else KvMode(kv),
        rules=rules,
    )
