"""Options of the jobs, with their only set of defaults. Values out of range are refused on construction.

Nothing here imports torch, since the command line takes its defaults from these classes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from qplan.card import ModelCard
from qplan.choosing.request import PlanRequest
from qplan.cost.target import DEFAULT_TARGET
from qplan.errors import InputError
from qplan.formats import DEFAULT_FORMATS, QuantFormat
from qplan.mnn.engines import EngineTarget, EngineVersion
from qplan.planner.budget import Budget
from qplan.report.words import Language
from qplan.roundings import can_be_tuned, check_rounding, needs_tokens
from qplan.run.folder import RunFolder
from qplan.settings import DTypeName, DynamicOption, Effort, Folding, Memory, Mode, Tune, WindowKind
from qplan.uniform import RIVALS

LOGITS_BYTES = 640 << 20
"""Bytes of FP32 logits in a pass, unless the user gives the number of sequences."""

MOST_SEQUENCES = 4
"""Most sequences in a pass, unless the user gives their number: gradients hold several copies of the logits."""

FIT_TOKENS, FEWER_FIT_TOKENS = 32768, 16384
"""Most tokens that rounding is fitted to, and of a large model, unless every format is rounded whole. With half as
many, plans of a model of 8 million parameters lose 3 % more (``reports/effort``); the others take a pass."""

LARGE = 1 << 28
"""Parameters from which on a model is large."""

SEQ_LEN = 256
"""Tokens of a calibration sequence, unless the user gives their number or the model's context holds fewer."""

MEASURED_PASSES = 1.0
"""Most passes that the default effort takes for measurements; a pass is once forwards and backwards over the
calibration tokens."""

MOST = 2**31 - 1
"""Largest count that options take: libraries below hold counts in 32 bits."""

_HOST_PORT = re.compile(r"[^\s/]+:([0-9]{1,5})")
_MOST_PORTS = 2**16

_DEVICE = re.compile(r"cpu|mps|cuda(:[0-9]{1,3})?")


@dataclass(frozen=True, kw_only=True)
class AnalyzeOptions:
    """Options of ``qplan analyze``."""

    model: str
    """Local folder or hub id."""
    calib: str = "mixture"
    samples: int = 16
    seq_len: int | None = None
    """Tokens of each; None for `SEQ_LEN`, or the model's context if that is shorter."""
    seed: int = 0
    formats: tuple[QuantFormat, ...] = DEFAULT_FORMATS
    memory: Memory = "low"
    effort: Effort = "default"
    mode: Mode | None = None
    """How losses are found, whatever the effort; None for what the effort says."""
    rounding: str = "auto"
    fold: Folding = "auto"
    fit_tokens: int | None = None
    """Most tokens that rounding is fitted to; None for `most_fit_tokens`'s choice."""
    jobs: int | None = None
    """Tensors to round at a time; None for one per CPU core, or 1 on a GPU."""
    dynamic_option: DynamicOption = 0
    """MNN's setting for int8 activations, emulated in losses under memory low."""
    batch_size: int | None = None
    """Sequences per pass; None for as many as `LOGITS_BYTES` and `MOST_SEQUENCES` allow."""
    max_context: int | None = None
    """Longest sequence in tokens that the built model takes; None for the model's own context."""
    llmexport: Path | None = None
    """Exporter that emit will use, by whose measured errors the model's settings are judged; None for the package."""
    device: str = "cpu"
    dtype: DTypeName = "float32"
    ray: str | None = None
    """Ray cluster that does the work, see `qplan.spread`; None for this process alone."""
    restart: bool = False
    """Delete what an earlier run left in the folder."""
    max_memory_bytes: int | None = None
    """Most memory that the job may take; None for what the machine has free. Where the model does not fit, its
    weights stay on the disk until they are used."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and options that contradict each other.

        Raises:
            InputError: about the first; the message gives value, limit and remedy.
        """
        least = {"--samples": (self.samples, 1), "--seed": (self.seed, 0)}
        least |= {"--seq-len": (self.seq_len, 2)} if self.seq_len is not None else {}
        least |= {"--fit-tokens": (self.fit_tokens, 1)} if self.fit_tokens is not None else {}
        least |= {"--jobs": (self.jobs, 1)} if self.jobs is not None else {}
        least |= {"--max-context": (self.max_context, 2)} if self.max_context is not None else {}
        least |= {"--batch-size": (self.batch_size, 1)} if self.batch_size is not None else {}
        check_least(least)
        check_rounding(self.rounding)
        if _DEVICE.fullmatch(self.device) is None:
            msg = f"--device {self.device!r} is not understood; write cpu, cuda, cuda:1 or mps"
            raise InputError(msg)
        check_ray(self.ray)
        if self.ray is not None and self.device != "cpu":
            msg = f"--ray {self.ray} --device {self.device}: workers of a cluster compute on processors; leave one out"
            raise InputError(msg)
        if self.effort != "default" and self.mode is not None:
            msg = f"--effort {self.effort} --mode {self.mode}: an effort chooses the mode; leave one of them out"
            raise InputError(msg)
        if self.dtype != "float32" and self.mode != "gradient":
            given = f"--effort {self.effort}" if self.mode is None else f"--mode {self.mode}"
            msg = (
                f"--dtype {self.dtype} {given}: only gradients tolerate half precision, "
                "whose own rounding loses about a hundred times what a tensor loses in int8; use --mode gradient or "
                "--dtype float32"
            )
            raise InputError(msg)
        if self.max_memory_bytes is not None and (self.effort == "thorough" or self.mode is not None):
            asked = "--effort thorough" if self.effort == "thorough" else f"--mode {self.mode}"
            msg = f"--max-memory {asked}: it measures whole models, whatever memory these take; leave one of them out"
            raise InputError(msg)
        if self.max_memory_bytes is not None and self.device != "cpu":
            msg = (
                f"--max-memory --device {self.device}: what a GPU takes is not known beforehand, and weights are not "
                "read layer by layer there; leave one of them out"
            )
            raise InputError(msg)
        if self.fold == "trained" and self.memory == "normal":
            msg = (
                "--fold trained --memory normal: scales are trained with the int8 activations that memory low computes "
                "with; leave one of them out"
            )
            raise InputError(msg)
        if self.fold == "trained" and self.dtype != "float32":
            msg = f"--fold trained --dtype {self.dtype}: half precision loses more than int8; use --dtype float32"
            raise InputError(msg)
        if self.dynamic_option == 2 and self.memory != "low":
            msg = f"--dynamic-option 2 has no effect under --memory {self.memory}; leave one of them out"
            raise InputError(msg)

    def sequence(self, context: int) -> int:
        """Tokens of a sequence, of a model with such a context."""
        return min(SEQ_LEN, context) if self.seq_len is None else self.seq_len

    def most_fit_tokens(self, parameters: int) -> int:
        """Most tokens that rounding is fitted to, of a model with so many parameters."""
        if self.fit_tokens is not None:
            return self.fit_tokens
        sampled = self.mode is None and self.effort != "thorough"
        return FEWER_FIT_TOKENS if sampled and parameters >= LARGE else FIT_TOKENS


