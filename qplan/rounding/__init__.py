"""MNN's quantizers as pure functions on tensors, bit exact."""

from qplan.rounding.activations import EnginePath, Int8Activations, int8_decode, int8_prefill
from qplan.rounding.rtn import rtn
from qplan.rounding.stored import FloatTensor, IntTensor, StoredTensor, store_float

__all__ = [
    "EnginePath",
    "FloatTensor",
    "Int8Activations",
    "IntTensor",
    "StoredTensor",
    "int8_decode",
    "int8_prefill",
    "rtn",
    "store_float",
]
