"""Checks plans against the model, and recomputes the numbers of plans that people edited."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from qplan.card import ModelCard
from qplan.cost.file_bytes import FixedBytes, file_bytes
from qplan.cost.footprint import footprint
from qplan.errors import InputError, StaleArtifactError
from qplan.formats import INT_BITS, QuantFormat
from qplan.notes import note
from qplan.planner.planning import planned_tensors, predicted_nats
from qplan.planner.rules import Rules
from qplan.run.decode import JsonText
from qplan.run.plan import Plan, PlannedTensor, SolverReport
from qplan.run.table import SensitivityTable
from qplan.tensors import TensorSpec

EDITED = "edited"
"""Solver status of a plan that was edited by hand."""


def validate_plan(plan: Plan, card: ModelCard, path: Path | None = None) -> None:
    """Check that a plan gives every tensor of a model one format that the engine computes correctly.

    Args:
        plan: as read.
        card: the model it is for.
        path: the plan's file, for line numbers in errors.

    Raises:
        InputError: an unknown, missing or repeated tensor, a tensor of another shape, or an illegal format.
        StaleArtifactError: the plan was made for a model with other weights.
    """
    specs = {spec.name: spec for spec in card.planned}
    seen: set[str] = set()
    for index, tensor in enumerate(plan.tensors):
        wrong = _defect(tensor, specs, seen)
        if wrong is not None:
            field, problem = wrong
            raise _error(path, problem, index, field)
        seen.add(tensor.name)
    if missing := [name for name in specs if name not in seen]:
        where = str(path) if path is not None else "the plan"
        if card.embedding is not None and missing == [card.embedding.name]:
            msg = (
                f"{where} lacks {missing[0]}: plans that were made before embeddings were planned have 16 bits there; "
                "make it again with 'qplan emit', or add the tensor with format fp16"
            )
            raise InputError(msg)
        msg = f"{where} lacks {missing[0]} ({len(missing)} of {len(specs)} tensors); add it with a format"
        raise InputError(msg)
    if plan.model_sha256 != card.sha256:
        msg = f"the plan was made for {plan.model} with other weights (sha256 differs); run 'qplan emit' on this model"
        raise StaleArtifactError(msg)


def recount(
    plan: Plan, table: SensitivityTable, fixed: FixedBytes, rules: Rules | None = None, path: Path | None = None
) -> Plan:
    """Recompute the bytes and losses of an edited plan from its formats.

    The budget is kept; the solver's proof is dropped. A plan whose numbers already match its formats is returned as is.

    Args:
        plan: as read.
        table: the losses.
        fixed: bytes that every plan ships.
        rules: which loss counts; None for those that the plan records.
        path: the plan's file, for line numbers in errors.

    Raises:
        InputError: a format that was not measured, or a plan that `validate_plan` refuses.
        StaleArtifactError: the plan was made for another model.
    """
    card = table.model
    validate_plan(plan, card, path)
    rules = rules or Rules.of(plan)
    table = rules.seen(table)
    losses = rules.losses(table)
    formats = plan.formats
    for index, (name, fmt) in enumerate(formats.items()):
        if fmt.name not in losses[name]:
            problem = f"{name}: {fmt} was not measured, only {', '.join(losses[name])}; analyze with it in --formats"
            raise _error(path, problem, index, "format")
    tensors, files = planned_tensors(table, formats), file_bytes(card, formats, fixed)
    if files == plan.files and all(map(partial(_is_as_made, table.kl(table.goal)), plan.tensors, tensors)):
        return plan
    objective = math.fsum(losses[name][fmt.name] for name, fmt in formats.items())
    unproved = SolverReport(status=EDITED, objective_nats=objective, bound_nats=0.0, gap=1.0, choices=0, seconds=0.0)
    plan = plan.untuned()
    edited = note("edited")
    if edited not in plan.notes:
        plan = plan.noted(edited)
    if files.total > plan.budget_bytes:
        plan = plan.noted(note("over-budget", total_bytes=files.total, budget_bytes=plan.budget_bytes))
    predicted = predicted_nats(tensors, table)
    plan = _recounted_footprint(plan, table, rules)
    return replace(plan, tensors=tensors, files=files, predicted_nats=predicted, solver=unproved)


def _is_as_made(losses: Mapping[str, Mapping[str, float]], stored: PlannedTensor, counted: PlannedTensor) -> bool:
    """Whether a tensor's numbers are those of its format; plans of before did not put losses in the order of widths."""
    own = losses[stored.name][stored.format.name]
    return stored in {counted, replace(counted, loss_nats=own)}


