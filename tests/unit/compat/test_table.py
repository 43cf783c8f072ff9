"""What qplan believes of engines, held against the table that was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from qplan.compat.table import PACKAGED, Cell, CompatTable, worst
from qplan.errors import InputError
from qplan.mnn.engines import C4_FUSION, HALF_SCALES, PYTHON_LLM, TIE_RECORD_OBJECT, EngineTarget, EngineVersion

TABLE = CompatTable.read(PACKAGED)
ENGINES = [EngineVersion.parse(engine) for engine in TABLE.engines]


def outcomes(options: str, engine: EngineVersion, model: str | None = None) -> set[str]:
    found: set[str] = {
        cell.outcome
        for cell in TABLE.cells
        if (cell.exporter, cell.options, cell.engine) == ("qplan", options, str(engine)) and model in {None, cell.model}
    }
    assert found
    return found


def test_every_engine_since_the_first_is_measured() -> None:
    assert [str(engine) for engine in ENGINES][:5] == ["3.4.0", "3.4.1", "3.5.0", "3.6.0", "3.6.1"]
    assert ENGINES[0] == PYTHON_LLM
    dates = [*(cell.date for cell in TABLE.cells), *(cell.date for cell in TABLE.architectures)]
    assert min(dates) >= "2026-11-01"


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_boundaries_are_those_that_were_measured(engine: EngineVersion) -> None:
    assert (outcomes("int8", engine) == {"ok"}) == (engine >= C4_FUSION)
    assert (outcomes("int8, no C4", engine, "llama") == {"ok"}) == (engine >= HALF_SCALES)
    wide = outcomes("int8, 32-bit scales, no C4", engine, "qwen2")
    assert (wide == {"ok"}) == (engine >= TIE_RECORD_OBJECT)


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_what_emit_writes_for_an_engine_is_right_there(engine: EngineVersion) -> None:
    target = EngineTarget.of(engine)
    if target.c4:
        assert outcomes("int8", engine) == outcomes("fp16", engine) == {"ok"}
        return
    if target.scale_bits == 16:
        assert outcomes("int8, no C4", engine) == {"ok"}
        return
    for width in ("int8", "int4", "int4 symmetric", "int6", "int5", "int3"):
        assert outcomes(f"{width}, 32-bit scales, no C4, tie list", engine) == {"ok"}
    assert outcomes("fp16, no C4", engine) == {"ok"}


def test_the_worst_cell_is_shown() -> None:
    def cell(outcome: str, error: float | None = None) -> Cell:
        return Cell("m", "e", "o", "3.6.1", "3.6.1", "low", outcome, error, "", "2026-11-24")  # type: ignore[arg-type]

    assert worst([cell("ok", 1e-5), cell("wrong", 1.0), cell("crash")]).outcome == "crash"
    assert worst([cell("ok", 1e-5), cell("ok", 1e-4)]).error == 1e-4
    with pytest.raises(InputError, match="no cells"):
        worst([])


def test_versions() -> None:
    assert EngineVersion.parse("3.6") == EngineVersion(3, 6, 0) < EngineVersion.parse("3.10.1")
    for wrong in ("", "three", "3", "3.6.1.2"):
        with pytest.raises(InputError, match="write it as"):
            EngineVersion.parse(wrong)
    assert EngineTarget.of(EngineVersion(3, 6, 1)) == EngineTarget(EngineVersion(3, 6, 1), 16, tie_form="dict", c4=True)
    with pytest.raises(InputError, match="logits_index"):
        EngineTarget.of(EngineVersion(3, 0, 0))


def test_a_table_survives_the_file(tmp_path: Path) -> None:
    TABLE.write(tmp_path / "t.json")
    assert CompatTable.read(tmp_path / "t.json") == TABLE
