"""What ``--json`` says about results; docs/reference/json.md describes the keys, and a test holds them to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from qplan.formats import QuantFormat
from qplan.run.plan_folder import PlanFolder

if TYPE_CHECKING:  # --help and completion wait for no torch
    from pathlib import Path

    from qplan.jobs.emitted import Emitted
    from qplan.jobs.frontier import Swept
    from qplan.jobs.outlook import Outlook
    from qplan.jobs.plan import PlanAnswer
    from qplan.notes import Note
    from qplan.planner.diff import PlanDiff
    from qplan.planner.explain import Alternative, Explanation
    from qplan.run.plan import Plan
    from qplan.run.profile import DeviceProfile
    from qplan.run.table import SensitivityTable
    from qplan.run.verification import ArmRun, Check, Verification
    from qplan.verify.climb import Climbed

Document = dict[str, object]
"""A JSON object that leaves the program; modules do not pass it to each other."""


def analysis_document(table: SensitivityTable, path: Path) -> Document:
    """The document of ``qplan analyze``."""
    losses = table.kl(table.goal)
    return {
        "run": str(path.parent),
        "sensitivity": str(path),
        "model": table.model.source,
        "model_sha256": table.model.sha256,
        "memory": table.goal,
        "reference_nll_nats": table.reference_nll_nats,
        **_notes(table.notes),
        "tensors": [
            {
                "name": spec.name,
                "layer": spec.layer,
                "kind": spec.kind,
                "weights": spec.weights,
                "loss_nats": losses[spec.name],
            }
            for spec in table.model.planned
        ],
    }


def forecast_document(outlook: Outlook) -> Document:
    """The document of ``--dry-run``."""
    expected, machine = outlook.expected, outlook.machine
    return {
        "expected": {
            "seconds": expected.seconds,
            "memory_bytes": expected.memory_bytes,
            "disk_bytes": expected.disk_bytes,
            "temporary_bytes": expected.temporary_bytes,
            "stages": [
                {
                    "name": stage.name,
                    "seconds": stage.seconds,
                    "memory_bytes": stage.memory_bytes,
                    "disk_bytes": stage.disk_bytes,
                }
                for stage in expected.stages
            ],
        },
        "machine": asdict(machine) | {"bf16_pays": machine.bf16_pays},
    }


def emit_document(emitted: Emitted) -> Document:
    """The document of ``qplan emit``."""
    plan, files, verification = emitted.plan, PlanFolder(emitted.folder), emitted.verification
    return {
        "folder": str(emitted.folder),
        "plan": str(files.plan),
        "quant_config": str(files.quant_config),
        "model": str(files.model) if verification is not None else None,
        "verification": str(files.verification) if verification is not None else None,
        "report": str(files.report),
        "export_command": emitted.export_command,
        "export_problems": list(emitted.export_problems),
        **_plan_document(plan),
        "verified": None if verification is None else verification.passed,
        "measured": [] if verification is None else _measured(verification),
        "speeds": [] if verification is None else _speeds(verification),
        "checks": [] if verification is None else [_check(check) for check in verification.checks],
        "arm": [] if verification is None else [_arm_run(run) for run in verification.arm],
        "not_proved": [] if verification is None else [str(missing) for missing in verification.notes],
    }


def _speeds(verification: Verification) -> list[Document]:
    """RAM and speeds of every built model, with each ``dynamic_option`` that was timed."""
    return [
        {"name": model.name, **asdict(speed)}
        for model in verification.models
        for speed in (model.speed, model.other_speed)
        if speed is not None
    ]


def plan_document(found: PlanAnswer) -> Document:
    """The document of ``qplan plan``."""
    return {
        **_plan_document(found.plan),
        "uniform_nats": found.uniform_nats,
        "larger": [
            {
                "budget": larger.budget,
                "total_bytes": larger.files.total,
                "predicted_nats": larger.predicted_nats,
                "footprint": None if larger.footprint is None else asdict(larger.footprint),
            }
            for larger in found.larger
        ],
        "times": None if found.times is None else asdict(found.times),
        "seconds": found.seconds,
    }


def _plan_document(plan: Plan) -> Document:
    return {
        "budget": plan.budget,
        "budget_bytes": plan.budget_bytes,
        "total_bytes": plan.files.total,
        "mean_bits": plan.mean_bits,
        "predicted_nats": plan.predicted_nats,
        "memory": plan.memory,
        "dynamic_option": plan.dynamic_option,
        "formats": {name: fmt.name for name, fmt in plan.formats.items()},
        "limits": [asdict(limit) for limit in plan.limits],
        "rivals": [asdict(rival) for rival in plan.rivals],
        "parity": plan.parity,
        "footprint": None if plan.footprint is None else asdict(plan.footprint),
        "uniform": [asdict(point) for point in plan.uniform],
        "kv": None if plan.kv is None else asdict(plan.kv),
        **_notes(plan.notes),
    }


def _notes(notes: Sequence[Note]) -> Document:
    """Notes as sentences for people, and as codes for scripts."""
    return {"notes": [str(note) for note in notes], "note_codes": [asdict(note) for note in notes]}


def _check(check: Check) -> Document:
    return {
        "name": check.name,
        "passed": check.passed,
        "detail": check.detail,
        "promise": asdict(check.promise),
        "found": asdict(check.found),
    }


def _measured(verification: Verification) -> list[Document]:
    """Every run of every built model on the engine, as a flat list."""
    return [
        {
            "name": model.name,
            "total_bytes": model.files.total,
            "memory": run.memory,
            "path": run.path,
            "dynamic_option": run.dynamic_option,
            **asdict(run.accuracy),
        }
        for model in verification.models
        for run in model.runs
    ]


def _arm_run(run: ArmRun) -> Document:
    """One run on an emulated processor, as a flat object."""
    return {
        "processor": run.processor,
        "precision": run.precision,
        "path": run.path,
        **asdict(run.accuracy),
        "here_nats": run.here_nats,
        "predicted_nats": run.predicted_nats,
    }


def frontier_document(swept: Swept) -> Document:
    """The document of ``qplan frontier``."""
    return {
        "files": [str(path) for path in swept.files],
        "model": swept.table.model.source,
        "memory": swept.table.goal,
        "seconds": swept.frontier.seconds,
        "points": [asdict(point) | {"formats": _names(point.formats)} for point in swept.frontier.points],
        "named": [
            {"name": plan.name, "point": asdict(plan.point) | {"formats": _names(plan.point.formats)}}
            for plan in swept.frontier.named
        ],
        "uniform": [asdict(model) for model in swept.frontier.uniform],
        "measured": [asdict(model) for model in swept.measured],
    }


def profile_document(profile: DeviceProfile, path: Path) -> Document:
    """The document of ``qplan profile``: the file's path and its fields."""
    return {"device": str(path), **asdict(profile)}


