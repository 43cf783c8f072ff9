"""``qplan profile``: how long this machine takes for every op shape and format."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from qplan.cli import completion, panels
from qplan.cli.console import answer, out, progress_bar, say
from qplan.cli.documents import profile_document
from qplan.cli.modes import with_modes
from qplan.cli.rules import LatestRun, LlmExport, run_given
from qplan.cli.view import table_view
from qplan.errors import InputError
from qplan.jobs.options import ProfileOptions

if TYPE_CHECKING:
    from qplan.run.folder import RunFolder
    from qplan.run.profile import DeviceProfile

DEVICE_TARGET = "phone"
"""Of another device, unless the user says which."""


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
    models: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Measure nothing: build the models that another device is timed with by MNN's llm_bench.",
            show_default="this machine is measured",
            rich_help_panel=panels.DEVICE,
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Measure nothing: read the table that llm_bench printed of those models.",
            show_default="this machine is measured",
            rich_help_panel=panels.DEVICE,
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="TARGET",
            help="The other device's kind of processor.",
            autocompletion=completion.targets,
            rich_help_panel=panels.DEVICE,
        ),
    ] = DEVICE_TARGET,
    llmexport: LlmExport = None,
    run: LatestRun = None,
) -> None:
    """Measure this machine: times of every op shape and format of a run's model, for limits in milliseconds.

    For another device, --models builds what MNN's llm_bench is to time there, and --from reads what it printed.

    Examples:
        qplan profile
        qplan profile --threads 4 --rounds 5
        qplan profile --models to-time
        qplan profile --from pixel.md
        qplan emit --max-decode-ms 20
    """
    options = ProfileOptions(threads=threads, prompt_tokens=prompt_tokens, rounds=rounds)
    check_device(models, source, target, options)
    home = run_given(run)
    if source is not None:
        _import(home, source, target)
        return
    from qplan.jobs.checks import check_profile  # noqa: PLC0415 - NumPy and pyarrow: not for --help

    check_profile(home, llmexport)
    if models is not None:
        _build(home, models, target, llmexport)
        return
    # torch takes seconds to import: not for a wrong word
    from qplan.jobs.profile import run_profile  # noqa: PLC0415

    with progress_bar("timing formats of ops", "models") as progress:
        measured = run_profile(home, options, llmexport, say, progress)
    _tell(measured, home)


def check_device(models: Path | None, source: Path | None, target: str, options: ProfileOptions) -> None:
    """Refuse options that say nothing together.

    Raises:
        InputError: an unknown target, both ways at once, or options of one way beside the other.
    """
    from qplan.cost.target import find_target  # noqa: PLC0415 - not for --help

    find_target(target)
    given = [option for option, value in (("--models", models), ("--from", source)) if value is not None]
    if len(given) > 1:
        msg = "--models and --from: build models first, time them on the device, then read the table; give one of them"
        raise InputError(msg)
    if not given and target != DEVICE_TARGET:
        msg = f"--target {target}: this machine's processor is measured as it is; give it with --models or --from"
        raise InputError(msg)
    if given and options != ProfileOptions():
        msg = f"{given[0]}: nothing is measured here; give --threads, --prompt-tokens and --rounds to llm_bench"
        raise InputError(msg)


def _import(home: RunFolder, source: Path, target: str) -> None:
    from qplan.jobs.phone_times import import_profile  # noqa: PLC0415 - torch takes seconds to import

    _tell(import_profile(home, source, target), home)


def _build(home: RunFolder, models: Path, target: str, llmexport: Path | None) -> None:
    from qplan.jobs.phone_times import build_timed_models  # noqa: PLC0415 - torch takes seconds to import

    with progress_bar("building models", "models") as progress:
        built = build_timed_models(home, models, target, llmexport=llmexport, say=say, progress=progress)
    answer(built=[str(folder) for folder in built])
    listed = ",".join(f"{folder.name}/config.json" for folder in built)
    out.print(
        f"wrote {models}: {len(built)} models with random weights\n"
        f"next, on the device, in a copy of that folder:  llm_bench -a cpu -t 4 -p 128 -n 32 -m {listed}\n"
        f"then, with what it printed:  qplan profile --from FILE --target {target} --run {home.folder}",
        soft_wrap=True,
    )


def _tell(measured: DeviceProfile, home: RunFolder) -> None:
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
