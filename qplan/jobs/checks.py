"""Checks that need no model: missing files, wrong patterns, a missing profile, limits that no plan satisfies.

Commands run them before they import torch, so that a typo costs a second and no export. Jobs run them again, for
callers from Python.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qplan.artifact import FULL, is_there
from qplan.calibration import check_text
from qplan.choosing.request import PlanRequest
from qplan.choosing.retarget import computable, retarget_rules, retarget_table
from qplan.choosing.sizes import run_fixed_bytes
from qplan.cost.file_bytes import FixedBytes
from qplan.errors import InputError
from qplan.jobs.options import AnalyzeOptions, EmitOptions, QuantizeOptions, check_least
from qplan.mnn.arm.home import require_arm
from qplan.mnn.build.exporter_source import find_exporter
from qplan.mnn.engines import EngineVersion
from qplan.mnn.files import CHECKSUMS_FILE, GRAPH_FILE
from qplan.model.door import check_source
from qplan.planner.rules import Rules
from qplan.run.calibration import CalibrationSet
from qplan.run.fold import check_model_there
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.plans import FoundPlan, run_of
from qplan.run.table import SensitivityTable
from qplan.scratch import Scratch
from qplan.settings import DynamicOption
from qplan.verify.ladder import LadderOptions

if TYPE_CHECKING:
    from qplan.choosing.planned import PlannedOn

MOST_POINTS = 1000
"""Most budgets of a frontier, a few minutes of solving."""


def check_analyze(options: AnalyzeOptions) -> None:
    """Refuse a model, a text or an exporter that is missing or cannot be used.

    Raises:
        InputError: about the first such input.
    """
    check_source(options.model)
    check_text(options.calib, "--calib")
    find_exporter(options.llmexport)


def check_quantize(options: QuantizeOptions) -> None:
    """Refuse what the analysis cannot use, and a place where no run or no model can be.

    Raises:
        InputError: about the first such input.
    """
    options.home.check_place()
    check_analyze(options.analysis)
    check_out(options.out_folder)


def check_out(out: Path) -> None:
    """Refuse to replace anything but a model that qplan built, and a place where nothing can be written.

    Raises:
        InputError: there is something else, or it cannot be written.
    """
    absolute = out.absolute()
    there = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
    if there != absolute:
        if not there.is_dir():
            msg = f"OUT {out} cannot be made: {there} is no folder; name another one"
            raise InputError(msg)
    elif not out.is_dir():
        msg = f"OUT {out} is no folder; name another one, which is made, or remove it"
        raise InputError(msg)
    elif any(out.iterdir()) and not all((out / name).is_file() for name in (CHECKSUMS_FILE, GRAPH_FILE)):
        other = "is a folder that holds something else than a model of qplan's"
        msg = f"OUT {out} {other}; name another one, which is made, or remove it"
        raise InputError(msg)
    place = there if there != absolute else absolute.parent
    try:
        Scratch(beside=place / out.name).remove()
    except OSError as error:
        if error.errno in FULL:  # told with the bytes that are needed, once they are known
            return
        msg = f"OUT {out} cannot be made: {place}: {error.strerror}; name another one"
        raise InputError(msg) from error


def check_ladder(options: LadderOptions) -> None:
    """Refuse a model, a text or an exporter that is missing or cannot be used, and sequences too long for the plan.

    Raises:
        InputError: about the first such input.
    """
    check_source(options.model)
    check_text(options.text, "--text")
    find_exporter(options.llmexport)
    if options.plan is None:
        return
    context = SensitivityTable.read(run_of(options.plan).sensitivity).model.context
    if options.seq_len > context:
        msg = f"--seq-len {options.seq_len} is above the context of {context} tokens of {options.plan}; lower it"
        raise InputError(msg)


def check_profile(run: RunFolder, llmexport: Path | None) -> None:
    """Refuse a run without a table, or a missing exporter.

    Raises:
        InputError: about the first of these, or that the model is gone.
    """
    check_model_there(run, SensitivityTable.read(run.sensitivity).model)
    find_exporter(llmexport)


def check_frontier(run: RunFolder, rules: Rules, points: int) -> None:
    """Check rules against a run's table.

    Raises:
        InputError: there are too few or too many points, there is no analysis, or a pattern matches nothing.
    """
    check_least({"--points": (points, 2)})
    if points > MOST_POINTS:
        msg = f"--points {points}: must be at most {MOST_POINTS}; every point is solved by itself"
        raise InputError(msg)
    rules.check_patterns(SensitivityTable.read(run.sensitivity).model)


def check_emit(options: EmitOptions, run: RunFolder) -> None:
    """Check the options of an emit against its files and the run's table.

    Args:
        options: options of the emit.
        run: a finished analysis.

    Raises:
        InputError: a file does not exist, a pattern matches nothing, or a device profile is needed and missing.
        InfeasibleError: no plan of the table fits; the message gives the nearest value that does.
        StaleArtifactError: a given plan was made from other losses.
    """
    if options.text is not None:
        check_text(options.text, "--text")
    given = given_plan(options, run)
    options = options if given is None else for_engine_of(given, options)
    find_exporter(options.llmexport)
    target = options.target
    _check_proof(options)
    table = retarget_table(SensitivityTable.read(run.sensitivity), target)
    check_model_there(run, table.model)
    check_option(options.dynamic_option, table, run)
    rounding = table.conditions.rounding
    if options.tune in {"sequential", "full"} and not options.tunes(rounding):
        msg = (
            f"--tune {options.tune} fits integers by error feedback, and {run.folder} was analyzed with --rounding "
            f"{rounding}; leave it out, or analyze with --rounding auto"
        )
        raise InputError(msg)
    if options.tune == "scales" and not options.trains(rounding):
        msg = (
            f"--tune scales trains on the tokens that rounding is fitted to, and {run.folder} was analyzed with "
            f"--rounding {rounding}, which is fitted to none; leave it out, or analyze with --rounding auto"
        )
        raise InputError(msg)
    fixed = run_fixed_bytes(run, table.model, c4=target.c4)
    if given is not None:
        from qplan.choosing.planned import edited_plan  # noqa: PLC0415 - the solver takes longer than all else here

        edited_plan(given, table, target, fixed)
    else:
        usable = computable(table) if options.dynamic_option == 2 else table
        wanted = _with_cache(options, table)
        _check_request(replace(wanted, rules=retarget_rules(wanted.rules, target)), usable, run, fixed)
    seq_len = CalibrationSet.read(run.calibration).seq_len
    if options.tokens < seq_len:
        msg = f"--tokens {options.tokens} is below one sequence of {seq_len} tokens; raise it"
        raise InputError(msg)


def check_option(option: DynamicOption | None, table: SensitivityTable, run: RunFolder) -> None:
    """Refuse a setting of int8 activations where there are none.

    Raises:
        InputError: there are none.
    """
    if option == 2 and table.goal != "low":
        msg = f"--dynamic-option 2 has no effect under memory {table.goal}, which {run.folder} is for; leave it out"
        raise InputError(msg)


def given_plan(options: EmitOptions, run: RunFolder) -> PlannedOn | None:
    """The plan given with ``--plan`` and what it was made from; None without that option.

    Raises:
        InputError: there is no such file, or it is no plan of this run's model; the message gives the line.
        StaleArtifactError: the plan was made from other losses.
    """
    if options.plan is None:
        return None
    if not is_there(options.plan):
        msg = f"--plan {options.plan} does not exist; give a plan.json that 'qplan emit' wrote"
        raise InputError(msg)
    from qplan.choosing.planned import planned_on  # noqa: PLC0415 - the solver takes longer than all else here

    return planned_on(FoundPlan(options.plan, Plan.read(options.plan)), run)


def for_engine_of(given: PlannedOn, options: EmitOptions) -> EmitOptions:
    """The options, with the engine that a given plan was made for unless they name one."""
    if options.engine is not None or given.engine is None:
        return options
    return replace(options, engine=given.engine.engine)


def _check_proof(options: EmitOptions) -> None:
    """Refuse a proof on ARM without the engine for it, or of a model that is for another engine."""
    if not options.prove:
        return
    asked = f"--prove {','.join(options.prove)}"
    if options.target.engine != EngineVersion.installed():
        msg = (
            f"{asked} --engine {options.target.engine}: the ARM engine is of the installed version, "
            f"{EngineVersion.installed()}; leave one of them out"
        )
        raise InputError(msg)
    require_arm(options.prove, asked)


def _with_cache(options: EmitOptions, table: SensitivityTable) -> PlanRequest:
    """The request with the smallest KV cache that it may get."""
    if options.wanted.context is None:
        return options.wanted
    from qplan.jobs.cache import cache_menu, with_least_cache  # noqa: PLC0415 - transformers takes seconds

    return with_least_cache(options.wanted, cache_menu(options.wanted, table, options.target.engine))


def check_profiled(request: PlanRequest, run: RunFolder) -> None:
    """Refuse limits on times of a machine that was not profiled.

    Raises:
        InputError: names the option, and the command that profiles it.
    """
    for option, value in (("--max-decode-ms", request.max_decode_ms), ("--max-prefill-ms", request.max_prefill_ms)):
        if value is not None and not is_there(run.device):
            msg = (
                f"{option} {value:g} needs this machine's times, and {run.device} does not exist; run "
                f"'qplan profile --run {run.folder}' first"
            )
            raise InputError(msg)


def _check_request(request: PlanRequest, table: SensitivityTable, run: RunFolder, fixed: FixedBytes) -> None:
    request.rules.check_patterns(table.model)
    check_profiled(request, run)
    from qplan.choosing.feasible import check_feasible  # noqa: PLC0415 - the solver takes longer than all else here

    check_feasible(request, table, run, fixed)
