"""A plan that was solved and not built, as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from qplan.cli.view import View, table_view
from qplan.cost.footprint import Footprint
from qplan.jobs.plan import PredictedTimes
from qplan.report import notation
from qplan.report.felt import nearest_footprint
from qplan.run.plan import Plan


def predicted_table(plan: Plan, uniform_nats: Mapping[str, float] | None = None, larger: Sequence[Plan] = ()) -> View:
    """The plan beside uniform formats and larger plans: what each takes and loses, all of it predicted.

    Args:
        plan: the plan.
        uniform_nats: predicted losses by name of the format, rounded like the plan; None where nobody asked.
        larger: plans of more bytes.
    """
    near = nearest_footprint(plan)
    against = "" if near is None else f"; times over those of uniform {near[0]}"
    notes = ["RAM: of the weights; KL to FP32 in nats per token."]
    if uniform_nats:
        notes.append("Uniform formats are rounded like the plan.")
    if larger:
        notes.append(f"+: what more bytes buy under the same rules and dynamic_option {plan.dynamic_option}.")
    view = table_view(
        ("", "files, MB", "RAM, MB", "decode", "prefill", "KL"),
        left=("",),
        heading=f"Predicted on {plan.target}{against}",
        note="\n".join(notes),
    )
    base = None if near is None else near[1]
    view.add_row("plan", *_cells(plan.files.total, plan.footprint, base, plan.predicted_nats), style="bold")
    for point in plan.uniform:
        nats = (uniform_nats or {}).get(point.name, point.predicted_nats)
        view.add_row(f"uniform {point.name}", *_cells(point.total_bytes, point.footprint, base, nats))
    for one in larger:
        view.add_row(f"+ --budget {one.budget}", *_cells(one.files.total, one.footprint, base, one.predicted_nats))
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
