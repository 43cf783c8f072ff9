"""Settings that the engine runs a model with; they change numbers as much as the weights do."""

from __future__ import annotations

from dataclasses import dataclass

from qplan.errors import InputError

JsonScalar = str | int | float | bool

MEMORY = ("low", "normal", "high")
PRECISION = ("low", "normal", "high")
DYNAMIC_OPTIONS = (0, 1, 2)
MOST_THREADS = 1024


@dataclass(frozen=True)
class RuntimeConfig:
    """The part of ``config.json`` that decides what is computed, and how fast."""

    memory: str = "low"
    """``low``: quantized weights in RAM and int8 activations; ``normal``: weights become fp32 at load."""
    precision: str = "low"
    """``low`` computes in fp16 where the CPU can (ARM); changes nothing on x86."""
    threads: int = 1
    dynamic_option: int = 0
    """2 quantizes activations per block of the weights instead of per token: less loss, slower."""

    def __post_init__(self) -> None:
        """Reject values that the engine would silently replace by its defaults.

        Raises:
            InputError: a word or number that the engine does not know.
        """
        for name, value, known in (
            ("memory", self.memory, MEMORY),
            ("precision", self.precision, PRECISION),
            ("dynamic_option", self.dynamic_option, DYNAMIC_OPTIONS),
        ):
            if isinstance(value, bool) or value not in known:
                msg = f"{name} {value!r} is unknown to MNN; use one of {', '.join(map(str, known))}"
                raise InputError(msg)
        whole = isinstance(self.threads, int) and not isinstance(self.threads, bool)
        if not whole or not 1 <= self.threads <= MOST_THREADS:
            msg = f"{self.threads!r} threads: must be a whole number from 1 to {MOST_THREADS}"
            raise InputError(msg)

    def to_json(self) -> dict[str, JsonScalar]:
        """The keys of MNN's ``config.json``."""
        return {
            "backend_type": "cpu",
            "memory": self.memory,
            "precision": self.precision,
            "thread_num": self.threads,
            "dynamic_option": self.dynamic_option,
        }
