"""The proof of a KV cache: what the built plan is run under."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qplan.cost.kv_cache import KvMode, KvShape
from qplan.mnn.runtime import RuntimeConfig
from qplan.run.kv_cache import PlannedCache
from qplan.sensitivity.kept_logits import KeptLogits
from qplan.settings import Precision
from qplan.verify.cache import CacheTrial, prove_cache
from tests.support.invented_run import small_run

ROWS = np.zeros((1, 100), np.int64)


@dataclass(frozen=True)
class Recorded(CacheTrial):
    """Says what it was run under, instead of running a model."""

    under: list[RuntimeConfig] = field(default_factory=list)

    def run(self, folder: Path, runtime: RuntimeConfig) -> tuple[torch.Tensor, int]:
        self.under.append(runtime)
        return torch.zeros(ROWS.size), 0


@pytest.mark.parametrize(
    ("mode", "shipped", "proved"),
    [
        (KvMode.KV8, "low", "low"),
        (KvMode.KV8, "high", "high"),
        (KvMode.TQ4, "low", "normal"),  # MNN is wrong with it under low on ARM
    ],
)
def test_a_cache_is_proved_under_all_settings_of_its_plan(mode: KvMode, shipped: Precision, proved: Precision) -> None:
    cache = PlannedCache(mode=mode, tokens=100, bytes=1, float_bytes=2)
    plan = replace(small_run().plan, memory="normal", precision=shipped, dynamic_option=2, kv=cache)
    trial = Recorded(KeptLogits(ROWS, np.zeros((1, 100, 4), np.float32)), 256)
    prove_cache(plan, Path("model"), trial, KvShape(1, 1, 32))
    assert trial.under == [
        RuntimeConfig("normal", shipped, 1, 2, KvMode.FLOAT),
        RuntimeConfig("normal", proved, 1, 2, mode),
    ]
