"""Processors that MNN's aarch64 engine is run on under emulation: one for each arithmetic that its kernels have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qplan.errors import InputError
from qplan.settings import one_of


@dataclass(frozen=True)
class Processor:
    """A processor that qemu emulates."""

    name: str
    """As the target of `qplan.cost` with its formats and arithmetic."""
    cpu: str
    """qemu's name for it."""
    about: str
    half: bool = True
    """Whether it computes in fp16 under precision low; otherwise that is computed in fp32 like high."""
    needs_sme: bool = False
    """Whether it takes an emulator that knows SME2."""


PROCESSORS: dict[str, Processor] = {
    processor.name: processor
    for processor in (
        Processor("arm-v8", "cortex-a53", "no dot product, no fp16 (Cortex-A53, A72)", half=False),
        Processor("arm-dot", "cortex-a76", "sdot and fp16 (Cortex-A76, A78)"),
        Processor("arm-i8mm", "max,sve=off,sme=off", "sdot, fp16 and i8mm (Cortex-A710, X2)"),
        Processor(
            # MNN's kernels take streaming vectors of 512 bits for granted: qemu's default of 256 gives NaN
            "arm-sme2",
            "max,sme-default-vector-length=64",
            "SME2 (Apple M4, Arm C1)",
            needs_sme=True,
        ),
    )
}
"""By name, from the oldest to the newest."""

ALL_WORD = "arm"
"""The word for all that every emulator knows."""

USUAL = tuple(name for name, processor in PROCESSORS.items() if not processor.needs_sme)
"""What `ALL_WORD` stands for."""


def find_processor(name: str) -> Processor:
    """Look a processor up.

    Raises:
        InputError: there is none of this name.
    """
    return PROCESSORS[one_of("processor", name, PROCESSORS)]


def parse_processors(words: Sequence[str]) -> tuple[str, ...]:
    """Names of processors, from the oldest to the newest, without repeats.

    Args:
        words: names, `ALL_WORD`, or several of them with commas in between.

    Raises:
        InputError: a name that no processor has, or nothing between two commas.
    """
    asked = [name.strip().lower() for word in words for name in word.split(",")]
    for name in asked:
        if name not in (ALL_WORD, *PROCESSORS):
            known = ", ".join((*PROCESSORS, f"{ALL_WORD} (which is {', '.join(USUAL)})"))
            msg = f"--prove {','.join(words)!r}: {name!r} is no processor; use one or several of {known}"
            raise InputError(msg)
    return tuple(name for name in PROCESSORS if name in asked or (ALL_WORD in asked and name in USUAL))
