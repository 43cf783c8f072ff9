"""What an untied embedding loses in each format, measured: the model is run with its rows as they would be stored."""

from __future__ import annotations

import math
from itertools import accumulate

import torch

from qplan.model.streamed import looked_up
from qplan.rounding.embedding import store_embedding
from qplan.run.measurement import PARTS, Measurement
from qplan.sensitivity.analysis import Analysis
from qplan.sensitivity.joint import Variant, variant_losses
from qplan.sensitivity.metrics import OutputScale, metrics_of
from qplan.settings import Progress


def measure_embedding(analysis: Analysis, progress: Progress | None = None) -> None:
    """Measure an untied embedding in all its formats, unless that is known; a tied one is measured with the head.

    All formats go through the model together, one layer after the other, beside the model as it is.

    Args:
        analysis: of the model that plans are about; measurements are kept there.
        progress: called with the passes, of one batch in one format, that are done.

    Raises:
        MeasurementError: a loss is not finite.
    """
    wanted = [
        (name, fmt, memory, batch)
        for name, fmt, memory in analysis.embedding_entries()
        for batch in range(len(analysis.embedding_batches))
        if (name, fmt.name, memory, batch, "measured") not in analysis.kept.measurements
    ]
    if not wanted:
        return
    name, batches = wanted[0][0], analysis.embedding_batches
    embedding, device = analysis.loaded.embedding, analysis.loaded.device
    scales = [OutputScale(looked_up(embedding, batch.to(device)).flatten(0, -2)) for batch in batches]
    errors = {
        fmt: [scale.error(store_embedding(scale.reference, fmt).dequantize()) for scale in scales]
        for fmt in dict.fromkeys(fmt for _, fmt, _, _ in wanted)
    }
    # the model as it is need not be run twice, where a format keeps every number
    variants = {
        fmt.name: Variant({name: fmt} if any(error.sqnr_db < math.inf for error in found) else {}, "normal")
        for fmt, found in errors.items()
    }
    tokens = torch.cat(batches)
    found = variant_losses(analysis.loaded, tokens, variants, batch_size=len(batches[0]), progress=progress)
    ends = list(accumulate(map(len, batches)))
    rows = [slice(end - len(batch), end) for end, batch in zip(ends, batches, strict=True)]
    parts = {fmt: found[fmt.name].rows(len(tokens), rows) for fmt in errors}
    for _, fmt, memory, batch in wanted:
        stats = parts[fmt][batch]
        # no activations are rounded, and nothing is added up
        columns = metrics_of(stats, errors[fmt][batch]) | dict.fromkeys(PARTS, 0.0)
        analysis.kept.add(Measurement(name, fmt.name, memory, batch, stats.tokens, **columns))
