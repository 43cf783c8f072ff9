"""What lies ahead of a command on this machine: told before anything is loaded, and refused where it cannot be."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from qplan.artifact import free_bytes
from qplan.cost.expected import Expected, apart
from qplan.cost.free import free_memory
from qplan.cost.work import REFERENCE, Machine, spell_time
from qplan.errors import StorageError
from qplan.jobs.machine import measure_machine
from qplan.run.folder import RunFolder
from qplan.settings import Say

LONG_S = 60.0
"""Seconds on the reference machine from which on it is worth measuring this one."""


@dataclass(frozen=True)
class Outlook:
    """What is expected, and of which machine."""

    expected: Expected
    machine: Machine
    most_memory: int | None = None
    """The limit that was given."""
    remedies: tuple[str, ...] = ()
    """What lets the command do with less memory, beside a higher limit and another machine."""
    kept_bytes: int = 0
    """What the run folder holds already, of what the command would write or would remove before."""

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
        folder = Path(tempfile.gettempdir())
        free = free_bytes(folder)
        if self.expected.temporary_bytes > free:
            need, have = apart(self.expected.temporary_bytes, free)
            msg = (
                f"logits of the reference take about {need} in {folder}, which has {have} free: free some, set TMPDIR "
                "to a folder on a larger disk, or take fewer --tokens"
            )
            raise StorageError(msg)

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


_Found = TypeVar("_Found", bound=Outlook)


def on_this_machine(outlook: Callable[[Machine], _Found], run: RunFolder, *, measure: bool = False) -> _Found:
    """What a command takes here.

    Args:
        outlook: what it takes on a machine.
        run: where it writes.
        measure: measure this machine, which takes a few seconds, even where there is little to do.
    """
    rough = outlook(replace(REFERENCE, memory_bytes=free_memory(), disk_bytes=free_bytes(run.folder)))
    if not measure and not rough.is_long:
        return rough
    return outlook(measure_machine(run.folder))