@dataclass(frozen=True, kw_only=True)
class EmitOptions:
    """Options of ``qplan emit``."""

    wanted: PlanRequest = field(default_factory=PlanRequest)
    text: str | None = None
    """Text that the built model is measured on; None for held-out windows of the calibration text."""
    tokens: int = 2048
    """Most tokens of that text to use."""
    build: bool = True
    llmexport: Path | None = None
    threads: int = 1
    """Engine threads in measurements."""
    dynamic_option: DynamicOption | None = None
    """MNN's setting for int8 activations; None to let `qplan.choosing.activations` decide."""
    evaluations: int | None = None
    """Most whole models that a repair may measure; 0 for no repair, None for what a pass allows, or where nothing is
    built for no measurement at all."""
    rivals: int = RIVALS
    """Uniform models within the plan's limits that are built, besides fp16, int8 and int4."""
    plan: Path | None = None
    """A plan to build, possibly edited by hand; None to make one."""
    engine: EngineVersion | None = None
    """MNN version that the model is for; None for the installed one."""
    tune: Tune = "auto"
    """Whether its integers and scales are fitted to the plan as a whole before it is built, see `qplan.tuning`."""
    prove: tuple[str, ...] = ()
    """Emulated ARM processors that the built model is proved on, names of `qplan.mnn.arm.processors`."""
    language: Language = Language.en
    """Language of the report."""
    ray: str | None = None
    """Ray cluster that rounds tensors, see `qplan.spread`; None for this process alone."""
    max_memory_bytes: int | None = None
    """Most memory that the job and its child processes may take; None for no limit."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, engines that no model can be built for, and requests beside a given plan.

        Raises:
            InputError: about the first; the message gives option, value and limit.
        """
        check_ray(self.ray)
        check_least(
            {
                "--tokens": (self.tokens, 2),
                "--threads": (self.threads, 1),
                "--repair": (self.evaluations or 0, 0),
                "--rivals": (self.rivals, 0),
            }
        )
        if self.engine is not None:
            EngineTarget.of(self.engine)
        if self.prove and not self.build:
            msg = f"--prove {','.join(self.prove)} --no-build: only a model that is built can be proved; leave one out"
            raise InputError(msg)
        if self.tune in {"sequential", "scales", "full"} and not self.build:
            msg = f"--tune {self.tune} --no-build: a plan is fitted for a model that is built; leave one out"
            raise InputError(msg)
        unheard = self.wanted.asked() if self.plan is not None else ()
        if unheard:
            msg = (
                f"--plan {self.plan} {' '.join(unheard)}: a given plan is built as it is; leave one of them out, or "
                "edit the plan"
            )
            raise InputError(msg)

    def tunes(self, rounding: str) -> bool:
        """Whether the integers of a plan are fitted to it, where tensors are rounded so."""
        return self.build and self.tune != "off" and can_be_tuned(rounding)

    def trains(self, rounding: str) -> bool:
        """Whether its scales are trained after that, if nothing speaks against it."""
        asked = self.tune == "scales" and needs_tokens(rounding)
        return self.build and (asked or (self.tune in {"auto", "full"} and can_be_tuned(rounding)))

    @property
    def loads_model(self) -> bool:
        """Whether the model is needed: what is neither built nor measured follows from the table.

        A limit on the loss of the whole model is held on the whole model.
        """
        wanted = self.wanted
        held = self.plan is None and (wanted.max_kl is not None or wanted.max_ppl_increase is not None)
        return self.build or held or self.evaluations is not None

    @property
    def target(self) -> EngineTarget:
        """What the engine needs of a model.

        Raises:
            InputError: no model is known to run on it.
        """
        return EngineTarget.of(self.engine or EngineVersion.installed())


