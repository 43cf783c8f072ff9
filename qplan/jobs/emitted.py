"""What an emit leaves besides a built model: the plan, and how llmexport makes the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qplan.choosing.parity import RELATIVE_DECODE, RELATIVE_PREFILL
from qplan.choosing.planned import PlannedOn
from qplan.errors import VerificationError
from qplan.formats import FP16, QuantFormat
from qplan.jobs.options import EmitOptions
from qplan.mnn.build.exporter_source import Exporter
from qplan.mnn.build.quant_config import QuantConfig, embedding_problem, export_command
from qplan.mnn.engines import EngineTarget, EngineVersion
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.plan_folder import PLAN_FILE, PlanFolder
from qplan.run.table import SensitivityTable
from qplan.run.verification import Verification
from qplan.settings import Say


@dataclass(frozen=True)
class Emitted:
    """Result of an emit."""

    folder: Path
    plan: Plan
    verification: Verification | None
    export_command: str
    """Command line of llmexport for the same plan."""
    export_problems: tuple[str, ...]
    """What that exporter cannot make of it."""


def check_promises(emitted: Emitted) -> None:
    """End with an error if a promise was not kept.

    Raises:
        VerificationError: names those promises, and the report.
    """
    if emitted.verification is not None and not emitted.verification.passed:
        failed = [check.name for check in emitted.verification.checks if not check.passed]
        kept = "1 promise was" if len(failed) == 1 else f"{len(failed)} promises were"
        msg = f"{kept} not kept: {'; '.join(failed)}. See {PlanFolder(emitted.folder).report}{_if_slow(emitted)}"
        raise VerificationError(msg)


def _if_slow(emitted: Emitted) -> str:
    """What to do about a plan that is slower than it was made to be; empty for one that is not."""
    plan, verification = emitted.plan, emitted.verification
    slow = {"decode-of-uniform", "prefill-of-uniform"}
    by_data = any(limit.name in {RELATIVE_DECODE, RELATIVE_PREFILL} for limit in plan.limits)
    if verification is None or plan.dynamic_option or not by_data or not verification.failed & slow:
        return ""
    return (
        f". Plans are made with relative speeds of another machine: qplan profile --run {emitted.folder.parent} times "
        f"this one, and the same qplan emit plans with what it finds (--parity files promises no speed)"
    )


@dataclass(frozen=True)
class Exportable:
    """How to make the same plan with llmexport."""

    command: str
    problems: tuple[str, ...]
    """What that exporter cannot make of it."""


def folder_of(given: PlannedOn | None, label: str, run: RunFolder, engine: str | None) -> Path:
    """The folder to write to: a given plan's own folder in the run, or one named after its file or the budget.

    If a given plan was made for another engine, its folder is left alone, and this one gets a new one.

    Args:
        given: the plan given with ``--plan``; None if one is made.
        label: of what is asked for, such as a budget.
        run: the run.
        engine: version that the plan is for; None for the installed one.
    """
    if given is None:
        return run.budget_for(label, engine)
    inside = given.path.resolve().parent
    own = given.path.name == PLAN_FILE and inside.parent == run.folder.resolve()
    if own and given.plan.engine == engine:
        return inside
    name = inside.name if own else given.path.stem
    return run.budget_for(name.removesuffix(f"-mnn-{given.plan.engine}"), engine)


def ops_of(plan: Plan) -> dict[str, QuantFormat]:
    """Format by op name."""
    return {tensor.op_name: tensor.format for tensor in plan.tensors if not tensor.is_embedding}


def write_config(
    config: QuantConfig,
    plan: Plan,
    files: PlanFolder,
    *,
    exporter: Exporter,
    model: Path,
    unfolded: bool,
    target: EngineTarget,
    table: SensitivityTable,
) -> Exportable:
    """Write ``quant_config.json``, and say how llmexport makes the plan and what it cannot make of it.

    Args:
        config: the plan as llmexport reads it.
        plan: the plan.
        files: its folder.
        exporter: the copy of llmexport.
        model: the Hugging Face folder that it converts.
        unfolded: whether that is the model before folding, though the plan is of the folded one.
        target: what the engine needs.
        table: that the plan was made from.
    """
    config.write(files.quant_config)
    formats = ops_of(plan)
    embedding = next((tensor.format for tensor in plan.tensors if tensor.is_embedding), FP16)
    command = export_command(exporter, model, files.llmexport, files.quant_config, formats, embedding=embedding)
    problems = (*config.problems, *embedding_problem(exporter, formats, embedding))
    if not target.c4:
        problems += (_WITHOUT_C4.format(target.engine),)
    if any(known.code == "context-limited" for known in table.notes):
        problems += (_WITHOUT_CONTEXT.format(table.model.context),)
    if unfolded:
        problems += (f"llmexport gets the unfolded {model.name}: it cannot undo a folded tied head's lookups",)
    return Exportable(command, problems)


def say_if_moved(given: PlannedOn, options: EmitOptions, say: Say) -> None:
    """Say so if a given plan is built for another engine than it was made for."""
    made_for = EngineVersion.installed() if given.engine is None else given.engine.engine
    if options.target.engine != made_for:
        say(f"{given.path} was made for engine {made_for}: building its formats as {options.target.engine} reads them")


_WITHOUT_CONTEXT = (
    "llmexport writes no context length: hold every request to {:,} tokens yourself. The built model says so, and "
    "qplan.Engine holds to it"
)

_WITHOUT_C4 = (
    "llmexport fuses attention for packed channels, which engine {} crashes on. The built model avoids that; with "
    "llmexport, use an MNN checkout and --disable_transformer_c4"
)
