"""The run folder that an earlier qplan left of the embedded model; see tests/golden/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "golden" / "stdlib-3m"

FEW = GOLDEN.parent / "few"
"""Table and plan that the same qplan made of few tokens and formats, quickly."""

FEW_OPTIONS = (
    *("--calib", "python-stdlib", "--samples", "2", "--seq-len", "128", "--fit-tokens", "1024"),
    *("--formats", "fp16,int8,int4"),
)
"""With these options."""

ENGINE_PLAN = "int8-mnn-3.5.0"
"""A plan for an older engine, which only the folder's name says."""


def solved() -> dict[str, dict[str, Any]]:
    """Plans as they were solved from the golden table, by budget and logits rule."""
    found: dict[str, dict[str, Any]] = json.loads((GOLDEN / "solved.json").read_text(encoding="utf-8"))
    return found
