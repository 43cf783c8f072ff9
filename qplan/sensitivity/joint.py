"""Joint losses: plans with all their tensors changed at once."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from qplan.formats import QuantFormat
from qplan.model.load import LoadedModel
from qplan.quantize import Int8Activations
from qplan.quantize.rounder import Rounder
from qplan.sensitivity.metrics import TokenStats, compare, join, reference_of
from qplan.sensitivity.variants import PREFILL, StoredWeights, apply_formats
from qplan.settings import Memory, Progress


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
    progress: Progress | None = None,
) -> dict[str, TokenStats]:
    """Compare plans with the FP32 model, with one reference pass per batch for all plans.

    Args:
        loaded: the model.
        tokens: int64 ``[rows, seq_len]``.
        plans: formats by tensor name, by label; tensors not named stay FP32.
        memory: MNN's memory setting whose arithmetic is emulated.
        activations: the int8 activations to emulate under ``low``.
        batch_size: rows per pass.
        engine_embedding: also store an untied embedding as bfloat16, as MNN does.
        rounder: chooses the integers; None rounds to nearest.
        progress: called after each pass.

    Returns:
        The comparison of every token, by label.

    Raises:
        InputError: a tensor cannot have its format.
        MeasurementError: a loss is not finite.
    """
    parts: dict[str, list[TokenStats]] = {label: [] for label in plans}
    stored = StoredWeights(loaded, rounder)
    batches = tokens.split(batch_size)
    done, total = 0, len(batches) * len(plans)
    for batch in batches:
        reference = reference_of(loaded.logits(batch), batch)
        for label, formats in plans.items():
            with apply_formats(loaded, formats, memory, activations, stored=stored, engine_embedding=engine_embedding):
                parts[label].append(compare(reference, loaded.logits(batch)))
            done += 1
            if progress is not None:
                progress(done, total)
    return {label: join(stats) for label, stats in parts.items()}
