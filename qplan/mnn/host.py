"""Where a process of MNN's engine runs: by this Python, by another one, or by one under an emulator."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_MNN = Path(__file__).parent


@dataclass(frozen=True)
class EngineHost:
    """A Python with MNN and NumPy."""

    words: tuple[str, ...]
    """Beginning of its command line."""
    patience: float = 1.0
    """How many times as long as this Python it may take before it counts as hung."""

    def command(self, script: str, arguments: Sequence[str]) -> list[str]:
        """Command line of one of the ``*_child.py`` scripts of `qplan.mnn`.

        ``-P`` keeps the script's folder out of ``sys.path``: its module names must not shadow others.
        """
        return [*self.words, "-P", str(_MNN / script), *arguments]


THIS_PYTHON = EngineHost((sys.executable,))
"""The installed engine."""


def python_host(python: Path) -> EngineHost:
    """Another interpreter of this machine."""
    return EngineHost((str(python.absolute()),))
