"""Tables whose losses are those of int8 activations with a scale per block."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qplan.errors import InputError, StaleArtifactError
from qplan.formats import INT8, parse_formats
from qplan.model.load import LoadedModel
from qplan.rounding import Int8Activations
from qplan.run.calibration import CalibrationSet
from qplan.run.table import SensitivityTable
from qplan.sensitivity.analysis import open_analysis
from qplan.sensitivity.gradient import estimate
from qplan.sensitivity.joint import joint_losses
from qplan.sensitivity.measured import measure


def test_measured_and_estimated_losses_are_those_of_the_option(
    qwen2: LoadedModel, calibration: CalibrationSet, tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.up_proj"
    entry = (name, "int8", "low")
    with open_analysis(qwen2, calibration, (INT8,), "low", dynamic_option=2) as analysis:
        measure(analysis, {entry})  # type: ignore[arg-type]
        rows = analysis.rows(entry, "measured")  # type: ignore[arg-type]
        estimate(analysis)
        estimates = [
            row for n, f, memory in analysis.entries() for row in analysis.rows((n, f.name, memory), "gradient")
        ]
        table = analysis.table("gradient", estimates)
    tokens = torch.from_numpy(calibration.tokens)
    for option, same in ((2, True), (0, False)):
        activations = Int8Activations(dynamic_option=option)  # type: ignore[arg-type]
        expected = joint_losses(qwen2, tokens, {"": {name: INT8}}, "low", activations)[""].kl_nats
        found = sum(row.kl_nats * row.tokens for row in rows) / sum(row.tokens for row in rows)
        assert (found == pytest.approx(expected, rel=1e-3)) is same
    table.write(tmp_path / "table.parquet")
    assert SensitivityTable.read(tmp_path / "table.parquet").conditions.dynamic_option == 2


def test_garbled_blocks_are_left_out_and_told(qwen2: LoadedModel, calibration: CalibrationSet) -> None:
    formats = parse_formats("int8,int4-b4")
    with open_analysis(qwen2, calibration, formats, "low", dynamic_option=2) as analysis:
        assert {fmt.name for row in analysis.menu.values() for fmt in row} == {"int8"}
        assert "int4-b4 are not measured: the engine garbles them" in str(analysis.menu_notes[-1])
    with (
        pytest.raises(InputError, match="allows none of the formats int4-b4"),
        open_analysis(qwen2, calibration, parse_formats("int4-b4"), "low", dynamic_option=2),
    ):
        pass


def test_another_option_needs_another_journal(qwen2: LoadedModel, calibration: CalibrationSet, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    with open_analysis(qwen2, calibration, (INT8,), "low", journal=journal) as analysis:
        estimate(analysis)
    with (
        pytest.raises(StaleArtifactError, match="dynamic option"),
        open_analysis(qwen2, calibration, (INT8,), "low", dynamic_option=2, journal=journal),
    ):
        pass
