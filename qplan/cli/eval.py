"""``qplan eval``: tasks of lm-evaluation-harness on any MNN model folder."""

from __future__ import annotations

import os
from contextlib import ExitStack, redirect_stderr
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qplan.cli import completion, panels
from qplan.cli.console import answer, out, say
from qplan.cli.modes import with_modes
from qplan.cli.run import FolderArgument, ThreadsOption
from qplan.cli.view import View, table_view
from qplan.jobs.options import EvalOptions

if TYPE_CHECKING:
    from qplan.harness.scores import Value
    from qplan.jobs.evaluate import Evaluated


@with_modes("eval")
def command(
    folder: FolderArgument,
    tasks: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Tasks, groups or tags of the harness, with commas between them; * stands for any characters.",
            rich_help_panel=panels.JUDGING,
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Hugging Face model that runs the same tasks in FP32: a local folder or hub id.",
            show_default="nothing is compared",
            autocompletion=completion.models,
            rich_help_panel=panels.JUDGING,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="At most this many samples of each task: for trying out, since errors grow.",
            show_default="all",
            rich_help_panel=panels.JUDGING,
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Solved examples in each prompt.",
            show_default="the task's own number",
            rich_help_panel=panels.JUDGING,
        ),
    ] = None,
    include_path: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of task files in the harness's format, besides its own.",
            show_default="the harness's own tasks alone",
            rich_help_panel=panels.JUDGING,
        ),
    ] = None,
    threads: ThreadsOption = None,
) -> None:
    """Run tasks of lm-evaluation-harness on an MNN model, and on the Hugging Face model that it was made from.

    The harness is an optional part: pip install 'qplan[eval]'. Data of its tasks come from the Hugging Face hub. The
    folder is checked first, and runs with its own settings and its own tokenizer, in a process of its own.

    Examples:
        qplan eval my-export --tasks arc_challenge --limit 100
        qplan eval my-export --tasks ceval-valid,mmlu --reference Qwen/Qwen2.5-0.5B-Instruct
        qplan eval my-export --tasks my_task --include-path my-tasks
    """
    options = EvalOptions(
        folder=folder,
        tasks=tuple(name.strip() for name in tasks.split(",")),
        reference=reference,
        include_path=include_path,
        limit=limit,
        num_fewshot=num_fewshot,
        threads=threads,
    )
    from qplan.jobs.evaluate import run_eval  # noqa: PLC0415 - NumPy: not for --help

    with ExitStack() as stack:
        if out.quiet:  # the harness's own bars
            nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(redirect_stderr(nowhere))
        found = run_eval(options, say)
    answer(folder=str(folder), reference=reference, **asdict(found))
    out.print(scores_table(found, str(folder), reference))


def scores_table(found: Evaluated, folder: str, reference: str | None) -> View:
    """A line for each metric of each task."""
    from qplan.report import notation  # noqa: PLC0415

    threads = notation.threads(found.threads)
    settings = f"MNN {found.engine}, memory {found.memory}, precision {found.precision}, {threads}"
    judged = f"lm-evaluation-harness {found.harness}" + ("" if found.limit is None else f", --limit {found.limit}")
    against = [] if reference is None else [f"FP32: {reference}"]
    errors = "±: the harness's standard error over samples; a difference within it says nothing"
    columns = ["task", "metric", "shots", "samples", "MNN", *(["FP32"] if reference is not None else [])]
    view = table_view(columns, left=("task", "metric"), heading=folder)
    view.note = "\n".join([settings, judged, *against, errors])
    for score in found.scores:
        told = score.metric if score.filter == "none" else f"{score.metric}, {score.filter}"
        counts = (_count(score.shots), _count(score.samples))
        values = [score.folder] if reference is None else [score.folder, score.reference]
        view.add_row(score.task, told, *counts, *(_told(value) for value in values))
    return view


def _count(value: int | None) -> str:
    from qplan.report import notation  # noqa: PLC0415

    return notation.MISSING if value is None else f"{value:,}"


def _told(value: Value | None) -> str:
    from qplan.report import notation  # noqa: PLC0415

    if value is None:
        return notation.MISSING
    told = notation.significant(value.value, 4)
    return told if value.error is None else f"{told} ± {notation.significant(value.error, 2)}"
