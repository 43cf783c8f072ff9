"""Uniform exports: their names, and which of them are within limits."""

from __future__ import annotations

import pytest

from qplan.cost.file_bytes import FixedBytes, file_bytes
from qplan.cost.target import find_target
from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.planner.limits import Cost, ResourceLimit
from qplan.planner.uniform import exports_within
from qplan.run.table import SensitivityTable
from qplan.tensors import TensorSpec
from qplan.uniform import COMPARED, HQQ, UniformExport, built_exports, every_export, uniform_formats

X86 = find_target("cpu-x86")


def ram(spec: TensorSpec, fmt: QuantFormat) -> int:
    return X86.ram_bytes(spec, fmt, "low")


def test_names_are_short_read_back_and_differ() -> None:
    every = list(every_export())
    assert [UniformExport.parse(export.name) for export in every] == every
    assert len({export.name for export in every}) == len(every)
    assert {"fp16", "int8", "int4-hqq", "int5-b32-sym", "int6-head-fp16", "int4-head-int4-hqq"} <= {
        e.name for e in every
    }
    with pytest.raises(InputError, match="not understood"):
        UniformExport.parse("plan")


def test_a_command_makes_each() -> None:
    assert UniformExport.parse("int4").command == (
        "llmexport --export mnn --quant_bit 4 --quant_block 64 --lm_quant_bit 8"
    )
    assert UniformExport.parse("int8-b32-head-int4-b0-hqq").command.endswith(
        "--lm_quant_bit 4 --lm_quant_block 0 --hqq"
    )
    assert UniformExport.parse("int4-b0-sym").command.endswith("--quant_block 0 --lm_quant_bit 8 --sym")
    assert UniformExport.parse("fp16").command == "llmexport --export mnn --quant_bit 16"
    assert "MNN checkout" in UniformExport.parse("int3").command
    assert UniformExport.parse("int6").command.startswith("mnnconvert --weightQuantBits 6 --weightQuantBlock 64")


@pytest.mark.parametrize("budget", ["int8", "int4", "int5", "fp16"])
@pytest.mark.parametrize("limited", [False, True])
def test_all_within_the_limits_are_contained_in_one_that_is_found(
    budget: str,
    limited: bool,  # noqa: FBT001
    table: SensitivityTable,
    fixed: FixedBytes,
) -> None:
    card, plain = table.model, UniformExport.parse(budget)
    most = file_bytes(card, plain.formats(card), fixed).total
    cost = Cost("RAM", "MB", 10**6, ram)
    limits = (ResourceLimit(cost, cost.total(card, plain.formats(card))),) if limited else ()

    def fits(export: UniformExport) -> bool:
        formats = export.formats(card)
        legal = all(X86.legal(spec, formats[spec.name]) for spec in card.tensors)
        within = all(limit.holds(card, formats) for limit in limits)
        return legal and within and file_bytes(card, formats, fixed).total <= most

    found = exports_within(card, fixed, most, limits, target=X86)
    assert all(map(fits, found))
    assert not any(one.contains(other) for one in found for other in found if one != other)
    assert all(any(one.contains(export) for one in found) for export in every_export() if fits(export))
    assert any(one.contains(plain) for one in found)


def test_more_bits_do_not_fit_where_they_take_the_ram_of_8(table: SensitivityTable, fixed: FixedBytes) -> None:
    card = table.model
    int4 = uniform_formats(card, 4)
    cost = Cost("RAM", "MB", 10**6, ram)
    limits = (ResourceLimit(cost, cost.total(card, int4)),)
    roomy = file_bytes(card, uniform_formats(card, 8), fixed).total
    assert {e.body.bits for e in exports_within(card, fixed, roomy, limits, target=X86)} == {4}
    assert {e.body.bits for e in exports_within(card, fixed, roomy, (), target=X86)} > {6, 8}


def test_those_that_are_built_are_the_plain_ones_and_the_best_of_the_others() -> None:
    names = [export.name for export in built_exports(["int5-b32", "int4-hqq"])]
    assert names == [*COMPARED, "int5-b32"]
    assert [export.name for export in built_exports(["int4", "int4-hqq"])] == list(COMPARED)
    assert built_exports(["int4", "int4-hqq"], 2)[-1].rounding == HQQ
    assert built_exports([], 3) == built_exports(["int5"], 0)
