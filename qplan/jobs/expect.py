"""What an analysis is going to take, before anything is loaded."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISREG

import torch

from qplan.cost.expected import Expected
from qplan.cost.free import most_memory
from qplan.cost.one_pass import OnePassCost, OnePassOptions
from qplan.cost.shape import Shape
from qplan.cost.work import REFERENCE, Machine
from qplan.folding.train import fold_schedule
from qplan.jobs.one_pass import DRAWN, WITNESS_TOKENS
from qplan.jobs.options import MEASURED_PASSES, AnalyzeOptions, sequences_per_pass
from qplan.jobs.outlook import Outlook, on_this_machine
from qplan.model.half_products import half_products_pay
from qplan.model.outline import outline
from qplan.roundings import needs_tokens
from qplan.run.folder import RunFolder
from qplan.run.journal import begun_with, check_begun
from qplan.sensitivity.analysis import EMBEDDING_TOKENS
from qplan.sensitivity.views import HEAD_SHARE

FEWER = "fewer --samples or --fit-tokens"
"""What lets an analysis do with less memory."""


@dataclass(frozen=True, kw_only=True)
class AnalysisOutlook(Outlook):
    """What is expected of an analysis."""

    asked: OnePassOptions
    """What it was computed for: whether the model is streamed, and how many sequences go through it at a time."""


def expect_analysis(options: AnalyzeOptions, run: RunFolder, *, measure: bool = False) -> AnalysisOutlook | None:
    """What an analysis in one pass there and back takes; None for another one, which nothing is known about.

    Args:
        options: of the analysis.
        run: where it writes.
        measure: measure this machine, which takes a few seconds, even where there is little to do.

    Raises:
        InputError: the model cannot be planned.
        StaleArtifactError: the run was begun with other options.
    """
    if options.effort == "thorough" or options.mode is not None or options.device != "cpu":
        return None
    shape = outline(options.model)
    if not options.restart:
        check_begun(run.journal, _known(options))
    begun = begun_batch_size(options, run)
    given = options.batch_size or begun
    wanted = replace(options, batch_size=given)
    asked = _fitting(shape, one_pass_options(wanted, shape), most_memory(options.max_memory_bytes))
    if given is not None:
        asked = replace(asked, batch_size=given)
    fewer = (
        "a smaller --batch-size" if options.batch_size else f"--restart with a --batch-size below this run's {begun}"
    )
    remedies = (FEWER, fewer) if given is not None and given > 1 else (FEWER,)
    # a batch size that was not given is the least that there is, where even that is too much
    kept_bytes = held_by(run.rounding, run.folded)

    def outlook(machine: Machine) -> AnalysisOutlook:
        stages = OnePassCost(shape, asked, machine).stages()
        expected = Expected(stages)
        return AnalysisOutlook(expected, machine, options.max_memory_bytes, remedies, kept_bytes, asked=asked)

    return on_this_machine(outlook, run, measure=measure)


def _known(options: AnalyzeOptions) -> dict[str, object]:
    """What a journal's fingerprint says of an analysis in one pass there and back, from its options alone."""
    known: dict[str, object] = {
        "formats": [fmt.name for fmt in options.formats],
        "memory": options.memory,
        "samples": options.samples,
        "dynamic option": options.dynamic_option,
        "rounding": options.rounding,
        "output features drawn": DRAWN,
        "fold": options.fold,
    }
    return known | ({} if options.batch_size is None else {"batch_size": options.batch_size})


def held_by(*folders: Path) -> int:
    """Bytes of all files in some folders."""
    total = 0
    for path in (path for folder in folders for path in folder.rglob("*")):
        with suppress(FileNotFoundError):  # a run that goes on removes what it is done with
            found = path.stat()
            total += found.st_size if S_ISREG(found.st_mode) else 0
    return total


def begun_batch_size(options: AnalyzeOptions, run: RunFolder) -> int | None:
    """Sequences per pass of the analysis that the run folder holds and this one goes on with; None if there is none.

    What is free, and so how many fit, changes from run to run, and losses are journaled by batch.
    """
    found = None if options.restart else begun_with(run.journal).get("batch_size")
    return found if isinstance(found, int) and found > 0 else None


def _fitting(shape: Shape, asked: OnePassOptions, limit: float) -> OnePassOptions:
    """The same, with the model streamed if it must be, and fewer sequences at a time if even that takes too much."""
    ways = [asked, replace(asked, streamed=True)]
    ways += [replace(asked, streamed=True, batch_size=size) for size in range(asked.batch_size - 1, 0, -1)]
    costs = ((way, Expected(OnePassCost(shape, way, REFERENCE).stages()).memory_bytes) for way in ways)
    return next((way for way, memory in costs if memory <= limit), ways[-1])


def one_pass_options(options: AnalyzeOptions, shape: Shape) -> OnePassOptions:
    """What the work depends on."""
    context = min(shape.card.context, options.max_context or shape.card.context)
    seq_len = min(options.sequence(context), context)
    most = options.most_fit_tokens(shape.card.parameters)
    fit = most // seq_len * seq_len if needs_tokens(options.rounding) else 0
    schedule = fold_schedule(most // seq_len, options.samples, seq_len) if options.fold == "trained" else None
    return OnePassOptions(
        judged=options.samples * seq_len,
        fit=fit,
        witnesses=max(1, min(WITNESS_TOKENS, most) // seq_len) * seq_len,
        seq_len=seq_len,
        batch_size=options.batch_size or sequences_per_pass(shape.card, seq_len),
        formats=options.formats,
        drawn=DRAWN,
        head_drawn=HEAD_SHARE * DRAWN,
        chosen=options.rounding == "auto",
        fold=options.fold == "auto",
        training=None if schedule is None else schedule.tokens,
        training_steps=0 if schedule is None else schedule.steps,
        half=half_products_pay(torch.device(options.device)),
        embedding=EMBEDDING_TOKENS,
        measured_passes=MEASURED_PASSES if options.effort == "default" else 0.0,
    )
