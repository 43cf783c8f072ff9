"""Measures formats on ARM processors: what MNN's aarch64 engine computes of each, against torch, under emulation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from qplan.artifact import temporary_folder
from qplan.compat.arm_table import PATHS, ArmRow, is_right, setting, told
from qplan.errors import ToolError
from qplan.formats import FP16, INT8, INT_BITS, TIED_BITS, QuantFormat
from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.build.skeleton import Skeleton
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.probe import ProbeResult, run_probe
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.host import EngineHost
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel, load_model
from qplan.model.specimen import save_specimen, token_ids
from qplan.rounding.rounder import Rounder
from qplan.sensitivity.kept_logits import Logits
from qplan.settings import DYNAMIC_OPTIONS, Precision, Say
from qplan.verify.reference import stored_logits

BLOCKS, ODD_BLOCKS = (0, 64, 32, 128, 48, 16, 24), (4, 8, 12)
"""Usual ones, and those that llmexport's halving ends at; all divide `_WIDTH`."""

TIED_BLOCKS = (0, 32, 64, 128)

FORMATS = (
    FP16,
    *(QuantFormat(bits, block, sym) for sym in (False, True) for block in BLOCKS for bits in reversed(INT_BITS)),
    *(QuantFormat(bits, block) for block in ODD_BLOCKS for bits in reversed(INT_BITS)),
)
"""Of all linears."""

TIED_FORMATS = (
    FP16,
    *(QuantFormat(bits, block) for block in TIED_BLOCKS for bits in reversed(TIED_BITS) if bits < FP16.bits),
)
"""Of a tied head."""

PRECISIONS: tuple[Precision, ...] = ("low", "high")

RIGHT_REL = 0.15
"""Largest relative error of logits that counts as right: int8 activations on a random model lose 1 to 7 %, what is
garbage loses 50 % and more."""

TOKENS, STEPS = 22, 8
"""Tokens in one pass, of which the engine computes the last two apart, and how many of them go through one by one."""

_WIDTH = 384
_SIZES: dict[str, Any] = {
    "hidden_size": _WIDTH,
    "intermediate_size": _WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "initializer_range": 0.05,
}


@dataclass(frozen=True)
class _Case:
    """A built model, and what it should compute."""

    format: QuantFormat
    tied: bool
    folder: Path
    expected: Logits


def measure_arm(
    hosts: Mapping[str, EngineHost], say: Say, formats: Sequence[QuantFormat] | None = None
) -> Iterator[ArmRow]:
    """Measure formats on processors, with memory low, both precisions, both dynamic options, prefill and decode.

    What is not right is measured again by itself in a process that did nothing else.

    Args:
        hosts: what emulates each processor, by its name.
        say: called with a line about each row.
        formats: those to measure; None for `FORMATS` and `TIED_FORMATS`.

    Raises:
        ToolError: exporter or converter failed.
    """
    wanted = {False: FORMATS, True: TIED_FORMATS}
    with temporary_folder("compat") as work, ExitStack() as stack:
        benches = [stack.enter_context(_Bench(name, host)) for name, host in hosts.items()]
        for tied, known in wanted.items():
            chosen = [fmt for fmt in known if formats is None or fmt in formats]
            if not chosen:
                continue
            loaded = load_model(str(save_specimen("llama-tied" if tied else "llama", work / f"hf-{tied}", **_SIZES)))
            skeleton = export_skeleton(loaded.folder, work / f"skeleton-{tied}")
            for fmt in chosen:
                case = _built(loaded, skeleton, fmt, work / "built")
                for bench in benches:
                    row = bench.measured(case)
                    say(f"{row.processor}, {'tied head ' if tied else ''}{fmt}: {told(row)}")
                    yield row


def _built(loaded: LoadedModel, skeleton: Skeleton, fmt: QuantFormat, out: Path) -> _Case:
    tied = skeleton.tied_op is not None
    formats = {spec.name: fmt if spec.op_name == skeleton.tied_op or not tied else INT8 for spec in loaded.card.tensors}
    build_model(skeleton, loaded.card.tensors, formats, Rounder(loaded).store, out, replace=True)
    return _Case(fmt, tied, out, stored_logits(Rounder(loaded), formats, token_ids(TOKENS)))


class _Bench:
    """One processor, with an engine that is kept from one format to the next while it lives."""

    def __init__(self, name: str, host: EngineHost) -> None:
        self.host, self.name = host, name
        self._session: EngineSession | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._session is not None:
            self._session.close()

    def measured(self, case: _Case) -> ArmRow:
        """A format under all settings."""
        results: dict[str, str] = {}
        for precision in PRECISIONS:
            for option in DYNAMIC_OPTIONS:
                runtime = RuntimeConfig(precision=precision, dynamic_option=option)
                found = self._together(case, runtime)
                again = [path for path in PATHS if not is_right(found.get(path, ""))]
                found |= {path: self._alone(case, runtime, path) for path in again}
                results |= {setting(precision, option, path): found[path] for path in PATHS}
        return ArmRow(case.format, case.tied, self.name, results)

    def _together(self, case: _Case, runtime: RuntimeConfig) -> dict[str, str]:
        """By path, in a process that has measured others; nothing if the engine failed."""
        ids = token_ids(TOKENS)
        try:
            if self._session is None or not self._session.alive:
                self._session = EngineSession(case.folder, runtime, host=self.host)
            else:
                self._session.load(case.folder, runtime)
            prefill, decode = self._session.logits(ids), self._session.logits_stepwise(ids[:STEPS])
        except ToolError:
            if self._session is not None:
                self._session.close()
            self._session = None
            return {}
        return {"prefill": _judged(prefill, case.expected), "decode": _judged(decode, case.expected)}

    def _alone(self, case: _Case, runtime: RuntimeConfig, path: str) -> str:
        """One path in a process of its own."""
        ids = token_ids(TOKENS)[: STEPS if path == "decode" else TOKENS]
        ran = run_probe(case.folder, ids, runtime, host=self.host, paths=(path,))
        return _ended(ran) if ran.logits is None else _judged(ran.logits[0], case.expected)


def _judged(logits: Logits, expected: Logits) -> str:
    reference = expected[: len(logits)].astype(np.float64)
    if logits.shape != reference.shape:
        return "refused"
    if not np.isfinite(logits).all():
        return "NaN"
    error = float(np.linalg.norm(logits - reference) / np.linalg.norm(reference))
    return f"{'ok' if error <= RIGHT_REL else 'wrong'} {error:.2g}"


def _ended(ran: ProbeResult) -> str:
    return f"{ran.outcome} {ran.detail.split(' ')[0]}".strip() if ran.outcome == "crash" else ran.outcome
