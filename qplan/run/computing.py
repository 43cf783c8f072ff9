"""What losses become where the model is computed otherwise than the analysis emulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qplan.formats import QuantFormat
from qplan.run.measurement import Measurement
from qplan.settings import Arithmetic, DynamicOption


def computed_rows(
    rows: Sequence[Measurement], arithmetic: Arithmetic, option: DynamicOption, *, same_activations: bool
) -> tuple[Measurement, ...] | None:
    """Measurements as they would be with another arithmetic: what the weights lose, and what it adds.

    Formats that the engine garbles under the option are left out. Metrics beyond the loss stay as they are.

    Args:
        rows: of all memory settings.
        arithmetic: of the back end.
        option: the back end's ``dynamic_option``; means nothing with float activations.
        same_activations: whether int8 activations are rounded as they were measured.

    Returns:
        The rows; None if they do not say what the arithmetic adds.
    """
    weights = {(m.tensor, m.format, m.batch): m for m in rows if m.memory == "normal"}
    found: list[Measurement] = []
    for row in rows:
        if row.memory == "normal":
            found.append(row)
            continue
        fmt = QuantFormat.parse(row.format)
        if not fmt.is_float and arithmetic != "float" and option == 2 and not fmt.allows_block_activations:
            continue
        own = row if fmt.is_float or same_activations else weights[row.tensor, row.format, row.batch]
        more = 0.0 if own is row and not fmt.is_float else _added(row, fmt, arithmetic, option)
        if more is None:
            return None
        found.append(replace(row, kl_nats=own.kl_nats + more, stderr_nats=own.stderr_nats, source=own.source))
    return tuple(found)


def _added(row: Measurement, fmt: QuantFormat, arithmetic: Arithmetic, option: DynamicOption) -> float | None:
    """What an arithmetic adds to the loss of the weights; None if that is not known."""
    if fmt.is_float:
        return row.half_nats if arithmetic == "arm-fp16" else 0.0
    if arithmetic == "float":
        return 0.0
    if option == 0:
        return row.token_nats
    return row.block_nats if arithmetic == "x86" else row.arm_block_nats
