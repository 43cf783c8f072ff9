"""``qplan ladder``: FP32, FP16, INT8, INT4 and the plan on the engine, until one breaks, and where it breaks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qplan.cli import completion, panels
from qplan.cli.console import answer, out, progress_bar, say
from qplan.cli.documents import ladder_document
from qplan.cli.modes import with_modes
from qplan.cli.rules import LlmExport, existing_run
from qplan.cli.tidy import tidied
from qplan.cli.view import mark, table_view
from qplan.cli.words import is_plain
from qplan.errors import InputError, VerificationError
from qplan.run.folder import RunFolder
from qplan.run.plans import newest_built_plan
from qplan.settings import Memory
from qplan.verify.ladder import TOLERANCES, LadderOptions

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
            help="Text that rungs are judged on, as for analyze's --calib.",
            autocompletion=completion.calibrations,
            rich_help_panel=panels.JUDGING,
        ),
    ] = LadderOptions.text,
    tokens: Annotated[
        int, typer.Option(metavar="N", help="At most this many tokens of it.", rich_help_panel=panels.JUDGING)
    ] = LadderOptions.tokens,
    seq_len: Annotated[
        int, typer.Option(metavar="N", help="Tokens per sequence.", rich_help_panel=panels.JUDGING)
    ] = LadderOptions.seq_len,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUNG=NATS",
            help="KL to FP32 that a rung may reach: `int8=0.01`.",
            show_default=", ".join(f"{rung}={limit:g}" for rung, limit in TOLERANCES.items()),
            rich_help_panel=panels.JUDGING,
        ),
    ] = None,
    memory: Annotated[
        Memory,
        typer.Option(
            metavar="MEMORY",
            help="The engine's setting that rungs are judged with: `low` or `normal`.",
            rich_help_panel=panels.ENGINE,
        ),
    ] = LadderOptions.memory,
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
    home = tidied(RunFolder.for_model(model)) if run is None else existing_run(run)
    options = LadderOptions(
        model=model,
        text=text,
        tokens=tokens,
        seq_len=seq_len,
        memory=memory,
        plan=newest_built_plan(home),
        limits=dict(map(_limit, tolerance or [])),
        llmexport=llmexport,
    )
    from qplan.jobs.checks import check_ladder  # noqa: PLC0415 - NumPy and pyarrow: not for --help

    check_ladder(options)
    # torch and transformers take seconds to import: not for a wrong word
    from qplan.verify.climb import run_ladder  # noqa: PLC0415

    with progress_bar("FP32 reference", "sequences") as progress:
        climbed = run_ladder(options, say, progress)
    show(climbed)


def show(climbed: Climbed) -> None:
    """Print the rungs.

    Raises:
        VerificationError: a rung broke; says where.
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
            mark(holds=rung.holds),
        )
    out.print(view)
    if climbed.broke is None:
        return
    last, broke = climbed.rungs[-1], climbed.broke
    why = "the engine does not compute what torch computes with the same weights"
    if last.computes:
        why = f"it loses {last.kl_nats:.2e} nats per token, limit {last.limit_nats:g}"
    msg = (
        f"{last.name} breaks: {why}. The first output outside the tolerance is that of {broke.what}: "
        f"{broke.error_before:.1e} before, {broke.error_after:.1e} after ({broke.measure})"
    )
    raise VerificationError(msg)


def _limit(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        limit = float(value if is_plain(value) else "")
    except ValueError:
        msg = f"--tolerance {text!r}: write RUNG=NATS, e.g. int8=0.01"
        raise InputError(msg) from None
    return name, limit
