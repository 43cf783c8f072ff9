"""What a command is expected to take, stage by stage, and whether a machine has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qplan.cost.work import Machine
from qplan.errors import InputError, StorageError


@dataclass(frozen=True)
class ExpectedStage:
    """One stage of a command."""

    name: str
    """What it does, in a few words."""
    seconds: float
    memory_bytes: float
    """Peak resident memory of the process and its children."""
    disk_bytes: float = 0.0
    """Written to the run folder while it lasts."""
    parts: tuple[float, ...] = (1.0,)
    """How the time is spread over the parts that its progress counts, in their order; any unit."""
    units: int = 0
    """How many parts its pieces count together, where it is told in pieces; 0 if only they know."""
    temporary_bytes: float = 0.0
    """Written to the folder for temporary files while it lasts, and kept there until the command ends."""


@dataclass(frozen=True)
class Expected:
    """What a command takes."""

    stages: tuple[ExpectedStage, ...]

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def memory_bytes(self) -> float:
        """Peak over all stages."""
        return max(stage.memory_bytes for stage in self.stages)

    @property
    def disk_bytes(self) -> float:
        """All that is written to the run folder."""
        return sum(stage.disk_bytes for stage in self.stages)

    @property
    def temporary_bytes(self) -> float:
        """All that is written to the folder for temporary files."""
        return sum(stage.temporary_bytes for stage in self.stages)

    def check(self, machine: Machine, remedies: Sequence[str], *, most_memory: float | None = None) -> None:
        """Refuse what the machine cannot hold.

        Args:
            machine: the machine.
            remedies: what takes less memory.
            most_memory: a limit on the memory in bytes, where one was given; above what is free it changes nothing.

        Raises:
            InputError: not enough memory.
            StorageError: not enough room on the disk.
        """
        limit, whose, advice = machine.memory_bytes, "this machine has free", (*remedies, "a machine with more memory")
        if most_memory is not None and most_memory < limit:
            limit, whose, advice = int(most_memory), "--max-memory allows", ("raise it", *remedies)
        if self.memory_bytes > limit:
            stage = max(self.stages, key=lambda one: one.memory_bytes)
            need, have = apart(self.memory_bytes, limit)
            msg = f"{stage.name} needs about {need} of memory, and {whose} {have}: {', or '.join(advice)}"
            raise InputError(msg)
        if self.disk_bytes > machine.disk_bytes:
            need, have = apart(self.disk_bytes, machine.disk_bytes)
            msg = (
                f"the run folder needs about {need} on the disk, which has {have} free: free some, or name a folder on "
                "a larger one with --run"
            )
            raise StorageError(msg)


_PLACES = (1, 2, 3)
_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))


def apart(need: float, have: float) -> tuple[str, str]:
    """Two sizes in bytes, with so many decimal places that they differ, and none is told as nothing."""
    told = ("", "")
    for places in _PLACES:
        told = _told(need, places), _told(have, places)
        if told[0] != told[1]:
            break
    return told


def _told(size: float, places: int) -> str:
    unit, divisor = next((one for one in _UNITS if size >= one[1] / 20), _UNITS[-1])
    return f"{size / divisor:.{places}f} {unit}"
