"""The run folder that an earlier qplan left of the embedded model; see tests/golden/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "golden" / "stdlib-3m"

ENGINE_PLAN = "int8-mnn-3.5.0"
"""A plan for an older engine, which only the folder's name says."""


def solved() -> dict[str, dict[str, Any]]:
    """Plans as they were solved from the golden table, by budget and logits rule."""
    found: dict[str, dict[str, Any]] = json.loads((GOLDEN / "solved.json").read_text(encoding="utf-8"))
    return found
