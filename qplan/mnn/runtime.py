"""Settings that the engine runs a model with; they change numbers as much as the weights do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from qplan.cost.kv_cache import KvMode
from qplan.errors import InputError
from qplan.run.plan import Plan
from qplan.settings import PRECISIONS, Precision

JsonScalar = str | int | float | bool

MEMORY = ("low", "normal", "high")
DYNAMIC_OPTIONS = (0, 1, 2)
MOST_THREADS = 1024

ATTENTION_MODE, ATTENTION_SCALE = "attention_mode", "attn_scale"
"""Keys for the KV cache, which other settings leave out."""

TURBO_SCALE = 1.0
"""MNN 3.6.1 divides scores of keys in TurboQuant by the root of the head's width twice, which is garbage (KL 5 nats).
Where a model's attention has that scale, 1 in place of the second makes it right (``reports/targets/kv.md``)."""


_OF_FOLDER = ("memory", "precision", "dynamic_option")
"""Settings that decide what is computed; MNN's defaults are those of `RuntimeConfig`."""

_MNN_THREADS = 4
"""Where a folder names no number."""


@dataclass(frozen=True)
class RuntimeConfig:
    """The part of ``config.json`` that decides what is computed, and how fast."""

    memory: str = "low"
    """``low``: quantized weights in RAM and int8 activations; ``normal``: weights become fp32 at load."""
    precision: Precision = "low"
    """``low`` computes in fp16 where the CPU can (ARM); changes nothing on x86."""
    threads: int = 1
    dynamic_option: int = 0
    """2 quantizes activations per block of the weights instead of per token: less loss, slower."""
    kv: KvMode | None = None
    """How the KV cache is stored; None for what the folder says."""
    cache_folder: Path | None = None
    """Where the engine maps the KV cache to files, a buffer each; None to keep it in RAM."""

    def __post_init__(self) -> None:
        """Reject values that the engine would silently replace by its defaults.

        Raises:
            InputError: a word or number that the engine does not know.
        """
        for name, value, known in (
            ("memory", self.memory, MEMORY),
            ("precision", self.precision, PRECISIONS),
            ("dynamic_option", self.dynamic_option, DYNAMIC_OPTIONS),
        ):
            if isinstance(value, bool) or value not in known:
                msg = f"{name} {value!r} is unknown to MNN; use one of {', '.join(map(str, known))}"
                raise InputError(msg)
        whole = isinstance(self.threads, int) and not isinstance(self.threads, bool)
        if not whole or not 1 <= self.threads <= MOST_THREADS:
            msg = f"{self.threads!r} threads: must be a whole number from 1 to {MOST_THREADS}"
            raise InputError(msg)

    @classmethod
    def of(cls, plan: Plan, threads: int = 1) -> Self:
        """The settings that a plan is for, all but its KV cache; see `with_cache`."""
        return cls(plan.memory, plan.precision, threads, plan.dynamic_option)

    @classmethod
    def of_settings(cls, settings: Mapping[str, object], threads: int | None = None) -> Self:
        """The settings that a model folder ships with, on the CPU.

        Args:
            settings: of its ``config.json``; what that leaves out is MNN's default.
            threads: in place of its own; None for those, but no more than there are processors.

        Raises:
            InputError: one that the engine does not know.
        """
        own = settings.get("thread_num", _MNN_THREADS)
        if threads is None:
            threads = min(own, os.cpu_count() or 1) if isinstance(own, int) and own > 0 else 1
        known: dict[str, Any] = {key: settings[key] for key in _OF_FOLDER if key in settings}
        return cls(threads=threads, **known)

    def with_cache(self, mode: KvMode) -> Self:
        """The same with a KV cache that is stored so, under a precision that it is right with."""
        # MNN's fp16 arithmetic scales TurboQuant's scores by the largest query
        return replace(self, kv=mode, precision="normal" if mode.rotates else self.precision)

    def to_json(self) -> dict[str, JsonScalar]:
        """The keys of MNN's ``config.json``."""
        return {
            "backend_type": "cpu",
            "memory": self.memory,
            "precision": self.precision,
            "thread_num": self.threads,
            "dynamic_option": self.dynamic_option,
            **self._cache(),
        }

    def _cache(self) -> dict[str, JsonScalar]:
        mapped: dict[str, JsonScalar] = {}
        if self.cache_folder is not None:
            mapped = {"kvcache_mmap": True, "tmp_path": str(self.cache_folder)}
        if self.kv is None:
            return mapped
        mapped[ATTENTION_MODE] = self.kv.attention_mode
        return mapped | {ATTENTION_SCALE: TURBO_SCALE} if self.kv.rotates else mapped
