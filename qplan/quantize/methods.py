"""The roundings by name, behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from qplan.formats import QuantFormat
from qplan.quantize.curvature import Curvature
from qplan.quantize.gptq import gptq
from qplan.quantize.hqq import hqq
from qplan.quantize.range_search import range_search
from qplan.quantize.rtn import rtn
from qplan.quantize.stored import StoredTensor

Method = Callable[[Tensor, QuantFormat, Curvature], StoredTensor]
"""Stores ``weight [out, in]`` in a format, given the curvature of its inputs."""

CALIBRATED: Mapping[str, Method] = MappingProxyType(
    {"gptq": gptq, "search": lambda weight, fmt, curvature: range_search(weight, fmt, curvature.mean_squares)}
)
"""Methods that fit to calibration tokens."""

DATA_FREE: Mapping[str, Callable[[Tensor, QuantFormat], StoredTensor]] = MappingProxyType({"rtn": rtn, "hqq": hqq})
"""Methods that see nothing but the weights."""

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        **CALIBRATED,
        "hqq": lambda weight, fmt, _curvature: hqq(weight, fmt),
        "rtn": lambda weight, fmt, _curvature: rtn(weight, fmt),
    }
)
"""All of them."""
