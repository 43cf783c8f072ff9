"""What a plan minimizes: by default the mean KL, on request something else that was measured beside it."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING

from qplan.errors import InputError
from qplan.run.metrics import METRICS

if TYPE_CHECKING:  # the command line reads the names of metrics at every key press of a completion
    from qplan.run.measurement import Loss
    from qplan.run.table import SensitivityTable

    class Metric(StrEnum):
        """A loss of one tensor in one format; the planner adds them up, so that each is 0 where nothing is lost."""

        kl = "kl"
        """The usual one. The others of `qplan.run.metrics` are members too, by value: ``Metric("top1")``."""
else:
    Metric = StrEnum("Metric", {metric.option.replace("-", "_"): metric.option for metric in METRICS.values()})

_COLUMN = {metric.option: name for name, metric in METRICS.items()}
_ESTIMATED = tuple(metric.option for metric in METRICS.values() if metric.gradients)

HELP = (
    f"What is summed and minimized: {', '.join(f'`{metric.option}`' for metric in METRICS.values())}; "
    f"all but {', '.join(_ESTIMATED[:-1])} and {_ESTIMATED[-1]} need `--mode measured`."
)
"""Of the option ``--metric``."""


def loss_of(metric: Metric, table: SensitivityTable) -> Callable[[str, str, Loss], float]:
    """The function from a tensor's name, a format's name and its loss to what is summed.

    Raises:
        InputError: from the function, where the table does not hold the metric.
    """
    column = _COLUMN[metric]
    lost = METRICS[column].loss

    def value(tensor: str, fmt: str, loss: Loss) -> float:
        found: float | None = getattr(loss, column)
        if found is not None:
            return lost(found, table.reference_nll_nats)
        if loss.source == "gradient":
            msg = (
                f"--metric {metric.value}: {tensor} in {fmt} is an estimate from gradients, which gives "
                f"{', '.join(_ESTIMATED[:-1])} and {_ESTIMATED[-1]} alone; analyze with --mode measured"
            )
        else:
            msg = (
                f"--metric {metric.value}: {tensor} in {fmt} was measured by a version that did not know it; "
                "analyze again with --restart"
            )
        raise InputError(msg)

    return value
