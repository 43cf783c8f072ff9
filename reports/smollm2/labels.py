"""What rows are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PLAN, FLOAT, OFFICIAL = "plan-", "fp16", "int4-hqq"

Row = Mapping[str, Any]


def label(row: Row) -> str:
    """What a row is called."""
    name = str(row["name"])
    if name.startswith(PLAN):
        if row["beside"] is not None:
            return f"**qplan**, {row['beside']}'s bytes"
        budget, _, more = name.removeprefix(PLAN).partition("-")
        ends = {"": "'s limits", "files": "'s files alone", "phone": "'s limits, for phones"}
        return f"**qplan**, {budget.upper()}{ends[more]}"
    if name == FLOAT:
        return "FP16"
    if name == OFFICIAL:
        return "llmexport --hqq, 4 bits"
    return f"uniform {name.upper()}" if name in {"int8", "int4"} else f"uniform {name}"
