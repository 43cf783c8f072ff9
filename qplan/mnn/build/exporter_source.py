"""Where llmexport comes from, and what that copy of it can do: read from its source, not from its version."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from qplan.artifact import sha256_bytes
from qplan.errors import InputError

_PACKED = re.compile(r"assert\s*\(?\s*quant_bit\s+in\s+\(([\d,\s]+)\)")
_GLOBAL_SYMMETRY = re.compile(r"if self\.args\.sym:\s*\n\s*aMin\s*=\s*0")
_IN_CHECKOUT = ("transformers/llm/export/llmexport.py", "llmexport.py")


@dataclass(frozen=True)
class Exporter:
    """One copy of llmexport."""

    script: Path
    """``llmexport.py``."""
    version: str
    """``llmexport 0.0.5`` (PyPI), or ``MNN checkout`` and a hash of its source."""
    packable_bits: tuple[int, ...]
    """Integer widths that it can pack (it asserts on others); 16 is always possible."""
    has_scale_bit: bool
    """Whether it has ``--scale_bit``; without it every scale is stored in 32 bits."""
    has_quant_config: bool
    """Whether it has ``--quant_config``."""
    has_c4_option: bool
    """Whether it has an option to leave out the C4 fusion; otherwise its converter gets one."""
    symmetry_is_global: bool
    """Whether ``--sym`` alone decides what the graph declares of every op, which breaks ops of the other symmetry."""
    has_embed_bit: bool
    """Whether it has ``--embed_bit``, which stores an untied embedding as integers."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of one llmexport run."""

    bits: int = 16
    block: int = 64
    lm_bits: int | None = None
    """Width of the head; None for that of all others."""
    lm_block: int | None = None
    symmetric: bool = False
    scale_bits: int | None = None
    """16 or 32; None for the exporter's default."""
    quant_config: Path | None = None
    """File of per-op settings."""
    c4: bool = True
    """Whether attention is fused for packed channels, which engines before 3.6.1 crash on."""
    others: tuple[str, ...] = ()
    """Options that are passed on as they are, e.g. ``--hqq``."""

    def arguments(self, exporter: Exporter, model: Path, out: Path) -> list[str]:
        """Command line arguments after ``llmexport.py``.

        Raises:
            InputError: this copy of llmexport has no such option.
        """
        words = ["--path", str(model), "--dst_path", str(out), "--export", "mnn"]
        words += ["--quant_bit", str(self.bits), "--quant_block", str(self.block)]
        if self.lm_bits is not None:
            words += ["--lm_quant_bit", str(self.lm_bits)]
        if self.lm_block is not None:
            words += ["--lm_quant_block", str(self.lm_block)]
        if self.symmetric:
            words.append("--sym")
        if self.scale_bits is not None and (exporter.has_scale_bit or self.scale_bits != 32):
            _require(exporter, "--scale_bit", has=exporter.has_scale_bit)
            words += ["--scale_bit", str(self.scale_bits)]
        if self.quant_config is not None:
            _require(exporter, "--quant_config", has=exporter.has_quant_config)
            words += ["--quant_config", str(self.quant_config)]
        if not self.c4 and exporter.has_c4_option:
            words.append("--disable_transformer_c4")
        return [*words, *self.others]


def _require(exporter: Exporter, option: str, *, has: bool) -> None:
    if not has:
        msg = f"{exporter.version} has no {option}; give an MNN checkout with --llmexport"
        raise InputError(msg)


def find_exporter(llmexport: Path | None = None) -> Exporter:
    """Find a copy of llmexport and read what it can do.

    Args:
        llmexport: an MNN checkout, its ``transformers/llm/export`` folder or ``llmexport.py`` itself;
            None for the installed PyPI package.

    Raises:
        InputError: there is none.
    """
    script = _installed() if llmexport is None else _given(llmexport)
    converter = script.parent / "utils" / "mnn_converter.py"
    if not converter.is_file():
        msg = f"{script} has no utils/mnn_converter.py beside it; give a whole MNN checkout"
        raise InputError(msg)
    main, packing = (path.read_text(encoding="utf-8") for path in (script, converter))
    match = _PACKED.search(packing)
    name = f"MNN checkout {sha256_bytes(main.encode(), packing.encode())[:12]}"
    return Exporter(
        script=script,
        version=f"llmexport {version('llmexport')}" if llmexport is None else name,
        packable_bits=tuple(int(part) for part in match[1].split(",") if part.strip()) if match else (4, 8),
        has_scale_bit="--scale_bit" in main,
        has_quant_config="--quant_config" in main,
        has_c4_option="--disable_transformer_c4" in main,
        has_embed_bit="--embed_bit" in main,
        symmetry_is_global=_GLOBAL_SYMMETRY.search(packing) is not None,
    )


def _installed() -> Path:
    spec = importlib.util.find_spec("llmexport")
    if spec is None or spec.origin is None:
        msg = "llmexport is not installed; run: pip install llmexport==0.0.5"
        raise InputError(msg)
    return Path(spec.origin).with_name("llmexport.py")


def _given(path: Path) -> Path:
    candidates = [path] if path.is_file() else [path / part for part in _IN_CHECKOUT]
    for candidate in candidates:
        if candidate.is_file() and candidate.suffix == ".py":
            return candidate.resolve()
    msg = f"no llmexport.py in {path}; give an MNN checkout, its transformers/llm/export folder or llmexport.py"
    raise InputError(msg)
