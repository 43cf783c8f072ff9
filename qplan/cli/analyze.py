"""``qplan analyze``: find what every format costs in every tensor."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qplan.cli.console import out, progress_bar, say
from qplan.cli.tables import sensitivity_table
from qplan.errors import InputError
from qplan.formats import DEFAULT_FORMATS, parse_formats

_DEFAULT_FORMATS = ",".join(fmt.name for fmt in DEFAULT_FORMATS)


class MemoryChoice(StrEnum):
    """MNN's ``memory`` setting that the model will run with."""

    low = "low"
    normal = "normal"


class AnalysedOption(StrEnum):
    """MNN's ``dynamic_option`` that losses are those of."""

    zero = "0"
    two = "2"


class ModeChoice(StrEnum):
    """How losses are found."""

    auto = "auto"
    gradient = "gradient"
    measured = "measured"


class FoldChoice(StrEnum):
    """Whether scales may move between neighbouring weights before anything is quantised."""

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


def command(
    model: Annotated[str, typer.Argument(help="Local folder or hub id of a causal language model.")],
    calib: Annotated[
        str, typer.Option(help="A name from calib/, a .txt, .jsonl or .parquet file, or a `datasets` id or folder.")
    ] = "python-stdlib",
    samples: Annotated[int, typer.Option(help="Calibration sequences.")] = 16,
    seq_len: Annotated[int, typer.Option(help="Tokens per sequence.")] = 256,
    seed: Annotated[int, typer.Option(help="Chooses the sequences.")] = 0,
    formats: Annotated[
        str, typer.Option(help="Formats to measure, e.g. `fp16,int8,int4-b32`; blocks and symmetry are part of a name.")
    ] = _DEFAULT_FORMATS,
    memory: Annotated[MemoryChoice, typer.Option(help="The engine's setting: low has int8 activations.")] = (
        MemoryChoice.low
    ),
    dynamic_option: Annotated[
        AnalysedOption, typer.Option(help="The engine's setting: 2 has int8 activations with a scale per block.")
    ] = AnalysedOption.zero,
    mode: Annotated[
        ModeChoice,
        typer.Option(
            help="gradient estimates every loss from one backward pass, measured runs the model with every format, "
            "auto estimates and measures what plans hang on."
        ),
    ] = ModeChoice.auto,
    rounding: Annotated[
        RoundingChoice,
        typer.Option(
            help="auto chooses between gptq, search and rtn; rtn rounds to nearest like MNN's exporter, hqq is the "
            "method of its --hqq."
        ),
    ] = RoundingChoice.auto,
    fold: Annotated[
        FoldChoice,
        typer.Option(help="auto moves channel scales between weights, the same function, where it lowers the loss."),
    ] = FoldChoice.auto,
    fit_tokens: Annotated[int, typer.Option(help="At most this many tokens that rounding is fitted to.")] = 32768,
    jobs: Annotated[
        int | None, typer.Option(help="Tensors that are rounded at a time.  [default: one per processor; 1 on a GPU]")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences per pass; fewer need less memory.")] = 4,
    run: Annotated[Path | None, typer.Option(help="Run folder.  [default: qplan-runs/<model>]")] = None,
    device: Annotated[str, typer.Option(help="`cpu`, `cuda` or `mps`.")] = "cpu",
    dtype: Annotated[
        DTypeChoice, typer.Option(help="Half precision for `--mode gradient`, if the checkpoint is stored in it.")
    ] = DTypeChoice.float32,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away an earlier run with other inputs.")] = False,
) -> None:
    """Find the loss of every format of every linear tensor.

    Can be killed at any moment: the same command goes on where it was.

    Example: `qplan analyze Qwen/Qwen2.5-0.5B-Instruct --calib my-text.jsonl`
    """
    # torch and transformers take seconds to import: not for --help
    from qplan.pipeline.analyze import AnalyzeOptions, run_analyze  # noqa: PLC0415
    from qplan.pipeline.runs import Run  # noqa: PLC0415
    from qplan.sensitivity.round_all import default_jobs  # noqa: PLC0415

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
        dynamic_option=2 if dynamic_option is AnalysedOption.two else 0,
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
    target = Run(run) if run is not None else Run.for_model(model)
    with progress_bar("analyzing") as progress:
        table = run_analyze(options, target, say, progress)
    for note in table.notes:
        say(note)
    out.print(sensitivity_table(table))
    out.print(f"\nwrote {target.sensitivity}\nnext: qplan emit --budget int8 --run {target.folder}", markup=False)
