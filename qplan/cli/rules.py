"""Options that several commands share: what the user wants besides a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from qplan.cost.target import DEFAULT_TARGET, find_target
from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.planner.metric import Metric
from qplan.planner.planning import Rules

LogitsBits = Annotated[
    int, typer.Option(help="Least width of the head and a tied embedding; 0 turns the logits rule off.")
]
Pins = Annotated[list[str] | None, typer.Option("--pin", help="PATTERN=FORMAT, e.g. `*.0.mlp.down_proj=fp16`.")]
LeastWidths = Annotated[list[str] | None, typer.Option("--min-bits", help="PATTERN=BITS, e.g. `*.o_proj=6`.")]
Groups = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        help="PATTERN whose tensors share a format; `{layer}`, `{expert}`, `{kind}` in it make a group for each.",
    ),
]
GroupFused = Annotated[
    bool, typer.Option("--group-fused", help="q, k, v share a format, and so do gate and up, in every layer.")
]
MetricOption = Annotated[
    Metric,
    typer.Option("--metric", help="What is summed and minimised; all but kl, sqnr and cosine need `--mode measured`."),
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
