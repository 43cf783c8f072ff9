"""What a plan costs on its target besides bytes: RAM, and milliseconds by a device profile."""

from __future__ import annotations

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

    def cost(spec: TensorSpec, fmt: QuantFormat) -> int:
        return round(profile.decode_ms(spec, fmt) * _NANOSECONDS)

    return Cost(DECODE, "ms", _NANOSECONDS, cost, round(profile.base_decode_ms * _NANOSECONDS))


def prefill_cost(table: SensitivityTable, run: RunFolder) -> Cost:
    """Time of a prefill of the profile's length on this machine.

    Raises:
        InputError: there is no profile, or it is of another model.
    """
    profile = _profile(table, run)

    def cost(spec: TensorSpec, fmt: QuantFormat) -> int:
        return round(profile.prefill_ms(spec, fmt) * _NANOSECONDS)

    return Cost(PREFILL, "ms", _NANOSECONDS, cost, round(profile.base_prefill_ms * _NANOSECONDS))


def _profile(table: SensitivityTable, run: RunFolder) -> DeviceProfile:
    profile = DeviceProfile.read(run.device)
    profile.check_model(table.model, table.goal)
    return profile