def _recounted_footprint(plan: Plan, table: SensitivityTable, rules: Rules) -> Plan:
    """The plan with RAM and relative times of its formats, and a note on what it takes beyond the uniform export.

    Limits were kept by the plan before it was edited, and say nothing of this one.
    """
    found = footprint(table.model, plan.formats, rules.target, table.goal)
    plan = replace(plan, footprint=found, limits=())
    rivals = {point.name: point.footprint for point in plan.uniform}
    rival = rivals.get(plan.budget.strip().lower())
    if plan.parity == "files" or found is None or rival is None:
        return plan
    shares = {
        "RAM": found.ram_bytes / rival.ram_bytes,
        "decode time": found.decode / rival.decode,
        "prefill time": found.prefill / rival.prefill,
    }
    more = {name: share for name, share in shares.items() if share > 1}
    return plan.noted(note("over-parity", uniform=plan.budget, shares=more)) if more else plan


def _error(path: Path | None, problem: str, index: int, field: str) -> InputError:
    """An error about one tensor of a plan, with its line number if the file is known."""
    if path is None:
        return InputError(f"plan, tensors[{index}].{field}: {problem}")
    return JsonText(str(path), path.read_text(encoding="utf-8")).error(problem, "tensors", index, field)


def _defect(tensor: PlannedTensor, specs: Mapping[str, TensorSpec], seen: set[str]) -> tuple[str, str] | None:
    """The first field of a planned tensor that does not fit the model, and why."""
    spec = specs.get(tensor.name)
    if spec is None:
        near = difflib.get_close_matches(tensor.name, specs, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return "name", f"the model has no tensor {tensor.name!r}{hint}"
    if tensor.name in seen:
        return "name", f"{tensor.name} is planned twice; remove one"
    if tensor.op_name != spec.op_name:
        return "op_name", f"{tensor.op_name!r} is not the op of {spec.name}, which is {spec.op_name!r}"
    if tensor.weights != spec.weights:
        return "weights", f"{tensor.weights} weights, but {spec.name} has {spec.weights}"
    return None if spec.allows(tensor.format) else ("format", _illegal(spec, tensor.format))


def _illegal(spec: TensorSpec, fmt: QuantFormat) -> str:
    blocks = [block for block in (0, 32, 64, 128) if block == 0 or spec.in_features % block == 0]
    if not fmt.divides(spec.in_features):
        return (
            f"{fmt}: blocks of {fmt.block} do not divide rows of {spec.in_features}; "
            f"use a block of {', '.join(map(str, blocks))} (0 is the whole row), e.g. int{fmt.bits}-b0"
        )
    whole_rows = [spec.resolve(QuantFormat(bits, 0)) for bits in INT_BITS]
    if spec.is_embedding:
        legal = [one.name for one in whole_rows if spec.allows(one)] + ["fp16"]
        return (
            f"{fmt} is not legal for {spec.name}: tokens are looked up in 4, 8 or 16 bits, with zero points and scales "
            f"of 32 bits; use {', '.join(legal)}"
        )
    legal = [f"int{one.bits}" for one in whole_rows if spec.allows(one)] + ["fp16"]
    why = "the engine decodes other widths of a tied embedding to garbage" if spec.tied else "the engine cannot"
    return f"{fmt} is not legal for {spec.name}: {why}; use {', '.join(legal)}"
