"""From a model to an MNN folder that runs: how thorough the analysis is to be, and the folder that is given out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from qplan.artifact import is_there, new_folder
from qplan.choosing.feasible import check_smallest
from qplan.cost.file_bytes import estimate_fixed
from qplan.cost.work import spell_time
from qplan.folding.train import TooFewTokensError
from qplan.jobs.analyze import run_analyze
from qplan.jobs.checks import check_out, check_quantize
from qplan.jobs.emit import run_emit
from qplan.jobs.emitted import Emitted
from qplan.jobs.expect import expect_analysis
from qplan.jobs.model_context import check_context
from qplan.jobs.options import AnalyzeOptions, QuantizeOptions
from qplan.model.outline import outline
from qplan.planner.budget import Budget
from qplan.run.fold import inputs_of
from qplan.run.folder import RunFolder
from qplan.run.journal import begun_with
from qplan.run.plan_folder import PlanFolder
from qplan.run.table import SensitivityTable
from qplan.scratch import remove_leftovers_told
from qplan.sensitivity.menu import resolve_menu
from qplan.settings import FOLDINGS, Effort, Progress, Say

PATIENCE_S = 20 * 60.0
"""Longest analysis that is expected to be waited for, where nothing says how thorough it is to be."""

_LINKED_BYTES = 1 << 20
"""Files from this size on take no room twice where the file system allows; smaller ones, such as settings, are for
people to change."""


@dataclass(frozen=True)
class ChosenEffort:
    """How thorough an analysis is, and why."""

    options: AnalyzeOptions
    told: str
    """For people."""


def choose_effort(options: AnalyzeOptions, run: RunFolder) -> ChosenEffort:
    """The default effort where it is expected to end within `PATIENCE_S` on this machine, and else the quick one.

    Args:
        options: of the analysis, with the default effort.
        run: where it writes.

    Raises:
        InputError: the model cannot be planned.
        StaleArtifactError: the run was begun with other options.
    """
    outlook = expect_analysis(options, run)
    seconds = 0.0 if outlook is None else outlook.expected.seconds
    if seconds <= PATIENCE_S:
        return ChosenEffort(options, f"effort default: about {spell_time(seconds)} of analysis expected")
    quick = replace(options, effort="quick")
    shorter = expect_analysis(quick, run)
    takes = "" if shorter is None else f": about {spell_time(shorter.expected.seconds)} of analysis expected"
    told = f"effort quick{takes}, where --effort default takes about {spell_time(seconds)}"
    return ChosenEffort(quick, told)


def choose_fold(options: AnalyzeOptions, run: RunFolder, budgets: Sequence[Budget]) -> AnalyzeOptions:
    """Trained folds for a budget of 8 bits, if even the quick effort is then expected to end within `PATIENCE_S`.

    A run that was begun goes on with the folds that it has.

    Args:
        options: of the analysis.
        run: where it writes.
        budgets: what is to be planned for.
    """
    if not options.restart and (is_there(run.fold_training) or is_there(run.fold) or is_there(run.journal)):
        known = begun_with(run.journal).get("fold", "trained" if is_there(run.fold_training) else None)
        known = known or inputs_of(run.fold).get("fold", options.fold)
        return replace(options, fold=next((fold for fold in FOLDINGS if fold == known), options.fold))
    trained = replace(options, fold="trained")
    if any(budget.text != "int8" for budget in budgets) or options.memory != "low":
        return options
    outlook = expect_analysis(replace(trained, effort="quick"), run)
    fits = outlook is not None and not outlook.asked.streamed and outlook.expected.seconds <= PATIENCE_S
    return trained if fits else options


@dataclass(frozen=True)
class Quantized:
    """What came of a quantization."""

    home: RunFolder
    effort: Effort
    """How thorough the analysis was."""
    emitted: Emitted
    out: Path
    """The MNN folder that was given out."""


@dataclass(frozen=True)
class Audience:
    """Who is told what."""

    say: Say
    """Takes the few lines that everybody gets."""
    steps: Say | None
    """Takes a line about each step; None where nobody asked for them."""
    bar: Callable[[str], AbstractContextManager[Progress]]
    """Opens the progress of one of the two halves, by its name."""
    analyzed: Callable[[AnalyzeOptions, SensitivityTable, RunFolder], None] | None = None
    """Takes what the first half found."""


def run_quantize(options: QuantizeOptions, audience: Audience, command: str) -> Quantized:
    """Analyze, plan, build and prove a model, and give it out; goes on where an earlier run of the same was ended.

    Args:
        options: what was asked for.
        audience: who is told what.
        command: the command line, for the report.

    Raises:
        InputError: a model, a text, an option or a place cannot be used.
        InfeasibleError: no plan fits the budget.
        StaleArtifactError: the run folder holds results of other inputs.
        ToolError: exporter, converter or engine failed.
        VerificationError: the export of this architecture is wrong.
        StorageError: the disk is full.
    """
    check_quantize(options)
    home, analysis = options.home, options.analysis
    _check_budget(options)
    remove_leftovers_told(home.folder, audience.say, deep=True)
    analysis = choose_fold(analysis, home, options.wanted.budgets)
    if options.effort is None:
        chosen = choose_effort(analysis, home)
        analysis = chosen.options
        audience.say(chosen.told)
    if audience.steps is None:  # with all steps, the analysis tells it
        for told in check_context(analysis).notes:
            audience.say(str(told))
    steps = audience.steps or _ignore
    with audience.bar("1 of 2, analyzing") as progress:
        table = _analyzed(analysis, home, steps, progress)
    if audience.analyzed is not None:
        audience.analyzed(analysis, table, home)
    with audience.bar("2 of 2, planning and building") as progress:
        emitted = run_emit(options.emission, home, steps, progress, command)
    out = options.out_folder
    give_out(PlanFolder(emitted.folder).model, out)
    return Quantized(home, analysis.effort, emitted, out)


def _analyzed(options: AnalyzeOptions, run: RunFolder, say: Say, progress: Progress) -> SensitivityTable:
    """Analyze; where the text is too short to train folds, with those that are fitted place by place."""
    try:
        return run_analyze(options, run, say, progress)
    except TooFewTokensError:
        say("the calibration text is too short to train folds: they are fitted place by place")
        return run_analyze(replace(options, fold="auto"), run, say, progress)


def _check_budget(options: QuantizeOptions) -> None:
    """Refuse a budget that is too small for the model, before it is analyzed for hours.

    Raises:
        InputError: the model cannot be planned.
        InfeasibleError: names the smallest budget that is not.
    """
    card = outline(options.model).card
    formats = options.analysis.formats
    menu = dict(resolve_menu(card, formats)[0])
    if card.embedding is not None:
        menu[card.embedding.name] = tuple(card.embedding_formats(formats))
    check_smallest(options.wanted, card, menu, estimate_fixed(card))


def _ignore(_line: str) -> None:
    """Takes the lines about steps that nobody asked for."""


def give_out(model: Path, out: Path) -> None:
    """Make ``out`` a copy of a built model. Large files are links to the same bytes where that is possible.

    Raises:
        InputError: there is something else, or it cannot be written.
        StorageError: the disk is full.
    """
    check_out(out)
    with new_folder(out, replace=True) as draft:
        for path in sorted(path for path in model.iterdir() if path.is_file()):
            if path.stat().st_size >= _LINKED_BYTES:
                with suppress(OSError):  # on another file system, or on one without links
                    os.link(path, draft / path.name)
                    continue
            shutil.copy2(path, draft / path.name)
