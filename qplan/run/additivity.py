"""How far the losses of single tensors are from adding up to the loss of a whole plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qplan.settings import Memory


@dataclass(frozen=True)
class JointPoint:
    """A whole plan's loss beside the sum of its tensors' losses, on the calibration tokens."""

    memory: Memory
    sum_nats: float
    """Sum of single losses of the table."""
    joint_nats: float
    """Loss with all tensors changed at once."""

    @property
    def ratio(self) -> float:
        """Joint loss over sum; below 1 where errors cancel or saturate, above where they feed each other."""
        return self.joint_nats / self.sum_nats


def predict_joint(sum_nats: float, points: Sequence[JointPoint]) -> float:
    """Predict a plan's joint loss in nats from the sum of its single losses.

    The ratio joint / sum is interpolated linearly in the logarithms of both between the measured plans, and constant
    beyond them; 1 where no plan was measured.
    """
    usable = sorted((p.sum_nats, p.ratio) for p in points if p.sum_nats > 0 and p.joint_nats > 0)
    if not usable or sum_nats <= 0:
        return sum_nats
    sums, ratios = (np.log(column) for column in zip(*usable, strict=True))
    return sum_nats * math.exp(float(np.interp(math.log(sum_nats), sums, ratios)))
