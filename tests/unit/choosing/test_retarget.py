"""A table for an engine that reads wide scales only."""

from __future__ import annotations

from dataclasses import replace

from qplan.choosing.retarget import retarget_rules, retarget_table
from qplan.cost.file_bytes import FixedBytes
from qplan.formats import QuantFormat
from qplan.mnn.engines import EngineTarget, EngineVersion
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.run.table import SensitivityTable

OLD, NEW = (EngineTarget.of(EngineVersion.parse(version)) for version in ("3.5.0", "3.6.1"))


def test_an_engine_that_reads_everything_changes_nothing(table: SensitivityTable) -> None:
    assert retarget_table(table, NEW) is table


def test_formats_get_wide_scales_and_losses_stay(table: SensitivityTable) -> None:
    wide = retarget_table(table, OLD)
    for spec in table.model.tensors:
        before, after = table.kl(table.goal)[spec.name], wide.kl(wide.goal)[spec.name]
        assert {OLD.wide(QuantFormat.parse(name)).name: loss for name, loss in before.items()} == after
    assert all(
        fmt.is_float or fmt.scale_bits == 32 for spec in wide.model.tensors for fmt in wide.formats_of(spec.name)
    )
    assert len(wide.notes) == len(table.notes) + 1
    assert "3.5.0" in str(wide.notes[-1])


def test_a_format_that_was_measured_with_both_scales_is_there_once(table: SensitivityTable) -> None:
    both = tuple(replace(m, format="int4-s32") for m in table.measurements if m.format == "int4")
    wide = retarget_table(replace(table, measurements=(*table.measurements, *both)), OLD)
    seen = [(m.tensor, m.format, m.memory, m.batch) for m in wide.measurements]
    assert len(seen) == len(set(seen)) == len(table.measurements)


def test_a_plan_for_it_has_its_formats_and_is_held_against_its_uniform(
    table: SensitivityTable, fixed: FixedBytes
) -> None:
    rules = retarget_rules(Rules(), OLD)
    old, new = make_plan(retarget_table(table, OLD), (), fixed, rules=rules), make_plan(table, (), fixed)
    assert all(tensor.format == OLD.wide(tensor.format) for tensor in old.tensors)
    narrow = {point.name: point.total_bytes for point in new.uniform}
    assert {point.name: point.total_bytes > narrow[point.name] for point in old.uniform} == {
        "int4": True,
        "int8": True,
        "fp16": False,
    }
