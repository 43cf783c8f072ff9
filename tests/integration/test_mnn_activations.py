"""The emulated int8 activations of memory low against the engine, one quantised op at a time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qplan.formats import FP16, INT8
from qplan.mnn.engine import Engine
from qplan.mnn.writer import build_model
from qplan.quantize import int8_decode, int8_prefill
from tests.integration.mnn_models import ExportedModel, linear

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("op_name", ["/layers.0/self_attn/q_proj/Linear", "/layers.1/mlp/down_proj/Linear"])
def test_emulation_is_the_engines_arithmetic(
    tied_model: ExportedModel, op_name: str, token_ids: list[int], tmp_path: Path
) -> None:
    tensors = tied_model.tensors(tied_model.formats(FP16) | {op_name: INT8})
    build_model(tied_model.skeleton, tensors, tmp_path / "m")
    model = tied_model.load()
    for name, tensor in tensors.items():
        linear(model, name).weight.data.copy_(tensor.dequantize())

    def emulate(quantise: Callable[[Tensor], Tensor]) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        def before(module: object, args: tuple[Tensor]) -> tuple[Tensor]:
            return (quantise(args[0]),)

        hook = linear(model, op_name).register_forward_pre_hook(before)
        with torch.no_grad():
            logits = model(torch.tensor([token_ids])).logits[0].numpy()
        hook.remove()
        return np.asarray(logits)

    plain = emulate(lambda x: x)
    with Engine(tmp_path / "m") as engine:
        for found, quantise in (
            (engine.logits(token_ids), int8_prefill),
            (engine.logits_stepwise(token_ids), int8_decode),
        ):
            effect = np.linalg.norm(found - plain)
            # a code that lies on the edge may fall to either side
            assert np.linalg.norm(found - emulate(quantise)) < 0.05 * effect