def explain_document(plan: Path, explanations: Sequence[Explanation]) -> Document:
    """The document of ``qplan explain``."""
    return {
        "plan": str(plan),
        "price_nats_per_byte": explanations[0].price_nats_per_byte,
        "other_prices": dict(explanations[0].other_prices),
        "tensors": [
            {
                "name": explanation.tensor,
                "members": list(explanation.members),
                "format": explanation.format.name,
                "next_best": None if explanation.next_best is None else explanation.next_best.format.name,
                "sentence": explanation.sentence,
                "alternatives": [_alternative(option) for option in explanation.alternatives],
            }
            for explanation in explanations
        ],
    }


def _alternative(option: Alternative) -> Document:
    return asdict(option) | {"format": option.format.name}


def diff_document(changes: PlanDiff, plans: Mapping[str, Plan]) -> Document:
    """The document of ``qplan plan diff``.

    Args:
        changes: what differs between the two plans.
        plans: the two plans, by ``before`` and ``after``.
    """
    return {
        "comparable": changes.comparable,
        "total_bytes": changes.total_bytes,
        "predicted_nats": changes.predicted_nats,
        **{
            name: {
                "budget": plan.budget,
                "total_bytes": plan.files.total,
                "mean_bits": plan.mean_bits,
                "predicted_nats": plan.predicted_nats,
            }
            for name, plan in plans.items()
        },
        "changes": [
            asdict(change) | {"before": change.before.name, "after": change.after.name} for change in changes.changes
        ],
    }


def ladder_document(climbed: Climbed) -> Document:
    """The document of ``qplan ladder``."""
    return {
        "text": climbed.text,
        "reference_perplexity": climbed.reference_perplexity,
        "rungs": [asdict(rung) | {"computes": rung.computes, "holds": rung.holds} for rung in climbed.rungs],
        "broke": None if climbed.broke is None else asdict(climbed.broke),
    }


def _names(formats: Mapping[str, QuantFormat]) -> dict[str, str]:
    return {name: fmt.name for name, fmt in formats.items()}