QUANTIZED_TO = "int4"
"""Budget of ``qplan quantize``, unless another is given: what people who quantize for a phone export today."""


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """What ``qplan quantize`` was asked for; all else is as `AnalyzeOptions` and `EmitOptions` have it."""

    model: str
    """Local folder or hub id."""
    out: Path | None = None
    """Folder that is given out; None for `out_folder`."""
    wanted: PlanRequest = field(default_factory=lambda: PlanRequest(budgets=(Budget.parse(QUANTIZED_TO),)))
    calib: str = AnalyzeOptions.calib
    effort: Effort | None = None
    """None for the default one where that takes minutes, and the quick one for large models."""
    max_context: int | None = None
    llmexport: Path | None = None
    language: Language = EmitOptions.language
    run: Path | None = None
    """Run folder; None for the model's own under ``qplan-runs``."""
    restart: bool = False
    max_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse what one of the halves refuses.

        Raises:
            InputError: about the first such option.
        """
        _ = self.analysis, self.emission

    @property
    def analysis(self) -> AnalyzeOptions:
        """Options of its first half."""
        return AnalyzeOptions(
            model=self.model,
            calib=self.calib,
            effort=self.effort or AnalyzeOptions.effort,
            max_context=self.max_context,
            llmexport=self.llmexport,
            restart=self.restart,
            max_memory_bytes=self.max_memory_bytes,
        )

    @property
    def emission(self) -> EmitOptions:
        """Options of its second half."""
        return EmitOptions(
            wanted=self.wanted,
            llmexport=self.llmexport,
            language=self.language,
            max_memory_bytes=self.max_memory_bytes,
        )

    @property
    def command(self) -> str:
        """The command line that asks for the same."""
        wanted = self.wanted
        given: tuple[tuple[str, object, object], ...] = (
            ("--budget", ",".join(budget.text for budget in wanted.budgets), QUANTIZED_TO),
            ("--target", wanted.rules.target.name, DEFAULT_TARGET),
            ("--calib", self.calib, AnalyzeOptions.calib),
            ("--effort", self.effort, None),
            ("--max-context", self.max_context, None),
            ("--llmexport", self.llmexport, None),
            ("--lang", self.language, EmitOptions.language),
            ("--run", self.run, None),
            ("--max-memory", None if self.max_memory_bytes is None else f"{self.max_memory_bytes}B", None),
        )
        words = [word for name, value, plain in given if value != plain for word in (name, str(value))]
        places = [self.model, *([] if self.out is None else [str(self.out)])]
        return shlex.join(["qplan", "quantize", *places, *words, *(["--restart"] if self.restart else [])])

    @property
    def home(self) -> RunFolder:
        """Where it writes."""
        return RunFolder.for_model(self.model) if self.run is None else RunFolder(self.run)

    @property
    def out_folder(self) -> Path:
        """The folder that is given out: ``<model>-<budget>-MNN``, here, unless it was named."""
        home = self.home
        return self.out or Path(f"{home.folder.name}-{home.budget(self.wanted.label).name}-MNN")


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What ``qplan plan`` solves for."""

    wanted: PlanRequest = field(default_factory=PlanRequest)
    dynamic_option: DynamicOption | None = None
    """MNN's setting for int8 activations; None for the one under which plans are predicted to lose less."""
    engine: EngineVersion | None = None
    """MNN version that the model is for; None for the installed one."""

    def __post_init__(self) -> None:
        """Refuse engines that no model can be built for.

        Raises:
            InputError: it is one of these.
        """
        _ = self.target

    @property
    def target(self) -> EngineTarget:
        """What the engine needs of a model.

        Raises:
            InputError: no model is known to run on it.
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
    """How often each model is measured, in turn unless models are large; the minimum is used."""

    def __post_init__(self) -> None:
        """Refuse numbers below 1.

        Raises:
            InputError: about the first; the message gives option or field, value and limit.
        """
        given = {"--threads": self.threads, "--prompt-tokens": self.prompt_tokens, "--rounds": self.rounds}
        given |= {"decode_tokens": self.decode_tokens, "repeats": self.repeats}  # callers from Python set these
        check_least({option: (value, 1) for option, value in given.items()})


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What ``qplan bench`` was asked for."""

    folder: Path
    reference: str | None = None
    """Hugging Face model that the folder is compared with; None to compare with nothing."""
    text: str = "mixture"
    tokens: int = 2048
    """At most this many tokens of the text."""
    seq_len: int = 512
    """Tokens of a sequence at most: the model sees nothing of the text before it."""
    windows: WindowKind = "rows"
    """``rows`` of ``seq_len`` tokens, or the windows of MNN's ``ppl_eval``."""
    threads: int | None = None
    """Of the engine; None for the folder's own."""

    def __post_init__(self) -> None:
        """Refuse counts that nothing can be measured with.

        Raises:
            InputError: names the option, its value and the limit.
        """
        for option, value, least in (("--tokens", self.tokens, 2), ("--seq-len", self.seq_len, 2)):
            if value < least:
                msg = f"{option} {value}: must be at least {least}, to predict one token from another"
                raise InputError(msg)
        if self.windows not in get_args(WindowKind):
            msg = f"--windows {self.windows!r}: must be one of {', '.join(get_args(WindowKind))}"
            raise InputError(msg)
        if self.windows == "ppl_eval" and self.seq_len != BenchOptions.seq_len:
            msg = f"--seq-len {self.seq_len}: --windows ppl_eval has windows of its own; leave one of the two out"
            raise InputError(msg)


