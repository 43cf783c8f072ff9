"""Artifacts as tidy pandas frames: one observation per row, units in the names of columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd

from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.report.grid import loss_table
from qplan.run.frontier import Frontier, MeasuredModel
from qplan.run.metrics import METRICS, values_of
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.run.token_losses import Losses, TokenLosses
from qplan.run.verification import BuiltModel, Speed
from qplan.run.verified import VerifiedPlan
from qplan.tensors import TensorSpec

_BEFORE = 6
"""Tokens shown before the one in question."""

INTERVAL_SIGMAS = 1.96
"""Half-width of a 95 % interval around a loss, in standard errors: holds the mean over all text in 95 of 100 cases."""

VERIFICATION_COLUMNS = [
    "budget",
    "model",
    "memory",
    "path",
    "dynamic_option",
    "ships",
    "total_bytes",
    "predicted_nats",
    "emulated_nats",
    "measured_nats",
    "kl_p99_nats",
    "top1",
    "perplexity",
    "tokens",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "ram_bytes",
]


def format_frame(table: SensitivityTable, fmt: str) -> pd.DataFrame:
    """Rows of `sensitivity_frame` of one of the run's formats, under the table's memory setting: one per tensor.

    Tensors whose width forces another block have the format that stands in for it.

    Raises:
        InputError: the format was not measured; says which were.
    """
    losses = loss_table(table)
    if fmt not in losses.formats:
        msg = f"format {fmt!r} was not measured; choose from {', '.join(losses.formats)}"
        raise InputError(msg)
    stored = {name: losses.stored_as.get((name, fmt), fmt) for name in losses.losses}
    frame = sensitivity_frame(table)
    frame = frame[frame["memory"] == table.goal]
    return frame[frame["format"] == frame["tensor"].map(stored)].reset_index(drop=True)


def sensitivity_frame(table: SensitivityTable) -> pd.DataFrame:
    """One row per tensor, format and memory setting.

    Columns: ``tensor, layer, kind, role, format, bits, block, memory, loss_nats`` (mean KL per token with this one
    tensor changed), ``stderr_nats`` (0 where one batch is all there is), ``low_nats, high_nats`` (95 % interval, at
    least 0), ``source`` (``measured`` or ``gradient``), ``bytes`` (of its record), ``bits_per_weight`` (scales
    included), ``weights``, and the other metrics of `qplan.run.metrics.Metrics`, missing where they are not known:
    ``kl_p99_nats, top1, nll_nats, sqnr_db, cosine``.
    """
    rows = []
    for memory in table.memories:
        losses = table.losses(memory)
        for spec in table.model.planned:
            for fmt in table.formats_of(spec.name):
                loss = losses[spec.name].get(fmt.name)
                if loss is None:
                    continue
                reach = INTERVAL_SIGMAS * loss.stderr_nats
                rows.append(
                    _place(spec)
                    | _stored(spec, fmt)
                    | {
                        "memory": memory,
                        "loss_nats": loss.kl_nats,
                        "stderr_nats": loss.stderr_nats,
                        "low_nats": max(0.0, loss.kl_nats - reach),
                        "high_nats": loss.kl_nats + reach,
                        "source": loss.source,
                        "weights": spec.weights,
                    }
                    | {name: value for name, value in values_of(loss).items() if name != "kl_nats"}
                )
    return _typed(rows, floats=[name for name in METRICS if name != "kl_nats"])


def plan_frame(plan: Plan, table: SensitivityTable) -> pd.DataFrame:
    """One row per tensor of a plan, in order of execution.

    Columns: ``tensor, layer, kind, role, format, bits, block, bytes, bits_per_weight, weights, loss_nats`` (of this
    tensor alone), ``loss_share, bytes_share`` (of the sum over the plan's tensors).
    """
    total_nats = sum(tensor.loss_nats for tensor in plan.tensors)
    total_bytes = sum(tensor.bytes for tensor in plan.tensors)
    rows = []
    for tensor in plan.tensors:
        spec = table.model.tensor(tensor.name)
        rows.append(
            _place(spec)
            | _stored(spec, tensor.format)
            | {
                "weights": spec.weights,
                "loss_nats": tensor.loss_nats,
                "loss_share": tensor.loss_nats / total_nats if total_nats else 0.0,
                "bytes_share": tensor.bytes / total_bytes,
            }
        )
    return _typed(rows)


def frontier_frame(frontier: Frontier, measured: Iterable[MeasuredModel], specs: Sequence[TensorSpec]) -> pd.DataFrame:
    """Plans and uniform models by size.

    Columns: ``model`` (``plan`` or ``uniform``), ``name`` (of a uniform model, or the budget of an emitted plan),
    ``total_bytes`` (all files that ship), ``bits_per_weight``, ``mean_bits`` (of weights, without scales),
    ``predicted_nats, measured_nats`` (KL of the whole model per token; the latter on the engine, where uniform models
    are MNN's, rounded to nearest), ``gap`` (relative, unproved by the solver), ``knee``.
    """
    weights = {spec.name: spec.weights for spec in specs}

    def mean_bits(formats: Mapping[str, QuantFormat]) -> float:
        return sum(fmt.bits * weights[name] for name, fmt in formats.items()) / sum(weights.values())

    rows: list[dict[str, object]] = [
        {
            "model": "plan",
            "name": "",
            "total_bytes": point.total_bytes,
            "bits_per_weight": point.bpw,
            "mean_bits": mean_bits(point.formats),
            "predicted_nats": point.joint_nats,
            "gap": point.gap,
            "knee": point.knee,
        }
        for point in frontier.points
    ]
    rows += [
        {"model": "uniform", "name": m.name, "total_bytes": m.total_bytes, "predicted_nats": m.joint_nats}
        for m in frontier.uniform
    ]
    rows += [
        {
            "model": "plan" if m.is_plan else "uniform",
            "name": m.name.removeprefix("plan "),
            "total_bytes": m.total_bytes,
            "measured_nats": m.kl_nats,
        }
        for m in measured
    ]
    columns = ["model", "name", "total_bytes", "bits_per_weight", "mean_bits", "predicted_nats", "measured_nats", "gap"]
    frame = pd.DataFrame(rows).reindex(columns=[*columns, "knee"])
    frame["knee"] = frame["knee"].eq(other=True)
    floats = columns[3:]
    frame[floats] = frame[floats].astype(float)
    return frame.sort_values(["total_bytes", "model"], ignore_index=True, kind="stable")


def verification_frame(verified: Iterable[VerifiedPlan]) -> pd.DataFrame:
    """One row per emitted budget, built model and setting of the engine.

    Columns: ``budget, model`` (``plan``, ``fp16``, ``int8``, ``int4``), ``memory, path`` (``prefill`` or ``decode``),
    ``dynamic_option, ships`` (whether the model ships with that option), ``total_bytes, predicted_nats`` (of the whole
    model, in the plan's memory setting, prefill), ``emulated_nats`` (torch with the same stored weights),
    ``measured_nats`` (KL on the engine per token), ``kl_p99_nats, top1, perplexity, tokens, prefill_tokens_per_s,
    decode_tokens_per_s, ram_bytes``.
    """
    rows: list[dict[str, object]] = []
    for found in verified:
        plan = found.plan
        predicted = {point.name.split()[0]: point.predicted_nats for point in plan.uniform}
        predicted["plan"] = plan.predicted_nats
        for model in found.verification.models:
            rows += _runs(found.name, model, predicted.get(model.name), plan.memory)
    frame = pd.DataFrame(rows, columns=VERIFICATION_COLUMNS)
    floats = ["predicted_nats", "emulated_nats", "prefill_tokens_per_s", "decode_tokens_per_s", "ram_bytes"]
    frame[floats] = frame[floats].astype(float)
    return frame


def checks_frame(verified: Iterable[VerifiedPlan]) -> pd.DataFrame:
    """One row per emitted budget and promise: ``budget, check, passed, detail``."""
    rows = [
        {"budget": found.name, "check": check.name, "passed": check.passed, "detail": check.detail}
        for found in verified
        for check in found.verification.checks
    ]
    return pd.DataFrame(rows, columns=["budget", "check", "passed", "detail"])


def token_frame(losses: TokenLosses) -> pd.DataFrame:
    """One row per token; see `qplan.explore.run.Run.tokens` for columns."""
    return pd.DataFrame(_tokens(losses.tokens, losses.kl_nats))


def _tokens(rows: Sequence[Sequence[str]], kl_nats: Mapping[str, Losses]) -> Iterator[dict[str, object]]:
    for sequence, row in enumerate(rows):
        for position, token in enumerate(row):
            before = "".join(row[max(0, position - _BEFORE) : position])
            losses = {f"{memory}_nats": float(values[sequence, position]) for memory, values in kl_nats.items()}
            yield {"sequence": sequence, "position": position, "before": before, "token": token} | losses


def _runs(budget: str, model: BuiltModel, predicted: float | None, memory: str) -> list[dict[str, object]]:
    speeds: dict[int, Speed] = {s.dynamic_option: s for s in (model.other_speed, model.speed) if s is not None}
    rows = []
    for run in model.runs:
        ships = run.dynamic_option == model.dynamic_option
        plain = ships and run.path == "prefill"
        speed = speeds.get(run.dynamic_option) if run.memory == "low" else None
        rows.append(
            {
                "budget": budget,
                "model": model.name,
                "memory": run.memory,
                "path": run.path,
                "dynamic_option": run.dynamic_option,
                "ships": ships,
                "total_bytes": model.files.total,
                "predicted_nats": predicted if plain and run.memory == memory else None,
                "emulated_nats": model.emulated_nats.get(run.memory) if plain else None,
                "measured_nats": run.accuracy.kl_nats,
                "kl_p99_nats": run.accuracy.kl_p99_nats,
                "top1": run.accuracy.top1,
                "perplexity": run.accuracy.perplexity,
                "tokens": run.accuracy.tokens,
                "prefill_tokens_per_s": None if speed is None else speed.prefill_tokens_per_s,
                "decode_tokens_per_s": None if speed is None else speed.decode_tokens_per_s,
                "ram_bytes": None if speed is None else speed.ram_bytes,
            }
        )
    return rows


def _place(spec: TensorSpec) -> dict[str, object]:
    return {"tensor": spec.name, "layer": spec.layer, "kind": spec.kind, "role": spec.role.value}


def _stored(spec: TensorSpec, fmt: QuantFormat) -> dict[str, object]:
    size = spec.bytes_in(fmt)
    return {
        "format": fmt.name,
        "bits": fmt.bits,
        "block": fmt.block,
        "bytes": size,
        "bits_per_weight": 8 * size / spec.weights,
    }


def _typed(rows: Sequence[Mapping[str, object]], floats: Sequence[str] = ()) -> pd.DataFrame:
    """A frame in which ``layer`` is a whole number, missing for the head."""
    frame = pd.DataFrame(rows)
    frame["layer"] = frame["layer"].astype("Int64")
    for name in floats:
        frame[name] = frame[name].astype(float)
    return frame
