"""What a plan minimizes: by default the mean KL, on request something else that was measured beside it."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING

from qplan.errors import InputError

if TYPE_CHECKING:  # the command line reads the names of metrics at every key press of a completion
    from qplan.run.measurement import Loss
    from qplan.run.table import SensitivityTable


class Metric(StrEnum):
    """A loss of one tensor in one format; the planner adds them up, so that each is 0 where nothing is lost."""

    kl = "kl"
    """Mean KL(FP32 || variant) at the logits, nats per token."""
    kl_p99 = "kl-p99"
    """99th percentile of the same over tokens, nats."""
    top1 = "top1"
    """Fraction of tokens whose most likely next token changes."""
    perplexity = "perplexity"
    """Growth of the text's log perplexity, nats per token; where it falls by chance, 0."""
    sqnr = "sqnr"
    """Noise over signal of the tensor's own output, as a power ratio."""
    cosine = "cosine"
    """1 less the cosine between the tensor's own output and the reference's."""


def loss_of(metric: Metric, table: SensitivityTable) -> Callable[[str, str, Loss], float]:
    """The function from a tensor's name, a format's name and its loss to what is summed.

    Raises:
        InputError: from the function, where the table holds an estimate that the metric cannot be read from.
    """

    def value(tensor: str, fmt: str, loss: Loss) -> float:
        found = _VALUES[metric](loss, table.reference_nll_nats)
        if found is None:
            msg = (
                f"--metric {metric.value}: {tensor} in {fmt} is an estimate from gradients, which gives kl, sqnr and "
                "cosine alone; analyze with --mode measured"
            )
            raise InputError(msg)
        return found

    return value


_VALUES: dict[Metric, Callable[[Loss, float], float | None]] = {
    Metric.kl: lambda loss, _: loss.kl_nats,
    Metric.kl_p99: lambda loss, _: loss.kl_p99_nats,
    Metric.top1: lambda loss, _: None if loss.top1 is None else 1 - loss.top1,
    Metric.perplexity: lambda loss, text: None if loss.nll_nats is None else max(0.0, loss.nll_nats - text),
    Metric.sqnr: lambda loss, _: 10 ** (-loss.sqnr_db / 10),
    Metric.cosine: lambda loss, _: None if loss.cosine is None else 1 - loss.cosine,
}
