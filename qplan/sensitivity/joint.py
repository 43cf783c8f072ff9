"""Joint losses: plans with all their tensors changed at once, and the model as it is, one layer after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.model.half_products import with_half_outputs
from qplan.model.layerwise import but_routers, run_layer
from qplan.model.load import LoadedModel
from qplan.rounding import Int8Activations
from qplan.rounding.rounder import Rounder
from qplan.sensitivity.half_arithmetic import in_half
from qplan.sensitivity.kept_logits import KeptLogits, Passes
from qplan.sensitivity.metrics import TokenStats, compare, join, reference_of
from qplan.sensitivity.stored_weights import StoredWeights
from qplan.sensitivity.variants import PREFILL, apply_formats
from qplan.settings import Memory, Progress

LOGITS_BYTES = 1 << 28
"""Largest logits of a batch, unless it is one sequence: a comparison holds three such arrays."""

_HIDDEN_BYTES = 1 << 29
"""Hidden states that are kept between two layers, of all variants together."""


@dataclass(frozen=True)
class Variant:
    """A model as MNN would compute it."""

    formats: Mapping[str, QuantFormat]
    """By tensor name; tensors not named stay FP32."""
    memory: Memory = "low"
    """MNN's memory setting whose arithmetic is emulated."""
    activations: Int8Activations = PREFILL
    """The int8 activations to emulate under ``low``, and the arithmetic of everything else."""
    half: bool = False
    """Whether linears compute products of bfloat16."""

    @property
    def in_half(self) -> bool:
        """Whether everything is computed in fp16."""
        return self.activations.half


def joint_losses(
    loaded: LoadedModel,
    tokens: Tensor,
    plans: Mapping[str, Mapping[str, QuantFormat]],
    memory: Memory = "low",
    activations: Int8Activations = PREFILL,
    *,
    batch_size: int = 4,
    engine_embedding: bool = False,
    rounder: Rounder | None = None,
    reference: KeptLogits | None = None,
    progress: Progress | None = None,
) -> dict[str, TokenStats]:
    """Compare plans with the FP32 model under one setting; see `variant_losses`."""
    return variant_losses(
        loaded,
        tokens,
        {label: Variant(formats, memory, activations) for label, formats in plans.items()},
        batch_size=batch_size,
        engine_embedding=engine_embedding,
        rounder=rounder,
        reference=reference,
        progress=progress,
    )


