"""What a plan minimizes: the mean KL by default, or another metric that was measured along with it."""

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
        """A loss of one tensor in one format. The planner adds them up, so each is 0 where nothing is lost."""

        kl = "kl"
        """The default. The other metrics of `qplan.run.metrics` are members too, by value: ``Metric("top1")``."""
else:
    Metric = StrEnum("Metric", {metric.option.replace("-", "_"): metric.option for metric in METRICS.values()})

_COLUMN = {metric.option: name for name, metric in METRICS.items()}
_ESTIMATED = tuple(metric.option for metric in METRICS.values() if metric.gradients)

HELP = (
    f"What is summed and minimized: {', '.join(f'`{metric.option}`' for metric in METRICS.values())}; "
    f"all but {', '.join(_ESTIMATED[:-1])} and {_ESTIMATED[-1]} need `--effort thorough`."
)
"""Help text of the option ``--metric``."""


def loss_of(metric: Metric, table: SensitivityTable) -> Callable[[str, str, Loss], float]:
    """The function from a tensor's name, a format's name and its loss to the value that is summed.

    Raises:
        InputError: raised by that function where the table does not hold the metric.
    """
    column = _COLUMN[metric]
    lost = METRICS[column].loss

    def value(tensor: str, fmt: str, loss: Loss) -> float:
        found: float | None = getattr(loss, column)
        if found is not None:
            return lost(found, table.reference_nll_nats)
        if loss.source == "gradient":
            msg = (
                f"--metric {metric.value}: {tensor} in {fmt} is an estimate from gradients, which give "
                f"{', '.join(_ESTIMATED[:-1])} and {_ESTIMATED[-1]} only; analyze with --effort thorough"
            )
        else:
            msg = (
                f"--metric {metric.value}: {tensor} in {fmt} was measured by a version without this metric; "
                "analyze again with --restart"
            )
        raise InputError(msg)

    return value
