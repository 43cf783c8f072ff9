"""``qplan bench``: accuracy, speed and RAM of any MNN model folder."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from qplan.cli import completion, panels
from qplan.cli.console import answer, out, progress_bar, say
from qplan.cli.modes import with_modes
from qplan.cli.run import FolderArgument, ThreadsOption
from qplan.cli.view import View, table_view
from qplan.jobs.options import BenchOptions
from qplan.settings import WindowKind

if TYPE_CHECKING:
    from qplan.verify.folder import FolderMeasured


@with_modes("bench")
def command(
    folder: FolderArgument,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Hugging Face model to compare with, in FP32: a local folder or hub id.",
            show_default="nothing is compared",
            autocompletion=completion.models,
            rich_help_panel=panels.JUDGING,
        ),
    ] = None,
    text: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Text to judge on, as for analyze's --calib.",
            autocompletion=completion.calibrations,
            rich_help_panel=panels.JUDGING,
        ),
    ] = BenchOptions.text,
    tokens: Annotated[
        int, typer.Option(metavar="N", help="At most this many tokens of it.", rich_help_panel=panels.JUDGING)
    ] = BenchOptions.tokens,
    seq_len: Annotated[
        int, typer.Option(metavar="N", help="Tokens per sequence, at most.", rich_help_panel=panels.JUDGING)
    ] = BenchOptions.seq_len,
    windows: Annotated[
        WindowKind,
        typer.Option(
            help="How the text is cut: rows of --seq-len tokens, or the windows of MNN's ppl_eval.",
            rich_help_panel=panels.JUDGING,
        ),
    ] = BenchOptions.windows,
    threads: ThreadsOption = None,
) -> None:
    """Measure an MNN model on the engine: speed, RAM, perplexity, and with a reference how far it is from FP32.

    The folder is checked first, and runs with its own settings, in a process of its own.

    Examples:
        qplan bench my-export
        qplan bench my-export --reference Qwen/Qwen2.5-0.5B-Instruct
        qplan bench qplan-runs/my-model/int4/model --reference models/mine --text wiki.txt --tokens 16384
        qplan bench my-export --text wiki/prompt.txt --windows ppl_eval
    """
    options = BenchOptions(
        folder=folder,
        reference=reference,
        text=text,
        tokens=tokens,
        seq_len=seq_len,
        windows=windows,
        threads=threads,
    )
    from qplan.jobs.bench import check_bench, run_bench  # noqa: PLC0415 - NumPy: not for --help

    check_bench(options)
    with progress_bar("measuring logits", "sequences") as progress:
        found = run_bench(options, say, progress)
    answer(folder=str(folder), reference=reference, **asdict(found))
    out.print(bench_table(found, str(folder), reference))


def bench_table(found: FolderMeasured, folder: str, reference: str | None) -> View:
    """What was measured, a line each."""
    from qplan.report import notation  # noqa: PLC0415 - not for --help

    threads = notation.threads(found.threads)
    settings = f"MNN {found.engine}, memory {found.memory}, precision {found.precision}, {threads}"
    cut = "windows of ppl_eval," if found.windows == "ppl_eval" else "sequences of"
    judged = f"{found.tokens:,} tokens of {notation.place(found.text)} in {cut} {found.seq_len}"
    against = [] if reference is None else [f"FP32: {reference}"]
    note = "\n".join([settings, judged, *against])
    view = table_view(("", ""), left=("",), heading=folder, note=note)
    view.show_header = False
    view.add_row("files", notation.size(found.file_bytes))
    view.add_row("RAM after loading", notation.size(found.ram_bytes))
    view.add_row(f"prefill of {found.prompt_tokens} tokens", f"{notation.speed(found.prefill_tokens_per_s)} tokens/s")
    view.add_row(f"decode of {found.decode_tokens} tokens", f"{notation.speed(found.decode_tokens_per_s)} tokens/s")
    view.add_row("perplexity", notation.perplexity(found.perplexity))
    if found.agreement is None:
        return view
    near = found.agreement
    view.add_row("perplexity of FP32", notation.perplexity(near.reference_perplexity))
    view.add_row("KL to FP32, mean", f"{notation.loss(near.kl_nats)} nats/token")
    view.add_row("  99th percentile", f"{notation.loss(near.kl_p99_nats)} nats/token")
    view.add_row("  99.9th percentile", f"{notation.loss(near.kl_p999_nats)} nats/token")
    view.add_row("top-1 agreement", notation.percent(near.top1))
    view.add_row("top-5 agreement", notation.percent(near.top5))
    return view
