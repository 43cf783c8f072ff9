"""Stub replaced below."""

from pathlib import Path
from typing import Any


def write_page(results: dict[str, Any], path: Path) -> None: ...
