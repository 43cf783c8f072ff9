"""Options that several commands share: run folders, exporters, and what the user wants besides a budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qplan.cli import completion, panels
from qplan.cost.target import DEFAULT_TARGET, find_target
from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.planner.metric import Metric

if TYPE_CHECKING:
    from qplan.planner.rules import Rules

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
        help="What is summed and minimized: `kl`, `kl-p99`, `top1`, `perplexity`, `sqnr`, `cosine`; all but kl, "
        "sqnr and cosine need `--mode measured`.",
        rich_help_panel=panels.RULES,
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


def rules_of(
    logits_bits: int,
    pins: Sequence[str] | None,
    min_bits: Sequence[str] | None,
    groups: Sequence[str] | None,
    *,
    fused: bool,
    target: str = DEFAULT_TARGET,
    metric: Metric = Metric.kl,
) -> Rules:
    """Rules from options as typed.

    Raises:
        InputError: an option that is not understood.
    """
    from qplan.planner.rules import Rules  # noqa: PLC0415 - NumPy and pyarrow take a tenth of a second: not for --help

    if logits_bits < 0:
        msg = f"--logits-bits {logits_bits}: must be 0 (no rule) or a width"
        raise InputError(msg)
    return Rules(
        logits_bits=logits_bits,
        pins={pattern: QuantFormat.parse(name) for pattern, name in _pairs("--pin", pins or ())},
        min_bits={pattern: _bits(value) for pattern, value in _pairs("--min-bits", min_bits or ())},
        group_patterns=tuple(groups or ()),
        fused=fused,
        target=find_target(target),
        metric=metric,
    )


def _pairs(option: str, values: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for value in values:
        pattern, equals, right = value.rpartition("=")
        if not equals or not pattern or not right:
            msg = f"{option} {value!r}: write PATTERN=VALUE, e.g. '*.0.mlp.down_proj=fp16'"
            raise InputError(msg)
        found.append((pattern, right))
    return found


def _bits(text: str) -> int:
    if not text.isdigit():
        msg = f"--min-bits ...={text!r}: must be a whole number of bits"
        raise InputError(msg)
    return int(text)
