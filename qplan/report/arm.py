"""The proof on emulated ARM processors as rows, for the terminal, the page and Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qplan.report import notation
from qplan.run.verification import ArmRun


@dataclass(frozen=True)
class ArmRow:
    """One processor at one precision; losses in their notation."""

    processor: str
    precision: str
    prefill: str
    prefill_predicted: str
    """In torch, with the processor's arithmetic."""
    prefill_here: str
    """On this machine's engine."""
    top1: str
    decode: str
    decode_predicted: str
    decode_here: str


def arm_rows(runs: Iterable[ArmRun]) -> tuple[ArmRow, ...]:
    """A row for each processor and precision, in the order of the runs."""
    found: dict[tuple[str, str], dict[str, ArmRun]] = {}
    for run in runs:
        found.setdefault((run.processor, run.precision), {})[run.path] = run
    return tuple(
        _row(processor, precision, paths.get("prefill"), paths.get("decode"))
        for (processor, precision), paths in found.items()
    )


def _row(processor: str, precision: str, prefill: ArmRun | None, decode: ArmRun | None) -> ArmRow:
    def loss(run: ArmRun | None, part: Callable[[ArmRun], float | None]) -> str:
        return notation.loss(None if run is None else part(run))

    return ArmRow(
        processor=processor,
        precision=precision,
        prefill=loss(prefill, lambda run: run.accuracy.kl_nats),
        prefill_predicted=loss(prefill, lambda run: run.predicted_nats),
        prefill_here=loss(prefill, lambda run: run.here_nats),
        top1=notation.percent(None if prefill is None else prefill.accuracy.top1),
        decode=loss(decode, lambda run: run.accuracy.kl_nats),
        decode_predicted=loss(decode, lambda run: run.predicted_nats),
        decode_here=loss(decode, lambda run: run.here_nats),
    )
