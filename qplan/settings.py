"""Settings that all rooms share, and the callbacks that report on long work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Protocol, TypeVar, get_args, runtime_checkable

from qplan.errors import InputError

Name = TypeVar("Name", bound=str)

Memory = Literal["low", "normal"]
"""MNN's ``memory`` setting: low computes with int8 activations wherever weights are integers."""

MEMORIES: tuple[Memory, ...] = ("low", "normal")

Precision = Literal["low", "normal", "high"]
"""MNN's ``precision`` setting: low computes in fp16 where the processor can; changes nothing on x86."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

Arithmetic = Literal["x86", "arm", "arm-fp16", "float"]
"""What a back end computes with where weights are integers: int8 activations as on x86, as on ARM, as on ARM in fp16,
or float activations."""

DynamicOption = Literal[0, 2]
"""MNN's ``dynamic_option``: int8 activations with a scale per token, or per token and block of the weights."""

DYNAMIC_OPTIONS: tuple[DynamicOption, ...] = (0, 2)
"""MNN's settings that a model can ship with; 1 computes what 0 computes."""

Mode = Literal["auto", "gradient", "measured"]
"""How losses are found: estimated from gradients, measured by running the model, or estimated and then measured where
plans depend on them (``auto``)."""

Effort = Literal["quick", "default", "thorough"]
"""How much an analysis may take: one pass there and back with a sample of output features (``quick``), the same and
then measurements of what plans hang on, within a budget of passes (``default``), or a measurement of every loss
(``thorough``)."""

Folding = Literal["auto", "trained", "off"]
"""Whether scales may move between neighboring weights before anything is quantized: fitted place by place (``auto``),
or all at once to the loss of the whole model in 8 bits (``trained``)."""

FOLDINGS: tuple[Folding, ...] = get_args(Folding)

DTypeName = Literal["float32", "bfloat16", "float16"]
"""Floating-point type that the model computes in."""

WindowKind = Literal["rows", "ppl_eval"]
"""How a text is cut into sequences: rows that do not overlap, or the windows of MNN's ``ppl_eval``."""

Objective = Literal["loss", "smallest", "fastest"]
"""What makes a plan the best: the least loss, or the fewest bytes or the least time under a limit on the loss."""

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

NOTHING_NATS = 1e-7
"""Losses below this are float32 rounding, and count as equal."""

Tune = Literal["auto", "sequential", "scales", "full", "off"]
"""Whether a plan is fitted as a whole once it is chosen: its integers in order, to the float model's outputs
(``sequential``), and then its scales and zeros end to end (``scales``); ``full`` trains both layer by layer as well,
on the way. ``auto`` does the first two wherever roundings are fitted to tokens, and trains scales within
`qplan.cost.training.MOST_PASSES`."""

Parity = Literal["all", "files"]
"""What a budget that names a uniform export promises: no more of anything that a user feels than the export takes
(files, RAM, time per decoded token, time of a prefill), or no larger files."""

PARITIES: tuple[Parity, ...] = get_args(Parity)

Say = Callable[[str], None]
"""Called with a line about each step of a job."""

Progress = Callable[[int, int], None]
"""Called after each part of a long step with the number of parts done and the number of all parts."""


@runtime_checkable
class StageProgress(Protocol):
    """A `Progress` that also shows which stage runs."""

    def __call__(self, done: int, total: int, /) -> None:
        """Take the number of parts done, and of all."""

    def stage(self, name: str) -> None:
        """Take the name of the stage that runs, with its place among all."""


Visit = Callable[[str, str], Progress]
"""Called with the name of a stage and a line about the piece of it that begins; gives the progress of that piece."""


def memories_of(goal: Memory) -> tuple[Memory, ...]:
    """The memory settings to measure for a goal, the goal first."""
    return (goal,) if goal == "normal" else (goal, "normal")


def without_half(arithmetic: Arithmetic) -> Arithmetic:
    """The arithmetic as plans are compared by it: what fp16 adds is the same for all of them, and slow to emulate.

    It is not the same for float weights, whose products add up in fp16.
    """
    return "arm" if arithmetic == "arm-fp16" else arithmetic


def one_of(kind: str, text: str, known: Iterable[Name]) -> Name:
    """Read the name of a setting.

    Args:
        kind: what the names are of, for the message.
        text: what was given.
        known: the names that there are.

    Raises:
        InputError: there is no such name.
    """
    names = tuple(known)
    found = next((name for name in names if name == text), None)
    if found is None:
        msg = f"{kind} {text!r} is unknown; use one of {', '.join(names)}"
        raise InputError(msg)
    return found
