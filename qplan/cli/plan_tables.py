"""A plan that was solved and not built, as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from qplan.cli.view import View, table_view
from qplan.cost.footprint import Footprint
from qplan.jobs.plan import PlanAnswer, PredictedTimes
from qplan.report import notation
from qplan.report.felt import nearest_footprint
from qplan.run.plan import Plan


def solved_table(found: PlanAnswer) -> View:
    """The plan beside uniform formats and larger plans: what each takes and loses, all of it predicted."""
    plan = found.plan
    near = nearest_footprint(plan)
    against = "" if near is None else f"; times over those of uniform {near[0]}"
    view = table_view(
        ("", "files, MB", "RAM, MB", "decode", "prefill", "KL"),
        left=("",),
        heading=f"Predicted on {plan.target}{against}",
        note="RAM: of the weights; KL to FP32 in nats per token, uniform formats rounded like the plan."
        + ("\n+: what more bytes buy under the same rules." if found.larger else ""),
    )
    base = None if near is None else near[1]
    view.add_row("plan", *_cells(plan.files.total, plan.footprint, base, plan.predicted_nats), style="bold")
    for point in plan.uniform:
        nats = found.uniform_nats.get(point.name)
        view.add_row(f"uniform {point.name}", *_cells(point.total_bytes, point.footprint, base, nats))
    for larger in found.larger:
        more = f"+ --budget {larger.budget}"
        view.add_row(more, *_cells(larger.files.total, larger.footprint, base, larger.predicted_nats))
    return view


def _cells(total_bytes: int, taken: Footprint | None, base: Footprint | None, nats: float | None) -> list[str]:
    sizes = (total_bytes, None if taken is None else taken.ram_bytes)
    shares: tuple[float | None, ...] = (None, None)
    if taken is not None and base is not None:
        shares = (taken.decode / base.decode, taken.prefill / base.prefill)
    return [
        *(notation.MISSING if size is None else f"{size / 1e6:,.2f}" for size in sizes),
        *(notation.MISSING if share is None else f"{share:.2f}{notation.TIMES}" for share in shares),
        notation.loss(nats),
    ]


def limits_told(plan: Plan) -> Iterator[str]:
    """What a plan uses of the limits that were given; those of a budget's name are in the table."""
    for limit in plan.limits:
        if not limit.of:
            yield f"{limit.name}: {limit.predicted:.4g} of {limit.limit:.4g} {limit.unit}"


def times_line(times: PredictedTimes) -> str:
    """Speeds by the device profile."""
    prefill, decode = 1e3 * times.prompt_tokens / times.prefill_ms, 1e3 / times.decode_ms
    return (
        f"On {times.machine} with {times.threads} thread(s), by its profile: prefill {notation.speed(prefill)} "
        f"tokens/s, decode {notation.speed(decode)} tokens/s"
    )
