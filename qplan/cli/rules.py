"""Options that several commands share: run folders, exporters, and what the user wants besides a budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from qplan.cli import completion, panels
from qplan.cli.console import say
from qplan.cli.tidy import tidied
from qplan.cost.target import DEFAULT_TARGET
from qplan.errors import InputError
from qplan.planner.metric import HELP, Metric
from qplan.planner.rules import Rules
from qplan.planner.size import Size
from qplan.run.folder import RunFolder
from qplan.settings import Parity, Precision

LogitsBits = Annotated[
    int,
    typer.Option(
        metavar="BITS",
        help="Least width of the head and a tied embedding; 0 turns the logits rule off.",
        rich_help_panel=panels.RULES,
    ),
]
Pins = Annotated[
    list[str] | None,
    typer.Option(
        "--pin",
        metavar="PATTERN=FORMAT",
        help="Give tensors a format: `*.0.mlp.down_proj=fp16`.",
        rich_help_panel=panels.RULES,
    ),
]
LeastWidths = Annotated[
    list[str] | None,
    typer.Option(
        "--min-bits", metavar="PATTERN=BITS", help="Least width of tensors: `*.o_proj=6`.", rich_help_panel=panels.RULES
    ),
]
Groups = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        metavar="PATTERN",
        help="Tensors that share a format; `{layer}`, `{expert}`, `{kind}` make a group for each.",
        rich_help_panel=panels.RULES,
    ),
]
GroupFused = Annotated[
    bool,
    typer.Option(
        "--group-fused",
        help="q, k, v share a format, and so do gate and up, in every layer.",
        rich_help_panel=panels.RULES,
    ),
]
MetricOption = Annotated[
    Metric,
    typer.Option(
        "--metric",
        metavar="METRIC",
        help=HELP,
        rich_help_panel=panels.RULES,
    ),
]
PrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--precision",
        metavar="PRECISION",
        help="MNN's setting that the model ships with: `low` computes in fp16 on ARM, `normal` and `high` in fp32.",
        rich_help_panel=panels.ENGINE,
    ),
]
ParityOption = Annotated[
    Parity,
    typer.Option(
        "--parity",
        metavar="PARITY",
        help="What `int8` or `int4` promises: no more than that uniform export takes of `all` that is felt (files, "
        "RAM, decode and prefill time on the target), or no larger `files`.",
        rich_help_panel=panels.LIMITS,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="BYTES",
        help="Most memory of qplan and what it starts, e.g. `10GB`; a model that needs more is read from the disk "
        "layer by layer.",
        show_default="what is free",
        rich_help_panel=panels.MACHINE,
    ),
]
LatestRun = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="FOLDER",
        help="Run folder.",
        show_default="the latest in qplan-runs",
        autocompletion=completion.runs,
        rich_help_panel=panels.FOLDERS,
    ),
]
PlansRun = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="FOLDER",
        help="Run folder.",
        show_default="the plan's, else the latest",
        autocompletion=completion.runs,
        rich_help_panel=panels.FOLDERS,
    ),
]
LlmExport = Annotated[
    Path | None,
    typer.Option(
        "--llmexport",
        metavar="FOLDER",
        help="An MNN checkout whose exporter to use.",
        show_default="the PyPI package",
        rich_help_panel=panels.ENGINE,
    ),
]


MaxContext = Annotated[
    int | None,
    typer.Option(
        "--max-context",
        metavar="N",
        help="Limit the built model to sequences of this many tokens, where the exporter is wrong beyond.",
        show_default="the model's own",
        rich_help_panel=panels.ENGINE,
    ),
]


def memory_limit(given: str | None) -> int | None:
    """Bytes of ``--max-memory``; None if it was not given.

    Raises:
        InputError: not a size.
    """
    return None if given is None else int(Size.parse(given, "--max-memory").bytes)


def rules_of(
    logits_bits: int,
    pins: Sequence[str] | None,
    min_bits: Sequence[str] | None,
    groups: Sequence[str] | None,
    *,
    fused: bool,
    target: str = DEFAULT_TARGET,
    metric: Metric = Rules.metric,
    parity: Parity = Rules.parity,
    precision: Precision = "low",
) -> Rules:
    """Rules from options as typed.

    Raises:
        InputError: an option that is not understood.
    """
    return Rules.parse(
        logits_bits=logits_bits,
        pins=_by_pattern("--pin", pins or ()),
        min_bits=_by_pattern("--min-bits", min_bits or ()),
        groups=groups or (),
        fused=fused,
        target=target,
        metric=metric,
        parity=parity,
        precision=precision,
    )


def _by_pattern(option: str, values: Sequence[str]) -> dict[str, str]:
    """Map what precedes the last ``=`` of each value to what follows it."""
    found: dict[str, str] = {}
    for value in values:
        pattern, equals, right = value.rpartition("=")
        if not equals or not pattern or not right:
            msg = f"{option} {value!r}: write PATTERN=VALUE, e.g. '*.0.mlp.down_proj={_EXAMPLES[option]}'"
            raise InputError(msg)
        if found.setdefault(pattern, right) != right:
            msg = f"{option} {value!r}: the pattern has {found[pattern]} already; give one of them"
            raise InputError(msg)
    return found


_EXAMPLES = {"--pin": "fp16", "--min-bits": "6"}


def run_given(run: Path | None) -> RunFolder:
    """The run that a user named, or the latest, with a line that says which.

    Raises:
        InputError: no such folder, or no finished analysis to be the latest.
    """
    if run is not None:
        return existing_run(run)
    latest = RunFolder.latest()
    say(f"using the latest run, {latest.folder}")
    return tidied(latest)


def existing_run(run: Path) -> RunFolder:
    """The run of a folder.

    Raises:
        InputError: no such folder.
    """
    if not run.is_dir():
        msg = f"--run {run} is not a folder; make it with 'qplan analyze MODEL --run {run}'"
        raise InputError(msg)
    return tidied(RunFolder(run))
