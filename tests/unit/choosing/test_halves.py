"""Products of bfloat16 compare plans that lose far more than such products do, and no others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qplan.choosing.halves import MOST_SHARE, Halves
from qplan.formats import INT4
from qplan.model.load import LoadedModel
from qplan.run.calibration import CalibrationSet
from qplan.run.table import SensitivityTable
from qplan.sensitivity.joint import Variant, variant_losses
from qplan.sensitivity.kept_logits import kept_logits
from tests.support.invented_table import make_table


def _times(table: SensitivityTable, factor: float) -> SensitivityTable:
    return replace(table, measurements=tuple(replace(m, kl_nats=m.kl_nats * factor) for m in table.measurements))


@pytest.mark.parametrize(("factor", "fast", "suffice"), [(1e6, True, True), (1e-6, True, False), (1e6, False, False)])
def test_they_suffice_where_they_are_fast_and_lose_a_small_share(
    qwen2: LoadedModel,
    calibration: CalibrationSet,
    monkeypatch: pytest.MonkeyPatch,
    *,
    factor: float,
    fast: bool,
    suffice: bool,
) -> None:
    monkeypatch.setattr("qplan.choosing.halves.half_products_pay", lambda _: fast)
    table = _times(make_table(), factor)
    formats = {spec.name: INT4.resolve(spec.in_features) for spec in table.model.tensors}
    halves = Halves()
    assert not halves.suffice(qwen2, table, formats, None)
    halves = Halves()
    with kept_logits(qwen2, calibration.heldout) as kept:
        assert halves.suffice(qwen2, table, formats, kept) == suffice
    # one choice for all plans that are compared
    assert halves.suffice(qwen2, _times(table, 0.0), formats, None) == suffice


def test_they_change_a_loss_by_no_more_than_their_own(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    tokens = torch.from_numpy(calibration.heldout)
    plan = {spec.name: INT4.resolve(spec.in_features) for spec in qwen2.card.tensors}
    variants = {"own": Variant({}, half=True), "half": Variant(plan, half=True), "plan": Variant(plan)}
    found = {label: stats.kl_nats for label, stats in variant_losses(qwen2, tokens, variants).items()}
    assert 0 < found["own"] < MOST_SHARE * found["plan"]
    assert found["half"] != found["plan"]
    assert found["half"] == pytest.approx(found["plan"], rel=2 * MOST_SHARE)
