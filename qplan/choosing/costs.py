"""What a plan costs on its target besides bytes: RAM, and milliseconds by a device profile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qplan.formats import QuantFormat
from qplan.planner.limits import Cost
from qplan.planner.rules import Rules
from qplan.run.folder import RunFolder
from qplan.run.kv_cache import PlannedCache
from qplan.run.profile import DeviceProfile
from qplan.tensors import TensorSpec

if TYPE_CHECKING:  # the command line takes its defaults from here, and waits for no pyarrow
    from qplan.run.table import SensitivityTable

RAM, DECODE, PREFILL = "RAM", "decode time", "prefill time"
_NANOSECONDS = 10**6
"""Nanoseconds in a millisecond."""


def ram_cost(rules: Rules, table: SensitivityTable, cache: PlannedCache | None = None) -> Cost:
    """RAM of the weights after loading, on the target and under the table's memory setting, with a KV cache if any."""
    held = 0 if cache is None else cache.bytes
    return Cost(RAM, "MB", 10**6, lambda spec, fmt: rules.target.ram_bytes(spec, fmt, table.goal), held)


def decode_cost(table: SensitivityTable, run: RunFolder) -> Cost:
    """Time per decoded token on this machine.

    Raises:
        InputError: there is no profile, or it is of another model.
    """
    profile = _profile(table, run)
    return _time(DECODE, profile.decode_ms, profile.base_decode_ms)


def prefill_cost(table: SensitivityTable, run: RunFolder) -> Cost:
    """Time of a prefill of the profile's length on this machine.

    Raises:
        InputError: there is no profile, or it is of another model.
    """
    profile = _profile(table, run)
    return _time(PREFILL, profile.prefill_ms, profile.base_prefill_ms)


def _time(name: str, milliseconds: Callable[[TensorSpec, QuantFormat], float], base_ms: float) -> Cost:
    return Cost(
        name,
        "ms",
        _NANOSECONDS,
        lambda spec, fmt: round(milliseconds(spec, fmt) * _NANOSECONDS),
        round(base_ms * _NANOSECONDS),
    )


def _profile(table: SensitivityTable, run: RunFolder) -> DeviceProfile:
    profile = DeviceProfile.read(run.device)
    profile.check_model(table.model, table.goal)
    return profile
