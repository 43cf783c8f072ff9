"""What each version of MNN's engine can read. Measured: ``qplan/compat/compat.json`` is the evidence."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib.metadata import version

from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.mnn.graph.tie import TieForm

_VERSION = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})(?:\.([0-9]{1,9}))?")


@dataclass(frozen=True, order=True)
class EngineVersion:
    """A release of MNN."""

    major: int
    minor: int
    patch: int = 0

    @classmethod
    def parse(cls, text: str) -> EngineVersion:
        """Read ``3.6.1`` or ``3.6``.

        Raises:
            InputError: not a version.
        """
        match = _VERSION.fullmatch(text.strip())
        if match is None:
            msg = f"engine version {text!r} is not understood; write it as 3.6.1"
            raise InputError(msg)
        return cls(int(match[1]), int(match[2]), int(match[3] or 0))

    @classmethod
    def installed(cls) -> EngineVersion:
        """The version of the installed MNN package."""
        return cls.parse(version("MNN"))

    def __str__(self) -> str:
        """Return it as written on PyPI."""
        return f"{self.major}.{self.minor}.{self.patch}"


FEEDS_LOGITS_INDEX = EngineVersion(3, 1, 0)
"""Older engines refuse new graphs: ``tensor [ logits_index ] is input but not found``, then a crash."""

PYTHON_LLM = EngineVersion(3, 4, 0)
"""First release on PyPI with ``MNN.llm``; older ones are not measured."""

HALF_SCALES = EngineVersion(3, 6, 0)
"""Older engines read 16-bit scales as 32-bit floats: garbage without a message."""

TIE_RECORD_OBJECT = EngineVersion(3, 6, 0)
"""Older engines know ``tie_embeddings`` as a list only."""

C4_FUSION = EngineVersion(3, 6, 1)
"""Older engines crash (SIGSEGV) on graphs whose attention writes packed channels."""

FUSED_LINEAR = EngineVersion(3, 6, 2)
"""Releases up to 3.6.1 do not know the op."""


@dataclass(frozen=True)
class EngineTarget:
    """How a model must be written for an engine."""

    engine: EngineVersion
    scale_bits: int
    """32 where scales of 16 bits would be misread."""
    tie_form: TieForm
    """How a tied embedding must be described."""
    c4: bool
    """Whether attention may be fused for packed channels."""

    def wide(self, fmt: QuantFormat) -> QuantFormat:
        """The format with scales that the engine reads."""
        return fmt if fmt.is_float else replace(fmt, scale_bits=max(fmt.scale_bits, self.scale_bits))

    @classmethod
    def of(cls, engine: EngineVersion) -> EngineTarget:
        """What an engine needs.

        Raises:
            InputError: no model that qplan can write is known to run there.
        """
        if engine < PYTHON_LLM:
            msg = (
                f"engine {engine}: qplan can write no model that is known to run there. The first release with MNN.llm "
            )
            msg += f"on PyPI is {PYTHON_LLM}: older ones cannot be measured"
            if engine < FEEDS_LOGITS_INDEX:
                msg += (
                    f", and those before {FEEDS_LOGITS_INDEX} crash on every graph of today's exporter (logits_index)"
                )
            raise InputError(msg)
        tie_form: TieForm = "list" if engine < TIE_RECORD_OBJECT else "dict"
        return cls(engine, 32 if engine < HALF_SCALES else 16, tie_form, engine >= C4_FUSION)
