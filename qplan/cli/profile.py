"""``qplan profile``: how long this machine takes for every op shape and format."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from qplan.cli import panels
from qplan.cli.console import answer, out, progress_bar, say
from qplan.cli.documents import profile_document
from qplan.cli.modes import with_modes
from qplan.cli.rules import LatestRun, LlmExport, run_given
from qplan.cli.view import table_view
from qplan.jobs.options import ProfileOptions

if TYPE_CHECKING:
    from qplan.run.profile import DeviceProfile


@with_modes("profile")
def command(
    threads: Annotated[
        int,
        typer.Option(
            metavar="N", help="Engine threads; times with more than one are noisy.", rich_help_panel=panels.ENGINE
        ),
    ] = ProfileOptions.threads,
    prompt_tokens: Annotated[
        int, typer.Option(metavar="N", help="Tokens of the timed prefill.", rich_help_panel=panels.ENGINE)
    ] = ProfileOptions.prompt_tokens,
    rounds: Annotated[
        int,
        typer.Option(
            metavar="N", help="How often every model is timed; the minimum counts.", rich_help_panel=panels.ENGINE
        ),
    ] = ProfileOptions.rounds,
    llmexport: LlmExport = None,
    run: LatestRun = None,
) -> None:
    """Measure this machine: times of every op shape and format of a run's model, for limits in milliseconds.

    Examples:
        qplan profile
        qplan profile --threads 4 --rounds 5
        qplan emit --max-decode-ms 20
    """
    options = ProfileOptions(threads=threads, prompt_tokens=prompt_tokens, rounds=rounds)
    home = run_given(run)
    from qplan.jobs.checks import check_profile  # noqa: PLC0415 - NumPy and pyarrow: not for --help

    check_profile(home, llmexport)
    # torch takes seconds to import: not for a wrong word
    from qplan.jobs.profile import run_profile  # noqa: PLC0415

    with progress_bar("timing formats of ops", "models") as progress:
        measured = run_profile(home, options, llmexport, say, progress)
    answer(**profile_document(measured, home.device))
    out.print(_table(measured))
    next_command = shlex.join(["qplan", "emit", "--max-decode-ms", "MS", "--run", str(home.folder)])
    out.print(f"wrote {home.device}\nnext:  {next_command}", soft_wrap=True)


def _table(profile: DeviceProfile) -> Table:
    view = table_view(
        ("shape", "tensors", "format", "prefill, ms", "decode, ms"),
        left=("shape", "format"),
        heading=f"{profile.machine}, MNN {profile.engine}, threads {profile.threads}, memory {profile.memory}",
        note=f"all tensors of a shape together, against {profile.base}; the model in {profile.base}: prefill of "
        f"{profile.prompt_tokens} tokens {profile.base_prefill_ms:.2f} ms, decode of a token "
        f"{profile.base_decode_ms:.3f} ms",
        gap=3,
    )
    for op in sorted(profile.ops, key=lambda op: (-op.out_features * op.in_features, op.format)):
        if op.format != profile.base:
            shape = f"{op.out_features} x {op.in_features}"
            view.add_row(shape, str(op.tensors), op.format, f"{op.prefill_ms:+.2f}", f"{op.decode_ms:+.3f}")
    return view
