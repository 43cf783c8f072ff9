"""Models take turns; those whose formats take the same time share figures."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from qplan.formats import Formats, QuantFormat
from qplan.mnn.engine.session import SpeedSample
from qplan.run.verification import Speed
from qplan.sensitivity.kept_logits import KeptLogits
from qplan.settings import DynamicOption
from qplan.verify import turns
from qplan.verify.measure import Trial
from qplan.verify.turns import Contestant, speeds_in_turns

ORDER: list[str] = []


class Engine:
    """Says who had a turn, instead of running a model."""

    def __init__(self, folder: Path, runtime: Any, *, context: int) -> None:
        self.folder, self.runtime, self.context = folder, runtime, context
        self.ram_bytes = len(folder.name)
        ORDER.append(f"load {folder.name}")

    def measure_speed(self, prompt: int, decode: int, repeats: int, *, own_time: bool, warm_up: bool) -> SpeedSample:
        ORDER.append(f"{self.folder.name} {self.runtime.dynamic_option}{' warm' if warm_up else ''}")
        assert (repeats, own_time) == (1, True)
        return SpeedSample(prompt, (0.5,), (0.01, 0.03, 0.02)[: decode or 3])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def timed(tmp_path: Path, models: dict[str, Formats], **settings: Any) -> dict[tuple[str, DynamicOption], Speed]:
    ORDER.clear()
    for name in models:
        (tmp_path / name).mkdir()
        (tmp_path / name / "llm.mnn.weight").write_bytes(bytes(1000))
    contestants = [Contestant(name, tmp_path / name, formats) for name, formats in models.items()]
    return speeds_in_turns(contestants, Trial(KeptLogits.__new__(KeptLogits)), 256, **settings)


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "EngineSession", Engine)


INT8, INT6, INT4 = QuantFormat(8), QuantFormat(6), QuantFormat(4)


def test_models_take_turns_loaded_once(tmp_path: Path) -> None:
    speeds = timed(tmp_path, {"int8": {"a": INT8}, "plan": {"a": INT4}})
    assert ORDER[:6] == ["load int8", "load plan", "int8 0 warm", "plan 0 warm", "int8 0", "plan 0"]
    assert len(ORDER) == 2 + 2 * turns.MOST_ROUNDS
    assert speeds["int8", 0].session == speeds["plan", 0].session != ""
    assert speeds["plan", 0].decode_tokens_per_s == pytest.approx(50)
    assert speeds["plan", 0].prefill_tokens_per_s == pytest.approx(256)


def test_where_memory_is_short_each_is_loaded_for_its_turn(tmp_path: Path) -> None:
    timed(tmp_path, {"int8": {"a": INT8}, "plan": {"a": INT4}}, most_bytes=100)
    assert ORDER[:4] == ["load int8", "int8 0 warm", "load plan", "plan 0 warm"]


def test_equal_timed_formats_share_their_figures_but_not_their_ram(tmp_path: Path) -> None:
    # 6 bits run as 8 do, and differ in nothing but the file
    speeds = timed(tmp_path, {"int8": {"a": INT8}, "six bits": {"a": INT6}})
    assert speeds["int8", 0].rounds == speeds["six bits", 0].rounds
    assert [speeds[name, 0].ram_bytes for name in ("int8", "six bits")] == [4, 8]
    assert ORDER.count("load six bits") == 1
    assert not any(turn.startswith("six bits") for turn in ORDER)
    spread = speeds["int8", 0].against(speeds["six bits", 0], "decode")
    assert spread is not None
    assert not spread.differs
