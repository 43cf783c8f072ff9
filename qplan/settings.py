"""Settings that go through the whole house, and who is told about long work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Memory = Literal["low", "normal"]
"""MNN's ``memory`` setting: low computes with int8 activations wherever weights are integers."""

MEMORIES: tuple[Memory, ...] = ("low", "normal")

DynamicOption = Literal[0, 2]
"""MNN's ``dynamic_option``: int8 activations with a scale per token, or per token and block of the weights."""

DYNAMIC_OPTIONS: tuple[DynamicOption, ...] = (0, 2)
"""MNN's settings that a model can ship with; 1 computes what 0 computes."""

Say = Callable[[str], None]
"""Called with a line about each step of a job."""

Progress = Callable[[int, int], None]
"""Called after each part of a long step with how many parts are done, of how many."""


def memories_of(goal: Memory) -> tuple[Memory, ...]:
    """The memory settings to measure for a goal, the goal first."""
    return (goal,) if goal == "normal" else (goal, "normal")
