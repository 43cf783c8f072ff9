"""One thing that is wrong with a model folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["error", "warning"]
"""``error``: the engine crashes, refuses the model or computes garbage. ``warning``: it may, or something is wasted."""


@dataclass(frozen=True)
class Finding:
    """What is wrong and where, what the engine does with it, and what to do."""

    code: str
    """A short name that scripts can rely on, e.g. ``weights-cut``."""
    severity: Severity
    where: str
    """File, and op or key within it."""
    what: str
    effect: str
    """What the engine does with it."""
    remedy: str

    def to_json(self) -> dict[str, str]:
        """Return all fields."""
        return asdict(self)


def error(code: str, where: str, what: str, effect: str, remedy: str) -> Finding:
    """A finding that keeps the model from running right."""
    return Finding(code, "error", where, what, effect, remedy)


def warning(code: str, where: str, what: str, effect: str, remedy: str) -> Finding:
    """A finding that need not keep the model from running right."""
    return Finding(code, "warning", where, what, effect, remedy)


EXPORT_AGAIN = "export or build the model again"
COPY_AGAIN = "copy the file again from where the model was made, or build the model again"
GARBAGE = "garbage logits without a message"
REFUSED = "the engine does not load the model, and crashes if it is used anyway"
