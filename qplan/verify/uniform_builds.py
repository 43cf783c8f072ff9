"""Uniform models as they are needed for a proof: built once, kept while it lasts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from qplan.formats import QuantFormat
from qplan.mnn.runtime import RuntimeConfig
from qplan.rounding.rounder import Rounder
from qplan.verify.bench import BuildBench


@dataclass
class UniformBuilds:
    """Folders of built uniform models, by name."""

    bench: BuildBench
    """What they are built from: the model before folding."""
    built: dict[str, Path] = field(default_factory=dict)

    def folder(self, name: str, formats: Mapping[str, QuantFormat], rounder: Rounder | None = None) -> Path:
        """The folder of a model, built when it is first asked for; rounded to nearest without a rounder."""
        if name not in self.built:
            self.bench.say(f"{name}: building")
            folder = self.bench.baselines / name
            self.built[name] = folder
            self.bench.build(formats, folder, RuntimeConfig(), rounder)
        return self.built[name]

    def remove(self, name: str) -> None:
        """Remove a model that is not needed any more."""
        folder = self.built.pop(name, None)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def uniform_builds(bench: BuildBench) -> Iterator[UniformBuilds]:
    """Uniform models that are removed at the end."""
    builds = UniformBuilds(bench)
    try:
        yield builds
    finally:
        for name in tuple(builds.built):
            builds.remove(name)
