"""The comparison of roundings on the same text: another tool's integers in MNN's format, and the page."""

from __future__ import annotations

import pytest
import torch

from qplan.errors import ToolError
from qplan.formats import QuantFormat
from reports.rounding.compared import integers_of, page

FORMAT = QuantFormat(3, 32)


def row(rounding: str, prose: float, bits: int = 3) -> dict[str, object]:
    told = {"model": "m", "fitted_to": "mixture", "tokens": 2048, "bits": bits, "rounding": rounding, "s": None}
    return told | {"prose": prose, "code": 2 * prose, "documentation": 3 * prose}


def test_ratios_are_to_the_better_recipe() -> None:
    rows = [row("qplan", 0.6), row("AutoRound, default", 1.2), row("AutoRound, best", 1.0), row("qplan", 0.1, bits=8)]
    lines = [line for line in page(rows).splitlines() if line.startswith(("| 3", "| 8"))]
    assert lines[0].startswith("| 3 | qplan | 6.000e-01 (0.60) | 1.200e+00 (0.60) | 1.800e+00 (0.60) |")
    assert "(1.20)" in lines[1]
    assert "(1.00)" in lines[2]
    assert "(" not in lines[3]


def test_integers_of_another_tool_keep_their_values() -> None:
    random = torch.Generator().manual_seed(0)
    scale = (torch.rand(4, 2, generator=random) + 0.5).half().float() / 64
    zero = torch.randint(0, 8, (4, 2), generator=random).float()
    wanted = torch.randint(0, 8, (4, 2, 32), generator=random).float()
    weight = ((wanted - zero[..., None]) * scale[..., None]).view(4, 64)
    found = integers_of(FORMAT, weight, scale, zero)
    torch.testing.assert_close(found.dequantize(), weight, rtol=0, atol=float(scale.max()) * 0.01)
    assert torch.equal(found.codes.float().view_as(wanted), wanted)
    with pytest.raises(ToolError, match="steps away from their grid"):
        integers_of(FORMAT, weight + scale.max() / 2, scale, zero)
