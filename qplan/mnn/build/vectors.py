"""Norms and biases: where the engine reads them, and the bytes of those that were fitted to a plan.

A norm's op has the name of its module in llmexport, ``/blocks.3/input_layernorm/...``, the final one the name of what
the head reads; a bias is part of its linear's record. Only vectors that the skeleton holds bit for bit are found: what
an exporter computes from a vector, or shares between ops, is not there to be replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from qplan.errors import ToolError
from qplan.formats import QuantFormat
from qplan.mnn.build.skeleton import Skeleton
from qplan.mnn.files import WEIGHT_FILE
from qplan.model.discovery import has_bias
from qplan.model.load import LoadedModel
from qplan.model.mixture import RoutedLinear
from qplan.rounding.rounder import Rounder


@dataclass(frozen=True)
class VectorPlace:
    """Where the engine reads a vector."""

    op_name: str
    offset: int
    """In the skeleton's weight file, in bytes."""
    length: int
    """In bytes."""


def find_vectors(skeleton: Skeleton, loaded: LoadedModel) -> dict[str, VectorPlace]:
    """Places of a model's norms and biases, by parameter name."""
    found = {}
    with (skeleton.folder / WEIGHT_FILE).open("rb") as weights:
        for name, place in (_norms(skeleton, loaded) | _biases(skeleton, loaded)).items():
            weights.seek(place.offset)
            if weights.read(place.length) == _bytes(loaded, name, loaded.model.get_parameter(name)):
                found[name] = place
    return found


def vectors_of_ops(skeleton: Skeleton, rounder: Rounder, formats: Mapping[str, QuantFormat]) -> dict[str, bytes]:
    """Bytes by op name of the norms and biases that were fitted to a plan, for `qplan.mnn.build.writer.build_model`.

    Args:
        skeleton: the exported model.
        rounder: stores the plan's tensors.
        formats: the plan's.

    Raises:
        ToolError: the skeleton does not hold a vector that was trained.
    """
    fitted = rounder.vectors_with(formats)
    places = find_vectors(skeleton, rounder.loaded) if fitted else {}
    if absent := sorted(fitted.keys() - places.keys()):
        msg = f"{skeleton.folder} does not hold {absent[0]} of the model, which was trained; export the model again"
        raise ToolError(msg)
    return {places[name].op_name: _bytes(rounder.loaded, name, value) for name, value in fitted.items()}


def _norms(skeleton: Skeleton, loaded: LoadedModel) -> dict[str, VectorPlace]:
    """Scales of norms, by name alone."""
    layers, final = loaded.architecture.layers, loaded.architecture.final_norm
    linears = {site.module for site in loaded.sites.values()}
    last = next((name for name in reversed(skeleton.norms) if not name.startswith("/blocks.")), None)
    found = {}
    for path, module in loaded.model.named_modules():
        own = dict(module.named_parameters(recurse=False)).get("weight")
        if own is None or own.dim() != 1 or path in linears:
            continue
        start = f"/blocks.{path.removeprefix(f'{layers}.').replace('.', '/', 1).replace('.', '/')}/"
        ops = [last] if path == final else [name for name in skeleton.norms if name.startswith(start)]
        if len(ops) == 1 and ops[0] is not None:
            place = skeleton.norms[ops[0]]
            found[f"{path}.weight"] = VectorPlace(ops[0], place.offset, place.length)
    return found


def _biases(skeleton: Skeleton, loaded: LoadedModel) -> dict[str, VectorPlace]:
    """Biases of linears that are one op and that every token reads."""
    records = {op.name: op.record for op in skeleton.ops}
    found = {}
    for spec in loaded.card.tensors:
        if spec.op_name not in records:
            continue
        linear, record = loaded.linear(spec.name), records[spec.op_name]
        whole = spec.out_features == linear.out_features
        if whole and has_bias(linear) and not isinstance(linear, RoutedLinear):
            offset = record.offset + record.weight + record.alpha
            name = f"{loaded.sites[spec.name].module}.bias"
            found[name] = VectorPlace(spec.op_name, offset, record.bias)
    return found


def _bytes(loaded: LoadedModel, name: str, value: nn.Parameter | Tensor) -> bytes:
    """float32, as the engine reads it: a norm with what the architecture adds to its weights."""
    offset = 0.0 if name.endswith(".bias") else loaded.architecture.norm_offset
    array: np.ndarray = (value.detach().to(torch.float32) + offset).cpu().numpy()
    return array.tobytes()
