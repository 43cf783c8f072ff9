"""One loss of one tensor in one format, and how its batches are combined."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qplan.run.metrics import METRICS, Metrics, values_of
from qplan.settings import Memory

Source = Literal["measured", "gradient"]
"""How a loss is known: by running the model with the format, or from gradients by the Fisher estimate."""

FORM_ERROR = 0.12
"""Relative standard error of a gradient estimate beyond its sampling error: what the row form and the second order
leave out. Standard deviation of log(gradient / measured) over tensors, ``reports/sensitivity/``."""


@dataclass(frozen=True)
class Measurement(Metrics):
    """One tensor in one format, everything else FP32, on one calibration batch."""

    tensor: str
    """Hugging Face name."""
    format: str
    """Format's name as resolved for this tensor."""
    memory: Memory
    """MNN's ``memory`` setting whose arithmetic was emulated: ``low`` (int8 activations) or ``normal``."""
    batch: int
    tokens: int
    """Tokens whose next-token distribution was compared."""
    source: Source = "measured"
    stderr_nats: float | None = None
    """Standard error of `kl_nats` from the spread over the batch's sequences; None where it is not known."""
    token_nats: float | None = None
    """What int8 activations alone lose, with a scale per token: ``dynamic_option`` 0, on x86 and on ARM alike."""
    block_nats: float | None = None
    """The same with a scale per block on x86: ``dynamic_option`` 2."""
    arm_block_nats: float | None = None
    """The same with a scale per block on ARM."""
    half_nats: float | None = None
    """What a product of float weights loses by adding up in fp16, as on ARM under ``precision: low``."""
    least_peak: float | None = None
    """Smallest over tokens of the largest magnitude of the tensor's input: fp16 holds no scale of int8 activations for
    one below `LEAST_HALF_PEAK`."""
    layer_peak: float | None = None
    """Largest magnitude that the tensor's layer returned: fp16 holds none above `LARGEST_HALF`."""


LARGEST_HALF = 65504.0
"""The largest number in fp16."""

LEAST_HALF_PEAK = 127 / LARGEST_HALF
"""Largest magnitude of a token below which the factor that makes int8 codes of it is beyond fp16."""

RANGES = ("least_peak", "layer_peak")
"""Columns about what a tensor met, the same in all its rows; None where not known."""

PARTS = ("token_nats", "block_nats", "arm_block_nats", "half_nats")
"""Columns of losses that come on top of the weights' own under one arithmetic or another; None where not estimated."""

COLUMNS = ("tensor", "format", "memory", "batch", "tokens", *METRICS, "source", "stderr_nats", *PARTS, *RANGES)
"""A measurement's fields in the order of the table."""


def measurement_of(row: Mapping[str, Any]) -> Measurement:
    """A measurement from its fields, checked for their types.

    Raises:
        TypeError: a column is missing or unknown, or a value is of another type.
    """
    found = Measurement(**row)
    texts = (found.tensor, found.format, found.memory, found.source)
    numbers = (found.kl_nats, found.sqnr_db)
    optional = (found.stderr_nats, *(getattr(found, name) for name in (*PARTS, *RANGES)), *values_of(found).values())
    if (
        not all(isinstance(text, str) for text in texts)
        or not all(type(count) is int for count in (found.batch, found.tokens))
        or not all(isinstance(number, float) for number in numbers)
        or not all(number is None or isinstance(number, float) for number in optional)
    ):
        msg = f"a measurement has a value of another type: {dict(row)}"
        raise TypeError(msg)
    return found


@dataclass(frozen=True)
class Loss(Metrics):
    """A format's loss over all batches."""

    stderr_nats: float
    """Standard error of the mean KL, from the spread over batches (measured) or sequences (gradient, with
    `FORM_ERROR`); 0 if there is only one batch."""
    source: Source = "measured"


def summarize(measurements: Sequence[Measurement]) -> Loss:
    """Combine the batches of one tensor and format, each metric in its own way."""
    sources = {m.source for m in measurements}
    source: Source = "measured" if sources == {"measured"} else "gradient"
    combined: dict[str, Any] = {
        name: metric.combined([(m.tokens, getattr(m, name)) for m in measurements]) for name, metric in METRICS.items()
    }
    tokens, mean = sum(m.tokens for m in measurements), combined["kl_nats"]
    variance = _sequence_variance(measurements, tokens)
    if variance is None:
        variance = _batch_variance(measurements, mean, tokens)
    if source == "gradient":
        variance += (FORM_ERROR * mean) ** 2
    return Loss(math.sqrt(variance), source, **combined)


def _sequence_variance(measurements: Sequence[Measurement], tokens: int) -> float | None:
    """Variance of the mean over batches whose own variances are known."""
    known = [(m.tokens, m.stderr_nats) for m in measurements if m.stderr_nats is not None]
    if len(known) < len(measurements):
        return None
    return sum((weight / tokens * stderr) ** 2 for weight, stderr in known)


def _batch_variance(measurements: Sequence[Measurement], mean: float, tokens: int) -> float:
    """Variance of the mean from the spread over batches; 0 with one."""
    spread = sum((m.tokens / tokens) ** 2 * (m.kl_nats - mean) ** 2 for m in measurements)
    count = len(measurements)
    return spread * count / (count - 1) if count > 1 else 0.0
