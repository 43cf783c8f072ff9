"""``qplan analyze``: find what every format costs in every tensor."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from qplan.cli import completion, panels
from qplan.cli.console import answer, out, say, work_bar
from qplan.cli.documents import analysis_document
from qplan.cli.forecast import DryRun, check_alone, show_forecast
from qplan.cli.modes import with_modes
from qplan.cli.ray import RayOption
from qplan.cli.rules import MaxContext, MaxMemory, memory_limit
from qplan.cli.tidy import tidied
from qplan.errors import InputError
from qplan.formats import parse_formats
from qplan.jobs.options import (
    FEWER_FIT_TOKENS,
    FIT_TOKENS,
    LARGE,
    LOGITS_BYTES,
    MEASURED_PASSES,
    MOST_SEQUENCES,
    SEQ_LEN,
    AnalyzeOptions,
)
from qplan.roundings import HELP, ROUNDINGS
from qplan.run.folder import RunFolder
from qplan.settings import DTypeName, DynamicOption, Effort, Folding, Memory, Mode


@with_modes("analyze")
def command(
    model: Annotated[
        str,
        typer.Argument(help="Local folder or hub id of a causal language model.", autocompletion=completion.models),
    ],
    calib: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="A name from calib/, a .txt, .jsonl or .parquet file, or a `datasets` id or folder.",
            autocompletion=completion.calibrations,
            rich_help_panel=panels.TEXT,
        ),
    ] = AnalyzeOptions.calib,
    samples: Annotated[
        int, typer.Option(metavar="N", help="Calibration sequences.", rich_help_panel=panels.TEXT)
    ] = AnalyzeOptions.samples,
    seq_len: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens per sequence.",
            show_default=f"{SEQ_LEN}, or the model's context",
            rich_help_panel=panels.TEXT,
        ),
    ] = AnalyzeOptions.seq_len,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Chooses the sequences.", rich_help_panel=panels.TEXT)
    ] = AnalyzeOptions.seed,
    formats: Annotated[
        str,
        typer.Option(
            metavar="FORMATS",
            help="Formats to measure, e.g. `fp16,int8,int4-b32`; blocks and symmetry are part of a name.",
            show_default="fp16, and 8, 6, 5, 4, 3, 2 bits in blocks of 64 and in whole rows",
            rich_help_panel=panels.LOSSES,
        ),
    ] = ",".join(fmt.name for fmt in AnalyzeOptions.formats),
    effort: Annotated[
        Effort,
        typer.Option(
            help="How much work: quick takes one pass, default then measures what plans hang on, within "
            f"{MEASURED_PASSES:g} pass, thorough rounds and measures everything.",
            rich_help_panel=panels.LOSSES,
        ),
    ] = AnalyzeOptions.effort,
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="For developers: gradient estimates every loss from one backward pass, measured runs the model with "
            "every format, auto estimates, then measures what plans depend on; all round every format whole first.",
            hidden=True,
            rich_help_panel=panels.LOSSES,
        ),
    ] = AnalyzeOptions.mode,
    memory: Annotated[
        Memory,
        typer.Option(help="The engine's setting; low computes with int8 activations.", rich_help_panel=panels.LOSSES),
    ] = AnalyzeOptions.memory,
    dynamic_option: Annotated[
        DynamicOption,
        typer.Option(
            help="The engine's setting; 2 gives int8 activations a scale per block.", rich_help_panel=panels.LOSSES
        ),
    ] = AnalyzeOptions.dynamic_option,
    rounding: Annotated[
        str,
        typer.Option(
            metavar=f"[{'|'.join(ROUNDINGS)}]",
            help=f"{HELP}.",
            autocompletion=completion.roundings,
            rich_help_panel=panels.WEIGHTS,
        ),
    ] = AnalyzeOptions.rounding,
    fold: Annotated[
        Folding,
        typer.Option(
            help="auto moves channel scales between weights where that lowers the loss, without changing the function; "
            "trained finds them on the loss of the whole model in 8 bits.",
            rich_help_panel=panels.WEIGHTS,
        ),
    ] = AnalyzeOptions.fold,
    fit_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Fit rounding to at most this many tokens.",
            show_default=f"{FIT_TOKENS}; {FEWER_FIT_TOKENS} from {LARGE / 1e9:.2g} billion parameters on, if sampled",
            rich_help_panel=panels.WEIGHTS,
        ),
    ] = AnalyzeOptions.fit_tokens,
    max_context: MaxContext = AnalyzeOptions.max_context,
    llmexport: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The MNN checkout that emit will export with; the model's settings are judged by it.",
            show_default="the PyPI package",
            rich_help_panel=panels.ENGINE,
        ),
    ] = AnalyzeOptions.llmexport,
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tensors to round at a time.",
            show_default="one per processor; 1 on a GPU",
            rich_help_panel=panels.MACHINE,
        ),
    ] = AnalyzeOptions.jobs,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Sequences per pass; fewer need less memory.",
            show_default=f"{MOST_SEQUENCES}, or as many as have {LOGITS_BYTES / 1e6:.0f} MB of logits",
            rich_help_panel=panels.MACHINE,
        ),
    ] = AnalyzeOptions.batch_size,
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            help="`cpu`, `cuda` or `mps`.",
            autocompletion=lambda: ["cpu", "cuda", "mps"],
            rich_help_panel=panels.MACHINE,
        ),
    ] = AnalyzeOptions.device,
    dtype: Annotated[
        DTypeName,
        typer.Option(
            help="Half precision for `--mode gradient`, if the checkpoint is stored in it.",
            rich_help_panel=panels.MACHINE,
        ),
    ] = AnalyzeOptions.dtype,
    ray: RayOption = AnalyzeOptions.ray,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Run folder.",
            show_default="qplan-runs/<model>",
            autocompletion=completion.runs,
            rich_help_panel=panels.FOLDERS,
        ),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Discard an earlier run with other inputs.", rich_help_panel=panels.FOLDERS),
    ] = AnalyzeOptions.restart,
    max_memory: MaxMemory = None,
    dry_run: DryRun = False,
) -> None:
    """Find the loss of every format of every linear tensor.

    It can be killed at any moment: the same command resumes where it stopped.

    Examples:
        qplan analyze Qwen/Qwen2.5-0.5B-Instruct --calib my-text.jsonl
        qplan analyze models/mine --effort quick
        qplan analyze models/mine --formats int8,int4,int3
    """
    options = AnalyzeOptions(
        model=model,
        calib=calib,
        samples=samples,
        seq_len=seq_len,
        seed=seed,
        formats=parse_formats(formats),
        memory=memory,
        dynamic_option=dynamic_option,
        effort=effort,
        mode=mode,
        rounding=rounding,
        fold=fold,
        fit_tokens=fit_tokens,
        max_context=max_context,
        llmexport=llmexport,
        jobs=jobs,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        ray=ray,
        restart=restart,
        max_memory_bytes=memory_limit(max_memory),
    )
    from qplan.jobs.checks import check_analyze  # noqa: PLC0415 - NumPy and pyarrow: not for --help

    if dry_run:
        check_alone(ray)
    folder = RunFolder(run) if run is not None else RunFolder.for_model(model)
    folder.check_place()
    check_analyze(options)
    # torch and transformers take seconds to import: not for a wrong word
    from qplan.cli.tables import sensitivity_table  # noqa: PLC0415
    from qplan.jobs.analyze import run_analyze  # noqa: PLC0415

    if dry_run:
        _forecast(options, folder)
        return
    target = tidied(folder)
    told: list[str] = []

    def tell(message: str) -> None:
        told.append(message)
        say(message)

    with work_bar("analyzing") as progress:
        table = run_analyze(options, target, tell, progress)
    for note in map(str, table.notes):
        if note not in told:
            say(note)
    answer(**analysis_document(table, target.sensitivity))
    out.print(sensitivity_table(table))
    next_command = shlex.join(["qplan", "emit", "--budget", "int8", "--run", str(target.folder)])
    out.print(f"wrote {target.sensitivity}\nnext:  {next_command}", soft_wrap=True)


def _forecast(options: AnalyzeOptions, run: RunFolder) -> None:
    """Print what an analysis takes.

    Raises:
        InputError: nothing is known about this one, it would be refused, or this machine has too little memory for it.
        StorageError: it has too little room on the disk.
    """
    from qplan.jobs.expect import expect_analysis  # noqa: PLC0415 - not for --help
    from qplan.jobs.model_context import check_context  # noqa: PLC0415

    check_context(options)
    outlook = expect_analysis(options, run, measure=True)
    if outlook is None:
        msg = (
            "--dry-run knows what the efforts quick and default take, on the CPU; leave --effort thorough, modes and "
            "other devices out"
        )
        raise InputError(msg)
    show_forecast(outlook)
