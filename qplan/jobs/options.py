"""What jobs are asked for, with the one set of defaults; values that mean nothing are refused when they are given.

Nothing here needs torch: the command line takes its defaults from these classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qplan.choosing.request import EVALUATIONS, PlanRequest
from qplan.errors import InputError
from qplan.formats import DEFAULT_FORMATS, QuantFormat
from qplan.mnn.engines import EngineTarget, EngineVersion
from qplan.report.words import Language
from qplan.roundings import check_rounding
from qplan.settings import DTypeName, DynamicOption, Folding, Memory, Mode

LOGITS_BYTES = 640 << 20
"""Of a pass, where the user does not say how many sequences it has."""

MOST_SEQUENCES = 4
"""In a pass, where the user does not say how many it has: gradients hold the logits several times over."""

_DEVICE = re.compile(r"^(cpu|mps|cuda(:\d+)?)$")


@dataclass(frozen=True, kw_only=True)
class AnalyzeOptions:
    """What ``qplan analyze`` was asked for."""

    model: str
    """Local folder or hub id."""
    calib: str = "python-stdlib"
    samples: int = 16
    seq_len: int = 256
    seed: int = 0
    formats: tuple[QuantFormat, ...] = DEFAULT_FORMATS
    memory: Memory = "low"
    mode: Mode = "auto"
    rounding: str = "auto"
    fold: Folding = "auto"
    fit_tokens: int = 32768
    """At most this many tokens that rounding is fitted to."""
    jobs: int | None = None
    """Tensors that are rounded at a time; None for one per processor, 1 on a GPU."""
    dynamic_option: DynamicOption = 0
    """MNN's setting that losses under memory low are measured with."""
    batch_size: int | None = None
    """Sequences per pass; None for `MOST_SEQUENCES`, or as many as have `LOGITS_BYTES` of logits."""
    device: str = "cpu"
    dtype: DTypeName = "float32"
    restart: bool = False
    """Throw away what an earlier run with other inputs left."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and options that do not go together.

        Raises:
            InputError: names them, the limit and the remedy.
        """
        least = {"--samples": (self.samples, 1), "--seq-len": (self.seq_len, 2), "--seed": (self.seed, 0)}
        least |= {"--fit-tokens": (self.fit_tokens, 1)}
        least |= {"--jobs": (self.jobs, 1)} if self.jobs is not None else {}
        least |= {"--batch-size": (self.batch_size, 1)} if self.batch_size is not None else {}
        check_least(least)
        check_rounding(self.rounding)
        if _DEVICE.match(self.device) is None:
            msg = f"--device {self.device!r} is not understood; write cpu, cuda, cuda:1 or mps"
            raise InputError(msg)
        if self.dtype != "float32" and self.mode != "gradient":
            msg = (
                f"--dtype {self.dtype} --mode {self.mode}: only gradients have digits to spare for half precision, "
                "whose own rounding loses some hundred times what a tensor loses in int8; use --mode gradient or "
                "--dtype float32"
            )
            raise InputError(msg)
        if self.dynamic_option == 2 and self.memory != "low":
            msg = f"--dynamic-option 2 changes nothing under --memory {self.memory}: leave one of them out"
            raise InputError(msg)


@dataclass(frozen=True, kw_only=True)
class EmitOptions:
    """What ``qplan emit`` was asked for."""

    wanted: PlanRequest = field(default_factory=PlanRequest)
    text: str | None = None
    """What the built model is judged on; None for held-out windows of the calibration text."""
    tokens: int = 2048
    """At most this many tokens of it."""
    build: bool = True
    llmexport: Path | None = None
    threads: int = 1
    """Of the engine in measurements."""
    dynamic_option: DynamicOption | None = None
    """None for the one that `qplan.choosing.activations` takes unasked."""
    evaluations: int = EVALUATIONS
    """Whole models that a repair may measure; 0 for no repair."""
    plan: Path | None = None
    """Build from this plan, which people may have edited, instead of making one."""
    engine: EngineVersion | None = None
    """MNN version that the model is for; None for the installed one."""
    language: Language = Language.en
    """Of the report."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and engines that nothing can be written for.

        Raises:
            InputError: names the option, its value and the limit.
        """
        check_least({"--tokens": (self.tokens, 2), "--threads": (self.threads, 1), "--repair": (self.evaluations, 0)})
        if self.engine is not None:
            EngineTarget.of(self.engine)

    @property
    def target(self) -> EngineTarget:
        """What that engine needs.

        Raises:
            InputError: no model is known to run there.
        """
        return EngineTarget.of(self.engine or EngineVersion.installed())


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """How thoroughly ``qplan profile`` measures."""

    threads: int = 1
    prompt_tokens: int = 128
    decode_tokens: int = 12
    repeats: int = 12
    rounds: int = 3
    """Times that every model is measured, in turn unless models are large; minima count."""

    def __post_init__(self) -> None:
        """Refuse numbers below 1.

        Raises:
            InputError: names the option and its value.
        """
        given = {"--threads": self.threads, "--prompt-tokens": self.prompt_tokens, "--rounds": self.rounds}
        check_least({option: (value, 1) for option, value in given.items()})


def check_least(least: Mapping[str, tuple[int, int]]) -> None:
    """Refuse numbers below their limit.

    Args:
        least: value and limit by option.

    Raises:
        InputError: names the first option with its value and limit.
    """
    for option, (value, limit) in least.items():
        if value < limit:
            msg = f"{option} {value}: must be at least {limit}"
            raise InputError(msg)
