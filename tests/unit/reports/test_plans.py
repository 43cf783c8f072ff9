"""The page of the benchmark of plans admits what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reports.plans.page import write_page


def shipped(bits: float, kl: float, uniform: float | None, built: int = 1000) -> dict[str, Any]:
    return {
        "memory": "low",
        "bits": bits,
        "promised_bytes": 1000,
        "built_bytes": built,
        "predicted_nats": 1.1 * kl,
        "kl_nats": kl,
        "shipped_kl_nats": kl / 2,
        "dynamic_option": 2,
        "uniform_kl_nats": uniform,
    }


def rival(same: float, every: float, folded: float = 0.4) -> dict[str, Any]:
    def own(ratio: float, least: float) -> dict[str, Any]:
        return {"total_bytes": 2000, "kl_nats": ratio * 1e-3, "stderr_nats": 1e-5, "least": least}

    return {
        "memory": "normal",
        "scorer": "A peer",
        "asked_bits": 5.0,
        "bits": 4.98,
        "peer_bytes": 2000,
        "peer_kl_nats": 1e-3,
        "own": {"4/8": own(same, 0.9), "all": own(every, 0.4), "folded": own(folded, 0.3)},
    }


def page(tmp_path: Path, plans: list[Any], rivals: list[Any]) -> str:
    result = {
        "model": {"parameters": 1234, "tensors": 5},
        "calibration": "valid.txt",
        "judged": {"text": "test.txt", "tokens": 4096},
        "engine": "3.6.1",
        "failures": {},
        "shipped": plans,
        "rivals": rivals,
    }
    write_page({"tiny": result}, tmp_path / "README.md")
    return (tmp_path / "README.md").read_text(encoding="utf-8")


def test_what_holds_is_counted(tmp_path: Path) -> None:
    text = page(tmp_path, [shipped(4, 1e-3, 2e-3), shipped(4.5, 1e-3, None)], [rival(0.97, 0.45)])
    assert "worse than the uniform export: 0 of 1; 0.50 to 0.50" in text
    assert "with 4 and 8 bits: 0 of 1" in text
    assert "with all formats: 0 of 1; 0.45 to 0.45, in the geometric mean 0.45, of its KL; at most half in 1" in text
    assert "whose size differs from the promise: 0 of 2" in text
    assert "above: 1.10 to 1.10" in text
    assert "| 4 | 1,000 | 1,000 | 2.00e-03 | 1.00e-03 | 0.500 | 5.00e-04 (option 2) | 1.10 |" in text


def test_what_does_not_hold_is_bold(tmp_path: Path) -> None:
    text = page(tmp_path, [shipped(4, 3e-3, 2e-3, built=1001)], [rival(1.01, 1.5)])
    assert "worse than the uniform export: 1 of 1" in text
    assert "| **1.500** |" in text
    assert "whose size differs from the promise: 1 of 1" in text
    assert "| A peer | 5, 4.98 | 2,000 | 1.00e-03 | **1.010**? | 0.90 | **1.500** | 0.40 | 0.400 | 0.30 |" in text
