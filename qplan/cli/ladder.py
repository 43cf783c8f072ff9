"""``qplan ladder``: FP32, FP16, INT8, INT4 and the plan on the engine, until one breaks, and where it breaks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qplan.cli import completion, panels
from qplan.cli.console import answer, out, progress_bar, say
from qplan.cli.documents import ladder_document
from qplan.cli.modes import with_modes
from qplan.cli.rules import LlmExport
from qplan.cli.view import table_view
from qplan.errors import InputError, VerificationError

if TYPE_CHECKING:
    from qplan.verify.climb import Climbed


@with_modes("ladder")
def command(
    model: Annotated[
        str,
        typer.Argument(help="Local folder or hub id of a causal language model.", autocompletion=completion.models),
    ],
    text: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="What rungs are judged on, as for analyze's --calib.",
            autocompletion=completion.calibrations,
            rich_help_panel=panels.JUDGING,
        ),
    ] = "python-stdlib",
    tokens: Annotated[
        int, typer.Option(metavar="N", help="At most this many tokens of it.", rich_help_panel=panels.JUDGING)
    ] = 1024,
    seq_len: Annotated[
        int, typer.Option(metavar="N", help="Tokens per sequence.", rich_help_panel=panels.JUDGING)
    ] = 128,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUNG=NATS",
            help="KL to FP32 that a rung may reach: `int8=0.01`.",
            show_default="fp32=1e-4, fp16=1e-3, int8=0.02, int4=0.5, plan=0.5",
            rich_help_panel=panels.JUDGING,
        ),
    ] = None,
    memory: Annotated[
        str,
        typer.Option(
            metavar="MEMORY",
            help="The engine's setting that rungs are judged with: `low` or `normal`.",
            autocompletion=lambda: ["low", "normal"],
            rich_help_panel=panels.ENGINE,
        ),
    ] = "low",
    llmexport: LlmExport = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Run folder whose newest plan is the last rung.",
            show_default="the model's, if any",
            autocompletion=completion.runs,
            rich_help_panel=panels.FOLDERS,
        ),
    ] = None,
) -> None:
    """Climb from FP32 down to the plan on the engine; stop at the first rung that breaks and find the layer.

    Examples:
        qplan ladder Qwen/Qwen2.5-0.5B-Instruct
        qplan ladder models/mine --tolerance int8=0.01 --memory normal
    """
    # torch and transformers take seconds to import: not for --help
    from qplan.run.folder import RunFolder  # noqa: PLC0415
    from qplan.run.plans import newest_built_plan  # noqa: PLC0415
    from qplan.verify.climb import LadderOptions, run_ladder  # noqa: PLC0415

    if memory not in {"low", "normal"}:
        msg = f"--memory {memory}: low or normal"
        raise InputError(msg)
    if run is not None and not run.is_dir():
        msg = f"--run {run}: no such folder"
        raise InputError(msg)
    limits = dict(map(_limit, tolerance or []))
    plan = newest_built_plan(RunFolder(run) if run is not None else RunFolder.for_model(model))
    options = LadderOptions(model, text, tokens, seq_len, memory, plan, limits, llmexport)
    with progress_bar("FP32 reference") as progress:
        climbed = run_ladder(options, say, progress)
    show(climbed)


def show(climbed: Climbed) -> None:
    """Print the rungs.

    Raises:
        VerificationError: one broke; says where.
    """
    answer(**ladder_document(climbed))
    view = table_view(
        ("rung", "MB", "logits", "KL", "limit", "top-1", "perplexity", ""),
        left=("rung",),
        heading="The ladder on the engine: KL to FP32 in nats per token",
        note="logits: relative error against torch with the same weights.\n"
        f"Text: {climbed.text}; FP32 perplexity {climbed.reference_perplexity:.2f}",
        gap=3,
    )
    for rung in climbed.rungs:
        view.add_row(
            rung.name,
            f"{rung.bytes / 1e6:,.2f}",
            f"{rung.exact_error:.1e}",
            f"{rung.kl_nats:.2e}",
            f"{rung.limit_nats:.0e}",
            f"{rung.top1:.4f}",
            f"{rung.perplexity:.2f}",
            "[green]✓[/green]" if rung.holds else "[bold red]✗[/bold red]",
        )
    out.print(view)
    if climbed.broke is None:
        return
    last, broke = climbed.rungs[-1], climbed.broke
    why = "the engine computes something else than torch with the same weights"
    if last.computes:
        why = f"it loses {last.kl_nats:.2e} nats per token, limit {last.limit_nats:g}"
    msg = (
        f"{last.name} breaks: {why}. The first output that leaves the tolerance is that of {broke.what}: "
        f"{broke.error_before:.1e} before, {broke.error_after:.1e} after ({broke.measure})"
    )
    raise VerificationError(msg)


def _limit(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        msg = f"--tolerance {text!r}: write RUNG=NATS, e.g. int8=0.01"
        raise InputError(msg) from None
