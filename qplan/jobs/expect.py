"""What an analysis is going to take, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qplan.artifact import free_bytes
from qplan.cost.expected import Expected
from qplan.cost.free import free_memory
from qplan.cost.one_pass import OnePassCost, OnePassOptions
from qplan.cost.shape import Shape
from qplan.cost.work import REFERENCE, Machine, spell_time
from qplan.jobs.machine import measure_machine
from qplan.jobs.one_pass import DRAWN, WITNESS_TOKENS
from qplan.jobs.options import MEASURED_PASSES, AnalyzeOptions, sequences_per_pass
from qplan.model.half_products import half_products_pay
from qplan.model.outline import outline
from qplan.roundings import needs_tokens
from qplan.run.folder import RunFolder
from qplan.run.journal import begun_with
from qplan.sensitivity.views import HEAD_SHARE
from qplan.settings import Say

FEWER = "fewer --samples or --fit-tokens"
MORE = "a machine with more memory"

LONG_S = 60.0
"""Seconds on the reference machine from which on it is worth measuring this one."""


@dataclass(frozen=True)
class Outlook:
    """What is expected, and of which machine."""

    expected: Expected
    machine: Machine
    asked: OnePassOptions
    """What it was computed for: whether the model is streamed, and how many sequences go through it at a time."""
    most_memory: int | None = None
    """The limit that was given."""
    remedies: tuple[str, ...] = (FEWER, MORE)
    """What lets the analysis do with less memory."""
    kept_bytes: int = 0
    """What the run folder holds already, of what the analysis would write or would remove before."""

    @property
    def is_long(self) -> bool:
        """Whether it is worth telling."""
        return self.expected.seconds >= LONG_S

    def check(self) -> None:
        """Refuse what this machine cannot hold.

        Raises:
            InputError: not enough memory.
            StorageError: not enough room on the disk.
        """
        machine = replace(self.machine, disk_bytes=self.machine.disk_bytes + self.kept_bytes)
        self.expected.check(machine, self.remedies, most_memory=self.most_memory)

    def tell(self, say: Say) -> None:
        """Say what each stage takes."""
        stages = self.expected.stages
        for number, stage in enumerate(stages, 1):
            takes = told(stage.seconds, stage.memory_bytes, stage.disk_bytes)
            say(f"stage {number} of {len(stages)}, {stage.name}: {takes}")
        expected = self.expected
        say(f"expected in all: {told(expected.seconds, expected.memory_bytes, expected.disk_bytes)}")


def told(seconds: float, memory_bytes: float, disk_bytes: float) -> str:
    """Time, memory and disk in a few words."""
    disk = f", {disk_bytes / 1e9:.2f} GB written" if disk_bytes else ""
    return f"about {spell_time(seconds)}, {memory_bytes / 1e9:.1f} GB of memory{disk}"


def expect_analysis(options: AnalyzeOptions, run: RunFolder, *, measure: bool = False) -> Outlook | None:
    """What an analysis in one pass there and back takes; None for another one, which nothing is known about.

    Args:
        options: of the analysis.
        run: where it writes.
        measure: measure this machine, which takes a few seconds, even where there is little to do.

    Raises:
        InputError: the model cannot be planned.
    """
    if options.effort == "thorough" or options.mode is not None or options.device != "cpu":
        return None
    shape = outline(options.model)
    free = {"memory_bytes": free_memory(), "disk_bytes": free_bytes(run.folder)}
    begun = begun_batch_size(options, run)
    given = options.batch_size or begun
    wanted = replace(options, batch_size=given)
    asked = _fitting(shape, one_pass_options(wanted, shape), options.max_memory_bytes or free["memory_bytes"])
    if given is not None:
        asked = replace(asked, batch_size=given)
    fewer = (
        "a smaller --batch-size" if options.batch_size else f"--restart with a --batch-size below this run's {begun}"
    )
    remedies = (FEWER, fewer, MORE) if given is not None and given > 1 else (FEWER, MORE)

    kept_bytes = _held_by(run.rounding, run.folded)

    def outlook(machine: Machine) -> Outlook:
        stages = OnePassCost(shape, asked, machine).stages()
        return Outlook(Expected(stages), machine, asked, options.max_memory_bytes, remedies, kept_bytes)

    rough = outlook(replace(REFERENCE, **free))
    if not measure and rough.expected.seconds < LONG_S:
        return rough
    return outlook(measure_machine(run.folder))


def _held_by(*folders: Path) -> int:
    """Bytes of all files in some folders."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files)


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
    seq_len = min(options.seq_len, shape.card.context)
    fit = options.most_fit_tokens // seq_len * seq_len if needs_tokens(options.rounding) else 0
    return OnePassOptions(
        judged=options.samples * seq_len,
        fit=fit,
        witnesses=min(WITNESS_TOKENS, options.most_fit_tokens) // seq_len * seq_len,
        seq_len=seq_len,
        batch_size=options.batch_size or sequences_per_pass(shape.card, seq_len),
        formats=options.formats,
        drawn=DRAWN,
        head_drawn=HEAD_SHARE * DRAWN,
        chosen=options.rounding == "auto",
        fold=options.fold == "auto",
        half=half_products_pay(torch.device(options.device)),
        measured_passes=MEASURED_PASSES if options.effort == "default" else 0.0,
    )
