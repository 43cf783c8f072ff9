"""The list of roundings: what is in it exists, and names and help are read without torch."""

from __future__ import annotations

import subprocess
import sys
from inspect import signature

import pytest
import torch

from qplan.errors import InputError
from qplan.formats import FP16, INT4
from qplan.rounding import rtn
from qplan.rounding.curvature import Curvature
from qplan.rounding.methods import function_of, round_with
from qplan.roundings import CANDIDATES, HELP, METHODS, ROUNDINGS, check_rounding, needs_tokens


@pytest.mark.parametrize("name", METHODS)
def test_every_rounding_stores_every_kind_of_format(name: str) -> None:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    assert len(signature(function_of(name)).parameters) >= (3 if METHODS[name].fits else 2)
    curvature = Curvature(torch.eye(64))
    for fmt in (INT4, FP16):
        stored = round_with(name, weight, fmt, curvature)
        assert stored.format == fmt
        error = (stored.dequantize() - weight).pow(2).mean()
        assert error <= 2 * (rtn(weight, fmt).dequantize() - weight).pow(2).mean()
    if METHODS[name].fits:
        with pytest.raises(TypeError, match="needs moments to fit to"):
            round_with(name, weight, INT4)


def test_what_a_user_reads_names_every_rounding() -> None:
    assert all(name in HELP for name in ROUNDINGS)
    assert set(CANDIDATES) < set(METHODS)
    assert needs_tokens("auto")
    assert not needs_tokens("rtn")
    check_rounding("auto")
    with pytest.raises(InputError, match=f"rounding 'awq' is unknown; use one of {', '.join(ROUNDINGS)}"):
        check_rounding("awq")


def test_names_and_help_are_read_without_torch() -> None:
    code = "import sys, qplan.roundings; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
