"""What a peer's scorer is asked, and what it answers. Runs in the peer's environment, without qplan."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Job:
    """One scorer on one model."""

    model: str
    """Hugging Face folder."""
    tokens: str
    """``.npy`` file of int64 ``[samples, seq_len]``: the tokens to score on."""
    budgets: tuple[float, ...]
    """Mean widths of the planned weights in bits, without scales."""
    batch_size: int
    """Sequences per pass."""
    variant: str = ""
    """Which of the peer's scorers to use."""

    @property
    def ids(self) -> NDArray[np.int64]:
        """The tokens ``[samples, seq_len]``."""
        ids: NDArray[np.int64] = np.load(self.tokens)
        return ids


@dataclass(frozen=True)
class Spent:
    """What scoring took; importing and loading are not counted."""

    seconds: float
    """Processor seconds of all threads together."""
    wall_s: float
    peak_mib: float | None
    """Peak resident memory less that before the work; None where Linux does not report it."""


@dataclass(frozen=True)
class Answer:
    """A scorer's plans."""

    versions: dict[str, str]
    """Versions of the peer's packages."""
    method: str
    """The peer's name for what was called."""
    forward_s: float
    """Processor seconds of one forward pass over the same tokens in the peer's framework."""
    spent: Spent
    """Time and memory of scoring and of the first plan."""
    plans: dict[str, dict[str, int]]
    """Width in bits by tensor, by budget. Tensors that the peer does not plan are missing."""

    def write(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Answer:
        """Read what `write` wrote."""
        value = json.loads(path.read_text(encoding="utf-8"))
        return cls(**(value | {"spent": Spent(**value["spent"])}))


def parse() -> tuple[Job, Path]:
    """The job named on the command line, and where its answer goes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    parser.add_argument("answer", type=Path)
    options = parser.parse_args()
    value = json.loads(options.job.read_text(encoding="utf-8"))
    return Job(**(value | {"budgets": tuple(value["budgets"])})), options.answer


def versions(*packages: str) -> dict[str, str]:
    """Installed versions."""
    return {name: version(name) for name in packages}


def mean_bits(bits: Mapping[str, int], weights: Mapping[str, int]) -> float:
    """Mean width of the planned weights in bits."""
    return sum(bits[name] * weights[name] for name in bits) / sum(weights[name] for name in bits)
