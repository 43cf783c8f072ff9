"""What every build and every measurement of a proof needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qplan.formats import QuantFormat
from qplan.mnn.build.skeleton import Skeleton
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.engines import EngineTarget
from qplan.mnn.graph.lens import look_after, open_lens
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel
from qplan.model.model_settings import settings_of
from qplan.model.replace import with_first_layers
from qplan.notes import Note
from qplan.rounding import StoredTensor
from qplan.rounding.rounder import Rounder
from qplan.scratch import Scratch
from qplan.settings import MEMORIES, Memory, Progress, Say
from qplan.uniform import NEAREST, UniformExport
from qplan.verify.engine_memory import EngineMemory, first_tensors
from qplan.verify.measure import Trial

GATE_TOKENS = 64
"""Tokens on which the engine's logits are compared one by one with torch's."""

MOST_GATE_BYTES = 2 << 30
"""Largest array of logits that a long sequence is compared by."""


@dataclass(frozen=True, kw_only=True)
class BuildBench:
    """What every build and every measurement needs."""

    loaded: LoadedModel
    skeleton: Skeleton
    trial: Trial
    text: Note
    """Where the tokens of the trial come from."""
    text_sha256: str
    baselines: Path
    """Folder for the measurements of uniform models."""
    say: Say
    target: EngineTarget
    """What the model's engine can read."""
    memory: EngineMemory | None = None
    """What the engine may take; None for no limit."""
    hqq: Rounder | None = None
    """Rounds uniform models as MNN's exporter does with ``--hqq``; None to keep nothing that it rounds."""
    progress: Progress | None = None
    """Called after each model that is measured."""

    def build(
        self,
        formats: Mapping[str, QuantFormat],
        out: Path,
        runtime: RuntimeConfig,
        rounder: Rounder | None = None,
        layers: int | None = None,
    ) -> None:
        """Build a runnable folder, one tensor at a time in memory; rounded to nearest without a rounder.

        With ``layers``, the tensors of those after so many first ones are left out; `first_layers` runs the others.
        """
        rounder = rounder or Rounder(self.loaded)
        kept = {spec.name for spec in first_tensors(self.loaded.card, layers)}

        def store(name: str, fmt: QuantFormat) -> StoredTensor | None:
            return rounder.store(name, fmt) if name in kept else None

        tensors, tie_form = self.loaded.card.planned, self.target.tie_form
        build_model(
            self.skeleton,
            tensors,
            formats,
            store,
            out,
            tie_form=tie_form,
            runtime=runtime,
            context=self.loaded.card.context,
            replace=True,
        )

    def tell(self, measured: int, models: int) -> None:
        """Tell how many of the models are measured."""
        if self.progress is not None:
            self.progress(measured, models)

    def exporter(self, export: UniformExport) -> Rounder:
        """What rounds a uniform model."""
        return Rounder(self.loaded) if export.rounding == NEAREST else self.hqq or Rounder(self.loaded, export.rounding)

    def engine(self, folder: Path) -> EngineSession:
        """Start the engine with a built folder and float activations: memory normal."""
        return EngineSession(folder, RuntimeConfig("normal"), context=self.loaded.card.context)

    def settings(self, formats: Mapping[str, QuantFormat]) -> tuple[Memory, ...]:
        """The engine's memory settings under which a model can be run."""
        return MEMORIES if self.memory is None else self.memory.settings(formats)

    def layers(self, formats: Mapping[str, QuantFormat]) -> int | None:
        """How many of the first layers of a model can be compared logit by logit; None for all.

        Raises:
            InputError: not one.
        """
        most = None if self.memory is None else self.memory.most_layers(formats)
        return None if most == len(self.loaded.layers) else most

    @contextmanager
    def first_layers(self, folder: Path, layers: int | None) -> Iterator[EngineSession]:
        """The engine with the first layers of a built folder under its norm and head, and torch computing the same."""
        if layers is None:
            with self.engine(folder) as engine:
                yield engine
            return
        with Scratch(beside=folder) as work:  # links, on the same file system
            cut = look_after(folder, open_lens(folder, work), layers, work / "model")
            with self.engine(cut) as engine, with_first_layers(self.loaded, layers):
                yield engine

    @property
    def token_ids(self) -> list[int]:
        """The first tokens of the trial, for logit by logit comparisons."""
        return self.tokens(min(GATE_TOKENS, self.trial.reference.rows.shape[1]))

    def tokens(self, count: int) -> list[int]:
        """The first tokens of the trial, again and again if it has fewer."""
        ids: list[int] = np.resize(self.trial.reference.rows, count).tolist()
        return ids

    @property
    def long_tokens(self) -> int | None:
        """Length of a sequence beyond the model's windows and original context; None if it has none within its context.

        An exporter that drops such a setting is right on shorter sequences.
        """
        card = self.loaded.card
        most_bytes = MOST_GATE_BYTES if self.memory is None else min(MOST_GATE_BYTES, self.memory.limit_bytes // 16)
        most = min(card.context, most_bytes // (4 * card.vocabulary))
        boundaries = [setting.boundary for setting in settings_of(self.loaded.config) if setting.boundary is not None]
        lengths = [boundary + GATE_TOKENS for boundary in boundaries if boundary < card.context]
        return min(most, max(lengths)) if lengths else None
