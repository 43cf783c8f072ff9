"""What an untied embedding loses in each format, measured: the model is run with its rows as they would be stored."""

from __future__ import annotations

import torch

from qplan.formats import QuantFormat
from qplan.model.streamed import looked_up
from qplan.quantize.embedding import store_embedding
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
    formats = list(dict.fromkeys(fmt for _, fmt, _, _ in wanted))
    variants = {fmt.name: Variant(_changed(analysis, name, fmt), "normal") for fmt in formats}
    tokens = torch.cat(batches)
    found = variant_losses(analysis.loaded, tokens, variants, batch_size=len(batches[0]), progress=progress)
    ends = [sum(map(len, batches[: place + 1])) for place in range(len(batches))]
    rows = [slice(end - len(batch), end) for end, batch in zip(ends, batches, strict=True)]
    parts = {fmt: found[fmt.name].rows(len(tokens), rows) for fmt in formats}
    for _, fmt, memory, batch in wanted:
        stats = parts[fmt][batch]
        exact = looked_up(analysis.loaded.embedding, batches[batch].to(analysis.loaded.device)).flatten(0, -2)
        output = OutputScale(exact).error(store_embedding(exact, fmt).dequantize())
        # no activations are rounded, and nothing is added up
        columns = metrics_of(stats, output) | dict.fromkeys(PARTS, 0.0)
        analysis.kept.add(Measurement(name, fmt.name, memory, batch, stats.tokens, **columns))


def _changed(analysis: Analysis, name: str, fmt: QuantFormat) -> dict[str, QuantFormat]:
    """The format, unless it keeps every number: then the model as it is need not be run twice."""
    return {} if analysis.changes_nothing(name, fmt, "normal") else {name: fmt}
