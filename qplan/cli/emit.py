"""``qplan emit``: plan under a budget, build the MNN model, prove it on the engine."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qplan.cli.console import err, out, progress_bar, say
from qplan.cli.tables import plan_table, verification_table
from qplan.errors import InputError, VerificationError
from qplan.formats import QuantFormat

if TYPE_CHECKING:
    from qplan.pipeline.emit import Emitted


class DynamicOptionChoice(StrEnum):
    """MNN's ``dynamic_option`` that the model ships with."""

    auto = "auto"
    zero = "0"
    two = "2"


def command(
    budget: Annotated[
        str, typer.Option(help="`int8`, `int4`, `fp16` (as large as that uniform export), `4.5bpw`, `300MB`, `60%`.")
    ] = "int8",
    run: Annotated[Path | None, typer.Option(help="Run folder.  [default: the latest in qplan-runs]")] = None,
    logits_bits: Annotated[
        int, typer.Option(help="Least width of the head and a tied embedding; 0 turns the logits rule off.")
    ] = 8,
    pin: Annotated[list[str] | None, typer.Option(help="PATTERN=FORMAT, e.g. `*.0.mlp.down_proj=fp16`.")] = None,
    min_bits: Annotated[list[str] | None, typer.Option(help="PATTERN=BITS, e.g. `*.o_proj=6`.")] = None,
    text: Annotated[
        str | None, typer.Option(help="What the model is judged on, as for --calib.  [default: held-out windows]")
    ] = None,
    tokens: Annotated[int, typer.Option(help="At most this many tokens of it.")] = 2048,
    threads: Annotated[int, typer.Option(help="Threads of the engine in measurements.")] = 1,
    dynamic_option: Annotated[
        DynamicOptionChoice,
        typer.Option(help="2: int8 activations with a scale per block, more exact and slower; auto if it pays."),
    ] = DynamicOptionChoice.auto,
    no_build: Annotated[bool, typer.Option("--no-build", help="Stop after plan.json and quant_config.json.")] = False,
    llmexport: Annotated[
        Path | None, typer.Option(help="A MNN checkout whose exporter to use.  [default: the PyPI package]")
    ] = None,
) -> None:
    """Plan under a budget, build the MNN model and prove it on the engine.

    Example: `qplan emit --budget 300MB --pin '*.0.mlp.down_proj=fp16'`
    """
    # torch and transformers take seconds to import: not for --help
    from qplan.pipeline.choose import PlanRules  # noqa: PLC0415
    from qplan.pipeline.emit import EmitOptions, run_emit  # noqa: PLC0415
    from qplan.pipeline.runs import Run  # noqa: PLC0415

    if threads < 1:
        msg = f"--threads {threads}: at least 1"
        raise InputError(msg)
    target = Run(run) if run is not None else Run.latest()
    if run is None:
        say(f"using the latest run, {target.folder}")
    rules = PlanRules(
        logits_bits=logits_bits,
        pins={pattern: QuantFormat.parse(name) for pattern, name in _pairs("--pin", pin or [])},
        min_bits={pattern: _bits(value) for pattern, value in _pairs("--min-bits", min_bits or [])},
    )
    options = EmitOptions(
        budget,
        rules,
        text,
        tokens,
        build=not no_build,
        llmexport=llmexport,
        threads=threads,
        dynamic_option=_OPTIONS[dynamic_option],
    )
    with progress_bar("FP32 reference") as progress:
        emitted = run_emit(options, target, say, progress, command_line())
    show(emitted)


_OPTIONS: dict[DynamicOptionChoice, Literal[0, 2] | None] = {
    DynamicOptionChoice.auto: None,
    DynamicOptionChoice.zero: 0,
    DynamicOptionChoice.two: 2,
}


def command_line() -> str:
    """This process's command, as a user would type it."""
    return shlex.join(["qplan", *sys.argv[1:]])


def show(emitted: Emitted) -> None:
    """Print what was made.

    Raises:
        VerificationError: the built model broke a promise.
    """
    out.print(plan_table(emitted.plan))
    if emitted.verification is not None:
        out.print(verification_table(emitted.verification))
        for check in emitted.verification.checks:
            mark = "[green]✓[/green]" if check.passed else "[bold red]✗[/bold red]"
            out.print(f"{mark} {check.name}: [dim]{check.detail}[/dim]")
    out.print(f"\nthe same plan with llmexport:\n  {emitted.export_command}", markup=False, soft_wrap=True)
    for problem in emitted.export_problems:
        err.print(f"note: {problem}", markup=False)
    if emitted.verification is not None:
        out.print(f"model:  {emitted.folder / 'model'}", markup=False, soft_wrap=True)
    out.print(f"report: {emitted.folder / 'report.html'}", markup=False, soft_wrap=True)
    if emitted.verification is not None and not emitted.verification.passed:
        failed = [check.name for check in emitted.verification.checks if not check.passed]
        msg = f"{len(failed)} promises were not kept: {'; '.join(failed)}. See {emitted.folder / 'report.html'}"
        raise VerificationError(msg)


def _pairs(option: str, values: list[str]) -> list[tuple[str, str]]:
    found = []
    for value in values:
        pattern, equals, right = value.rpartition("=")
        if not equals or not pattern or not right:
            msg = f"{option} {value!r}: write PATTERN=VALUE, e.g. '*.0.mlp.down_proj=fp16'"
            raise InputError(msg)
        found.append((pattern, right))
    return found


def _bits(text: str) -> int:
    if not text.isdigit():
        msg = f"--min-bits ...={text!r}: must be a whole number of bits"
        raise InputError(msg)
    return int(text)
