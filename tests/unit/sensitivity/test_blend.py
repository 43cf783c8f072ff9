"""Measured losses and gradient estimates in one table."""

from __future__ import annotations

import math
from statistics import fmean

import pytest

from qplan.formats import FP16, INT4, INT8, QuantFormat
from qplan.model.load import LoadedModel
from qplan.run.calibration import CalibrationSet
from qplan.sensitivity.analysis import Entry, open_analysis
from qplan.sensitivity.blend import blend
from qplan.sensitivity.gradient import estimate
from qplan.sensitivity.measured import measure
from tests.support.whole_tables import measured_table


def test_measured_where_measured_and_scaled_elsewhere(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    with open_analysis(qwen2, calibration, (FP16, INT8, INT4), "low") as analysis:
        estimate(analysis)
        rows, scale = blend(analysis, ())
        assert scale == 1
        assert rows == [row for n, f, m in analysis.entries() for row in analysis.rows((n, f.name, m), "gradient")]
        names = [spec.name for spec in qwen2.card.tensors[:12]]
        entries: list[Entry] = [(name, "int4", "low") for name in names]
        measure(analysis, entries)
        rows, scale = blend(analysis, entries)
        mixed = analysis.table("auto", rows)
        plain = analysis.table("gradient", blend(analysis, ())[0])
    exact = measured_table(qwen2, calibration, (FP16, INT8, INT4), "low")
    ratios = []
    for name, row in mixed.losses("low").items():
        if name in names:
            assert row["int4"] == exact.losses("low")[name]["int4"]
            ratios.append(row["int4"].kl_nats / plain.losses("low")[name]["int4"].kl_nats)
    assert scale == pytest.approx(math.exp(fmean(map(math.log, ratios))))
    for memory in mixed.memories:
        for name, row in mixed.losses(memory).items():
            for fmt, loss in row.items():
                before, truth = (t.losses(memory)[name][fmt] for t in (plain, exact))
                if fmt == "int4" and name in names:
                    # under normal: the error of the weights' part, known from low
                    assert abs(math.log(loss.kl_nats / truth.kl_nats)) < 0.03
                else:
                    assert loss.kl_nats == pytest.approx(scale * before.kl_nats)
                    assert loss.stderr_nats == pytest.approx(scale * before.stderr_nats)


def test_few_measurements_scale_nothing(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    entry: Entry = ("model.layers.0.mlp.up_proj", "int6", "normal")
    with open_analysis(qwen2, calibration, (INT8, QuantFormat(6)), "normal") as analysis:
        estimate(analysis)
        measure(analysis, [entry])
        rows, scale = blend(analysis, [entry])
        assert scale == 1
        assert {row.source for row in rows} == {"measured", "gradient"}
        assert [row for row in rows if row.source == "measured"] == analysis.rows(entry, "measured")
