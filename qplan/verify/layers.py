"""What a built model answers after fewer and fewer layers, on the engine and in torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from qplan.mnn.engine.session import EngineSession
from qplan.mnn.graph.lens import look_after, open_lens
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel
from qplan.sensitivity.kept_logits import Logits
from qplan.sensitivity.metrics import compare, reference_of
from qplan.verify.lens import lens_logits


@contextmanager
def engine_lens(
    model: Path, loaded: LoadedModel, runtime: RuntimeConfig, token_ids: Sequence[int], work: Path | None = None
) -> Iterator[Callable[[int], Logits]]:
    """Yield a function from a number of layers to logits ``[tokens, vocabulary]`` of a built model cut off after them.

    Args:
        model: built folder.
        loaded: the torch model, for its depth and context.
        runtime: settings of the engine.
        token_ids: one sequence.
        work: where temporary folders go.
    """
    layers, context = len(loaded.layers), loaded.card.context
    with tempfile.TemporaryDirectory(prefix="lens-", dir=work) as temporary:
        home = Path(temporary)
        document = open_lens(model, home)

        def logits_after(count: int) -> Logits:
            folder = model if count == layers else look_after(model, document, count, home / "model")
            with EngineSession(folder, runtime, context=context) as engine:
                return engine.logits(token_ids)

        yield logits_after


def kl_between(wanted: Logits, found: Logits, token_ids: Sequence[int]) -> float:
    """Mean KL(wanted || found) of next-token distributions, nats per token."""
    reference = reference_of(torch.from_numpy(wanted), torch.tensor(list(token_ids)))
    return compare(reference, torch.from_numpy(found)).kl_nats


def error_by_layer(
    model: Path, loaded: LoadedModel, runtime: RuntimeConfig, token_ids: Sequence[int]
) -> tuple[float, ...]:
    """KL of what the head reads after 0, 1, ... all layers, engine against torch in FP32, nats per token.

    Raises:
        InputError: the graph is not laid out as llmexport does it.
        ToolError: the converter or the engine failed.
    """
    expected = lens_logits(loaded, token_ids)
    with engine_lens(model, loaded, runtime, token_ids) as logits_after:
        return tuple(kl_between(wanted, logits_after(count), token_ids) for count, wanted in enumerate(expected))
