"""``qplan analyze``: find what every format costs in every tensor."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qplan.cli import completion, panels
from qplan.cli.console import answer, out, progress_bar, say
from qplan.cli.documents import analysis_document
from qplan.cli.modes import with_modes
from qplan.errors import InputError
from qplan.formats import DEFAULT_FORMATS, parse_formats

_DEFAULT_FORMATS = ",".join(fmt.name for fmt in DEFAULT_FORMATS)


class MemoryChoice(StrEnum):
    """MNN's ``memory`` setting that the model will run with."""

    low = "low"
    normal = "normal"


class AnalyzedOption(StrEnum):
    """MNN's ``dynamic_option`` that losses are those of."""

    zero = "0"
    two = "2"


class ModeChoice(StrEnum):
    """How losses are found."""

    auto = "auto"
    gradient = "gradient"
    measured = "measured"


class FoldChoice(StrEnum):
    """Whether scales may move between neighboring weights before anything is quantized."""

    auto = "auto"
    off = "off"


class RoundingChoice(StrEnum):
    """How the integers of a format are chosen."""

    auto = "auto"
    gptq = "gptq"
    search = "search"
    hqq = "hqq"
    rtn = "rtn"


class DTypeChoice(StrEnum):
    """What the model computes in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


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
    ] = "python-stdlib",
    samples: Annotated[int, typer.Option(metavar="N", help="Calibration sequences.", rich_help_panel=panels.TEXT)] = 16,
    seq_len: Annotated[int, typer.Option(metavar="N", help="Tokens per sequence.", rich_help_panel=panels.TEXT)] = 256,
    seed: Annotated[int, typer.Option(metavar="N", help="Chooses the sequences.", rich_help_panel=panels.TEXT)] = 0,
    formats: Annotated[
        str,
        typer.Option(
            metavar="FORMATS",
            help="Formats to measure, e.g. `fp16,int8,int4-b32`; blocks and symmetry are part of a name.",
            show_default="fp16, and 8, 6, 5, 4, 3, 2 bits in blocks of 64 and in whole rows",
            rich_help_panel=panels.LOSSES,
        ),
    ] = _DEFAULT_FORMATS,
    mode: Annotated[
        ModeChoice,
        typer.Option(
            help="gradient estimates every loss from one backward pass, measured runs the model with every format, "
            "auto estimates and measures what plans hang on.",
            rich_help_panel=panels.LOSSES,
        ),
    ] = ModeChoice.auto,
    memory: Annotated[
        MemoryChoice,
        typer.Option(help="The engine's setting: low has int8 activations.", rich_help_panel=panels.LOSSES),
    ] = MemoryChoice.low,
    dynamic_option: Annotated[
        AnalyzedOption,
        typer.Option(
            help="The engine's setting: 2 has int8 activations with a scale per block.", rich_help_panel=panels.LOSSES
        ),
    ] = AnalyzedOption.zero,
    rounding: Annotated[
        RoundingChoice,
        typer.Option(
            help="auto chooses between gptq, search and rtn; rtn rounds to nearest like MNN's exporter, hqq is the "
            "method of its --hqq.",
            rich_help_panel=panels.WEIGHTS,
        ),
    ] = RoundingChoice.auto,
    fold: Annotated[
        FoldChoice,
        typer.Option(
            help="auto moves channel scales between weights, the same function, where it lowers the loss.",
            rich_help_panel=panels.WEIGHTS,
        ),
    ] = FoldChoice.auto,
    fit_tokens: Annotated[
        int,
        typer.Option(
            metavar="N", help="At most this many tokens that rounding is fitted to.", rich_help_panel=panels.WEIGHTS
        ),
    ] = 32768,
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tensors that are rounded at a time.",
            show_default="one per processor; 1 on a GPU",
            rich_help_panel=panels.MACHINE,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Sequences per pass; fewer need less memory.",
            show_default="4, or as many as have 671 MB of logits",
            rich_help_panel=panels.MACHINE,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            help="`cpu`, `cuda` or `mps`.",
            autocompletion=lambda: ["cpu", "cuda", "mps"],
            rich_help_panel=panels.MACHINE,
        ),
    ] = "cpu",
    dtype: Annotated[
        DTypeChoice,
        typer.Option(
            help="Half precision for `--mode gradient`, if the checkpoint is stored in it.",
            rich_help_panel=panels.MACHINE,
        ),
    ] = DTypeChoice.float32,
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
        typer.Option("--restart", help="Throw away an earlier run with other inputs.", rich_help_panel=panels.FOLDERS),
    ] = False,
) -> None:
    """Find the loss of every format of every linear tensor.

    Can be killed at any moment: the same command goes on where it was.

    Examples:
        qplan analyze Qwen/Qwen2.5-0.5B-Instruct --calib my-text.jsonl
        qplan analyze models/mine --mode gradient --dtype bfloat16
    """
    # torch and transformers take seconds to import: not for --help
    from qplan.cli.tables import sensitivity_table  # noqa: PLC0415
    from qplan.jobs.analyze import AnalyzeOptions, run_analyze  # noqa: PLC0415
    from qplan.quantize.round_all import default_jobs  # noqa: PLC0415
    from qplan.run.folder import RunFolder  # noqa: PLC0415

    for option, value in (("--batch-size", batch_size), ("--fit-tokens", fit_tokens), ("--jobs", jobs)):
        if value is not None and value < 1:
            msg = f"{option} {value}: at least 1"
            raise InputError(msg)
    options = AnalyzeOptions(
        model=model,
        calib=calib,
        samples=samples,
        seq_len=seq_len,
        seed=seed,
        formats=parse_formats(formats),
        memory=memory.value,
        dynamic_option=2 if dynamic_option is AnalyzedOption.two else 0,
        mode=mode.value,
        rounding=rounding.value,
        fold=fold.value,
        fit_tokens=fit_tokens,
        jobs=jobs or (default_jobs() if device == "cpu" else 1),
        batch_size=batch_size,
        device=device,
        dtype=dtype.value,
        restart=restart,
    )
    target = RunFolder(run) if run is not None else RunFolder.for_model(model)
    told: list[str] = []

    def tell(message: str) -> None:
        told.append(message)
        say(message)

    with progress_bar("analyzing") as progress:
        table = run_analyze(options, target, tell, progress)
    for note in map(str, table.notes):
        if note not in told:
            say(note)
    answer(**analysis_document(table, target.sensitivity))
    out.print(sensitivity_table(table))
    next_command = shlex.join(["qplan", "emit", "--budget", "int8", "--run", str(target.folder)])
    out.print(f"wrote {target.sensitivity}\nnext:  {next_command}", markup=False, soft_wrap=True)
