"""Writes the folding benchmark's ``README.md`` from ``results.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_HEAD = """# Folding scales into neighboring weights

Folding keeps the function and the bytes and changes the weights. Which channel scales lose least when the model is
quantized? Loss is the KL divergence from the FP32 model, in nats per token, on text that nothing was fitted to; *low*
has the engine's int8 activations (option 0, prefill), *normal* float activations. Models are uniform, block 64, with
the head at 8 bits. Written by `python -m reports.folding.run`; its options name the texts.

Scales are folded from norms into q/k/v and gate/up, from up into down, from values into the output projection, and from
the final norm into the head. A tied head is folded too, at the cost of multiplying the looked-up embedding (one op and
4 bytes per channel in the graph); without that multiplication, neither scaling nor rotating a tied head's input
preserves the function, see `qplan/model/embedding_scale.py`.
"""

_RESULTS = Path(__file__).with_name("results.json")
_ENTRIES = (("low", "int8"), ("low", "int4"), ("normal", "int8"), ("normal", "int4"))


def found_before() -> dict[str, Any]:
    """Results of earlier runs, by model."""
    return dict(json.loads(_RESULTS.read_text(encoding="utf-8"))) if _RESULTS.is_file() else {}


def keep(everything: Mapping[str, Any]) -> None:
    """Write ``results.json`` and the page."""
    _RESULTS.write_text(json.dumps(everything, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    write_page(everything, _RESULTS.with_name("README.md"))


def write_page(everything: Mapping[str, Any], path: Path) -> None:
    """Write the page."""
    lines = [_HEAD]
    for name, result in everything.items():
        lines += [
            f"## {name}, {result['parameters'] / 1e6:.1f} M parameters\n",
            *_emulated(result),
            *_engine(result),
            *_residual(result),
        ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _emulated(result: Mapping[str, Any]) -> Iterator[str]:
    base = result["methods"]["none"]["rtn"]
    yield (
        f"Fitted to {result['fit_tokens']} tokens of {result['calibration']}, evaluated on {result['tokens']} of "
        f"{result['text']}. Emulated loss; in parentheses, relative to no folding and rounding to nearest:\n"
    )
    yield "| method | rounding | " + " | ".join(f"{memory}, {width}" for memory, width in _ENTRIES) + " | logits |"
    yield "|---|---|---|---|---|---|---|"
    for name, method in result["methods"].items():
        for rounding in ("rtn", "auto"):
            if rounding not in method:
                continue
            cells = [_cell(method[rounding], base, entry) for entry in _ENTRIES]
            yield f"| {name} | {rounding} | {' | '.join(cells)} | {method['relative_error']:.1e} |"
    yield ""


def _cell(losses: Mapping[str, Any], base: Mapping[str, Any], entry: tuple[str, str]) -> str:
    memory, width = entry
    loss = losses[memory][width]
    return f"{loss:.2e} ({loss / base[memory][width]:.2f})"


def _engine(result: Mapping[str, Any]) -> Iterator[str]:
    rows = result["engine"]
    base = rows["none, rtn"]
    yield "On the engine, INT8, one thread, fastest of 5 interleaved rounds:\n"
    yield "| method, rounding | low, prefill | low, decode | normal | bytes | decode, tokens/s | prefill, tokens/s |"
    yield "|---|---|---|---|---|---|---|"
    for name, row in rows.items():
        losses = [
            f"{row[key]:.2e} ({row[key] / base[key]:.2f})" for key in ("low_nats", "low_decode_nats", "normal_nats")
        ]
        yield (
            f"| {name} | {' | '.join(losses)} | {row['weight_bytes'] + row['graph_bytes']:,} | "
            f"{row['decode_tokens_per_s']:.0f} | {row['prefill_tokens_per_s']:.0f} |"
        )
    yield ""


def _residual(result: Mapping[str, Any]) -> Iterator[str]:
    if "residual" not in result:
        return
    base = result["residual"]["tied"]
    yield (
        "Rotating the residual stream requires an untied head. What it would gain on a copy of the model that has one, "
        f"evaluated on {result['residual_tokens']} tokens, rounded to nearest:\n"
    )
    yield "| model | " + " | ".join(f"{memory}, {width}" for memory, width in _ENTRIES) + " |"
    yield "|---|---|---|---|---|"
    for name, losses in result["residual"].items():
        yield f"| {name} | {' | '.join(_cell(losses, base, entry) for entry in _ENTRIES)} |"
    yield ""