@dataclass(frozen=True)
class EvalOptions:
    """What ``qplan eval`` was asked for."""

    folder: Path
    tasks: tuple[str, ...]
    """Of lm-evaluation-harness: tasks, groups or tags, with ``*`` for any characters."""
    reference: str | None = None
    """Hugging Face model that runs the same tasks in FP32; None to compare with nothing."""
    include_path: Path | None = None
    """Folder of further task files."""
    limit: int | None = None
    """Samples of each task at most; None for all."""
    num_fewshot: int | None = None
    """Solved examples in a prompt; None for the task's own number."""
    threads: int | None = None
    """Of the engine; None for the folder's own."""

    def __post_init__(self) -> None:
        """Refuse counts and lists that say nothing.

        Raises:
            InputError: names the option, its value and the limit.
        """
        if not self.tasks or not all(self.tasks):
            msg = f"--tasks {','.join(self.tasks)!r}: name one task at least, several with commas between them"
            raise InputError(msg)
        for option, value, least in (("--limit", self.limit, 1), ("--num-fewshot", self.num_fewshot, 0)):
            if value is not None and value < least:
                msg = f"{option} {value}: must be at least {least}"
                raise InputError(msg)


def check_ray(address: str | None) -> None:
    """Refuse what names no cluster.

    Raises:
        InputError: neither ``auto`` nor ``HOST:PORT``.
    """
    if address is None or address == "auto":
        return
    match = _HOST_PORT.fullmatch(address)
    if match is None or not 0 < int(match[1]) < _MOST_PORTS:
        msg = f"--ray {address!r} is not understood; write auto, or HOST:PORT of the cluster's head, such as head:6379"
        raise InputError(msg)


def check_least(least: Mapping[str, tuple[int, int]]) -> None:
    """Refuse numbers below their limit, and those that no 32 bits hold.

    Args:
        least: value and least allowed value by option.

    Raises:
        InputError: about the first; the message gives option, value and limit.
    """
    for option, (value, limit) in least.items():
        if not limit <= value <= MOST:
            msg = f"{option} {value}: must be at least {limit}" + (f" and at most {MOST}" if value > MOST else "")
            raise InputError(msg)


def sequences_per_pass(card: ModelCard, seq_len: int) -> int:
    """Sequences whose FP32 logits take at most `LOGITS_BYTES`, between 1 and `MOST_SEQUENCES`."""
    return min(MOST_SEQUENCES, max(1, LOGITS_BYTES // (4 * seq_len * card.vocabulary)))