def variant_losses(
    loaded: LoadedModel,
    tokens: Tensor,
    variants: Mapping[str, Variant],
    *,
    batch_size: int = 4,
    engine_embedding: bool = False,
    rounder: Rounder | None = None,
    reference: KeptLogits | None = None,
    progress: Progress | None = None,
) -> dict[str, TokenStats]:
    """Compare variants with the FP32 model.

    All of them go through one layer after the other. So each stored weight is computed once, only those of a layer are
    in memory, and variants that are the same up to a layer are computed once up to there.

    Args:
        loaded: the model.
        tokens: int64 ``[rows, seq_len]``.
        variants: by label.
        batch_size: most rows in a matrix product; fewer where the vocabulary is large, see `LOGITS_BYTES`.
        engine_embedding: also store an untied embedding as bfloat16, as MNN does.
        rounder: chooses the integers; None rounds to nearest.
        reference: what the FP32 model says of the tokens; None to compute it.
        progress: called with the passes, of one batch in one variant, that are done by then.

    Returns:
        The comparison of every token, by label.

    Raises:
        InputError: a tensor cannot have its format.
        MeasurementError: a loss is not finite.
        ValueError: a reference on other tokens.
    """
    if reference is not None and not torch.equal(torch.from_numpy(reference.rows), tokens):
        msg = "the kept reference is of other tokens"
        raise ValueError(msg)
    batches = tokens.split(rows_together(loaded, tokens, batch_size))
    paths = len(variants) + (reference is None)
    per_batch = 4 * batches[0].numel() * loaded.embedding.embedding_dim * max(1, paths)
    together = max(1, _HIDDEN_BYTES // per_batch)
    parts: dict[str, list[TokenStats]] = {label: [] for label in variants}
    stored, told = StoredWeights(loaded, rounder), Passes(len(batches) * len(variants), progress)
    stages = len(loaded.layers) + 1
    for start in range(0, len(batches), together):
        sweep = _Sweep(loaded, batches[start : start + together], variants, stored, engine_embedding, reference is None)
        for index in range(len(loaded.layers)):
            sweep.layer(index)
            told.tell((start + len(sweep.batches) * (index + 1) / stages) / len(batches))
        for number, found in enumerate(sweep.head(reference, sum(len(batch) for batch in batches[:start]))):
            for label, stats in found.items():
                parts[label].append(stats)
            told.tell((start + (len(sweep.batches) * (stages - 1) + number + 1) / stages) / len(batches))
    return {label: join(stats) for label, stats in parts.items()}


def rows_together(loaded: LoadedModel, tokens: Tensor, most: int) -> int:
    """Rows of ``tokens [rows, seq_len]`` to compute at a time, so that their logits stay within `LOGITS_BYTES`."""
    return max(1, min(most, LOGITS_BYTES // (4 * loaded.card.vocabulary * tokens.shape[1])))


def formats_of_layer(loaded: LoadedModel, formats: Mapping[str, QuantFormat], index: int) -> dict[str, QuantFormat]:
    """A plan's formats of a decoder layer's tensors; the number of layers stands for the head.

    That of an embedding, or of a head tied to it, belongs to the first layer too.
    """
    at = index if index < len(loaded.layers) else None
    return {
        spec.name: formats[spec.name]
        for spec in loaded.card.planned
        if spec.name in formats
        and ((index == 0 and (spec.tied or spec.is_embedding)) or (spec.layer == at and not spec.is_embedding))
    }


_Stage = tuple[object, ...]
"""What a stage of the model computes with: the same for variants that differ elsewhere."""


@dataclass
class _Path:
    """The model up to a layer, as it is the same for some variants."""

    labels: list[str | None]
    """Of the variants; None is the FP32 model."""
    given: list[Any]
    """What the last layer returned, by batch."""


@dataclass
class _Sweep:
    """Some batches on their way through the layers, in all variants."""

    loaded: LoadedModel
    batches: Sequence[Tensor]
    variants: Mapping[str, Variant]
    stored: StoredWeights
    engine_embedding: bool
    exact: bool
    """Whether the FP32 model goes along."""
    paths: list[_Path] = field(init=False)

    def __post_init__(self) -> None:
        """Begin at the embedding, where all are the same."""
        labels: list[str | None] = [*self.variants, *([None] if self.exact else [])]
        self.paths = [_Path(labels, [None] * len(self.batches))]

    def layer(self, index: int) -> None:
        """Compute a layer."""
        after: list[_Path] = []
        for label, paths in self._alike(index):
            with self._applied(label, index), torch.no_grad():
                for path, batches in paths:
                    given = [run_layer(self.loaded, index, *pair) for pair in zip(self.batches, batches, strict=True)]
                    after.append(_Path(path, given))
        self.paths = after
        self.stored.forget()

    def head(self, reference: KeptLogits | None, first: int) -> Iterator[dict[str, TokenStats]]:
        """Compare the logits, batch after batch.

        Args:
            reference: the FP32 model's; None to compute it.
            first: row of the tokens that the batches begin with.
        """
        index = len(self.loaded.layers)
        alike = list(self._alike(index))
        for number, batch in enumerate(self.batches):
            if reference is None:
                given = next(path.given for path in self.paths if None in path.labels)[number]
                with torch.no_grad():
                    logits = run_layer(self.loaded, index, batch, given)
            else:
                logits = reference.of(slice(first, first + len(batch))).to(self.loaded.device)
            exact = reference_of(logits, batch)
            del logits
            found: dict[str, TokenStats] = {}
            for label, paths in alike:
                with self._applied(label, index), torch.no_grad():
                    for labels, batches in paths:
                        wanted = [one for one in labels if one is not None]
                        if wanted:
                            stats = compare(exact, run_layer(self.loaded, index, batch, batches[number]))
                            found |= dict.fromkeys(wanted, stats)
            yield found
            first += len(batch)
        self.stored.forget()

    def _alike(self, index: int) -> Iterator[tuple[str | None, list[tuple[list[str | None], list[Any]]]]]:
        """For each way to compute a stage, a variant that does, and the labels and inputs of all that do."""
        ways: dict[_Stage, list[tuple[list[str | None], list[Any]]]] = {}
        for path in self.paths:
            split: dict[_Stage, list[str | None]] = {}
            for label in path.labels:
                split.setdefault(self._stage(label, index), []).append(label)
            for stage, labels in split.items():
                ways.setdefault(stage, []).append((labels, path.given))
        for paths in ways.values():
            yield paths[0][0][0], paths

    def _formats(self, label: str | None, index: int) -> dict[str, QuantFormat]:
        return {} if label is None else formats_of_layer(self.loaded, self.variants[label].formats, index)

    def _stage(self, label: str | None, index: int) -> _Stage:
        if label is None:
            return ()
        variant = self.variants[label]
        found: list[object] = ["embedding"] if index == 0 and self.engine_embedding else []
        found += ["half"] if variant.half else []
        found += ["fp16", index] if variant.in_half else []
        for name, fmt in self._formats(label, index).items():
            rounds = variant.memory == "low" and not fmt.is_float and not self.loaded.card.tensor(name).is_embedding
            found.append((name, fmt, variant.activations if rounds else None))
        return tuple(found)

    @contextmanager
    def _applied(self, label: str | None, index: int) -> Iterator[None]:
        variant = Variant({}) if label is None else self.variants[label]
        formats = apply_formats(
            self.loaded,
            self._formats(label, index),
            variant.memory,
            variant.activations,
            stored=self.stored,
            engine_embedding=self.engine_embedding and index == 0 and label is not None,
            half=variant.half,
        )
        everything = in_half(self.loaded, index) if variant.in_half else nullcontext()
        with with_half_outputs(but_routers(self.loaded, index) if variant.half else ()), formats, everything:
            yield
