"""``qplan profile``: what this machine takes for every op shape and format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from qplan.cli.console import out, say
from qplan.cost.device import DeviceProfile
from qplan.errors import InputError


def command(
    run: Annotated[Path | None, typer.Option(help="Run folder.  [default: the latest in qplan-runs]")] = None,
    threads: Annotated[int, typer.Option(help="Threads of the engine; times of more than one are noisy.")] = 1,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the timed prefill.")] = 128,
    rounds: Annotated[int, typer.Option(help="Times that every model is timed, in turn; minima count.")] = 3,
    llmexport: Annotated[
        Path | None, typer.Option(help="A MNN checkout whose exporter to use.  [default: the PyPI package]")
    ] = None,
) -> None:
    """Measure this machine: times of every op shape and format of a run's model, for limits in milliseconds.

    Example: `qplan profile` and then `qplan emit --max-decode-ms 20`
    """
    # torch takes seconds to import: not for --help
    from qplan.pipeline.profile import ProfileOptions, run_profile  # noqa: PLC0415
    from qplan.pipeline.runs import Run  # noqa: PLC0415

    for option, value in (("--threads", threads), ("--prompt-tokens", prompt_tokens), ("--rounds", rounds)):
        if value < 1:
            msg = f"{option} {value}: at least 1"
            raise InputError(msg)
    home = Run(run) if run is not None else Run.latest()
    if run is None:
        say(f"using the latest run, {home.folder}")
    options = ProfileOptions(threads=threads, prompt_tokens=prompt_tokens, rounds=rounds)
    measured = run_profile(home, options, llmexport, say)
    out.print(_table(measured))
    out.print(f"wrote {home.device}\nnext: qplan emit --max-decode-ms MS --run {home.folder}", markup=False)


def _table(profile: DeviceProfile) -> Table:
    view = Table(
        title=f"{profile.machine}, MNN {profile.engine}, {profile.threads} thread, memory {profile.memory}",
        caption=f"all tensors of a shape together, against {profile.base}; the model in {profile.base}: prefill of "
        f"{profile.prompt_tokens} tokens {profile.base_prefill_ms:.2f} ms, decode of a token "
        f"{profile.base_decode_ms:.3f} ms",
        box=SIMPLE_HEAD,
        title_style="",
    )
    for column in ("shape", "tensors", "format", "prefill, ms", "decode, ms"):
        view.add_column(column, justify="left" if column in ("shape", "format") else "right", no_wrap=True)
    for op in sorted(profile.ops, key=lambda op: (-op.out_features * op.in_features, op.format)):
        if op.format != profile.base:
            shape = f"{op.out_features} x {op.in_features}"
            view.add_row(shape, str(op.tensors), op.format, f"{op.prefill_ms:+.2f}", f"{op.decode_ms:+.3f}")
    return view
