"""What work is, for those who do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Given_contra = TypeVar("Given_contra", contravariant=True)
Found_co = TypeVar("Found_co", covariant=True)


@dataclass(frozen=True)
class Task(Generic[Item]):
    """One part of some work."""

    item: Item
    label: str
    """What an error is about, such as a tensor's name."""


class Work(Protocol[Given_contra, Found_co]):
    """Work of one kind. A pickled one holds where a model lies, and not its weights."""

    @property
    def threads(self) -> int:
        """Processors that a task computes on; with another number sums of floats would round otherwise."""
        ...

    @property
    def memory_bytes(self) -> int:
        """RAM of a process that does one task at a time."""
        ...

    def open(self) -> Callable[[Given_contra], Found_co]:
        """What does one task; called once in every process, so it may load a model."""
        ...


class Workers(Protocol):
    """Processes on other machines, or on this one."""

    def run(self, work: Work[Item, Result], tasks: Sequence[Task[Item]]) -> Iterator[tuple[int, Result]]:
        """Do all tasks, several at a time; yields the place of each in the list and its result, as they end.

        Raises:
            QplanError: what a task raised, with its label.
            ToolError: a task ended its worker again and again.
        """
        ...

    def run_held(self, work: Work[Item, Sequence[Any]], tasks: Sequence[Task[Item]], parts: int) -> list[list[Any]]:
        """Do tasks whose results have ``parts`` parts and stay with the workers, for items of later tasks.

        Returns:
            By task, a handle of each part; `qplan.spread.held.value_of` gets it where an item with it is used.
        """
        ...
