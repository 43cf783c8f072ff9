"""Rows of an untied embedding as its own file stores them."""

from __future__ import annotations

import torch
from torch import Tensor

from qplan.formats import QuantFormat
from qplan.rounding.rtn import rtn
from qplan.rounding.stored import FloatTensor, StoredTensor


def store_embedding(rows: Tensor, fmt: QuantFormat) -> StoredTensor:
    """Store ``rows [rows, hidden]`` in a format: bfloat16 for 16 bits, integers rounded to nearest.

    No product adds a row's errors up, and no input says which of them matter: there is nothing to fit integers to.
    """
    return FloatTensor(fmt, rows.to(torch.bfloat16)) if fmt.is_float else rtn(rows, fmt)
