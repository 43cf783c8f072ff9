"""What every way to damage a file is: words for it, and a function that does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], object]
"""Changes the file at a path."""

Way = tuple[str, Change]
"""What is done, and a function that does it."""


def changed(document: object, steps: list[int], action: str, value: object) -> object:
    """Walk down by the steps, each modulo what there is, and act on the last place."""
    if not isinstance(document, dict | list) or not document:
        return value
    holder: Any = document
    for depth, step in enumerate(steps):
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = keys[step % len(keys)]
        below = holder[key]
        if isinstance(below, dict | list) and below and depth < len(steps) - 1:
            holder = below
            continue
        if action == "removed":
            del holder[key]
        elif action == "added" and isinstance(holder, dict):
            holder[str(value)[:20]] = value
        elif action == "added":
            holder.append(value)
        else:
            holder[key] = value
        break
    return document


def short(value: object) -> str:
    """A JSON value in a few characters."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) < 40 else text[:37] + "..."
