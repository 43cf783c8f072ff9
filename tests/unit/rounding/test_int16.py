"""Pairs of products that would not fit int16 on ARM without dot product."""

from __future__ import annotations

import pytest
import torch

from qplan.cost.target import find_target, target_names
from qplan.formats import INT8, QuantFormat
from qplan.model.load import LoadedModel
from qplan.rounding import IntTensor, rtn
from qplan.rounding.int16 import within_int16
from qplan.rounding.rounder import Rounder
from qplan.run.safetensors_file import ALL


def two_valued() -> torch.Tensor:
    signs = torch.randint(0, 2, (6, 128), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    return signs * 0.1


@pytest.mark.parametrize("fmt", [INT8, QuantFormat(8, 0), QuantFormat(8, 32, scale_bits=32)])
def test_no_block_keeps_its_lowest_code_twice(fmt: QuantFormat) -> None:
    plain = rtn(two_valued(), fmt)
    assert isinstance(plain, IntTensor)
    found = within_int16(plain)
    assert isinstance(found, IntTensor)
    counts = (found.codes.view(*plain.scale.shape, -1) == 0).sum(-1)
    assert counts.max() == 1
    assert (plain.codes.view(*plain.scale.shape, -1) == 0).sum(-1).max() > 10
    # others of it are raised by one step, and nothing else changes
    assert set((found.codes.int() - plain.codes.int()).unique().tolist()) == {0, 1}
    assert torch.equal(found.codes != plain.codes, (plain.codes == 0) & (found.codes == 1))
    assert within_int16(found) is found
    assert torch.equal(within_int16(plain.rows(slice(2, 4))).dequantize(), found.rows(slice(2, 4)).dequantize())


@pytest.mark.parametrize("name", ["int8-sym", "int6", "int4", "fp16"])
def test_other_formats_stay_as_they_are(name: str) -> None:
    plain = rtn(two_valued(), QuantFormat.parse(name))
    assert within_int16(plain) is plain


def test_plans_for_some_targets_are_made_so_and_uniform_exports_are_not(qwen2: LoadedModel) -> None:
    assert [name for name in target_names() if find_target(name).adds_in_int16] == ["arm-v8", "phone"]
    name = qwen2.card.tensors[-2].name
    plain, ours = Rounder(qwen2), Rounder(qwen2, within_int16=True)
    weight = qwen2.weight(name)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(weight.sign())
    try:
        theirs, own = plain.store(name, INT8), ours.store(name, INT8)
        assert isinstance(theirs, IntTensor)
        assert isinstance(own, IntTensor)
        assert torch.equal(theirs.codes, rtn(weight, INT8).codes)  # type: ignore[union-attr]
        assert torch.equal(own.codes, within_int16(theirs).codes)  # type: ignore[union-attr]
        assert not torch.equal(own.codes, theirs.codes)
        parts = [part for _, part in ours.pieces(name, INT8)]
        assert torch.equal(parts[0].dequantize(), ours.store(name, INT8, ALL).dequantize()[: parts[0].shape[0]])
    finally:
        with torch.no_grad():
            weight.copy_(before)
