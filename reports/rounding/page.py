"""The benchmark's results as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

INTRODUCTION = """# What do better integers gain?

Written by `python -m reports.rounding.run --shared FOLDER`, from `results.json`. All linears at one width, block 64,
asymmetric; a tied head stays at 8 bits where its lookup does not support the width. Losses are mean KL divergences per
token, in nats, on tokens that nothing was fitted to, memory normal. *rtn* rounds to nearest like llmexport, *hqq* is
the published method, *search* takes the best range under the inputs' mean squares, *gptq* adds error feedback and
refinement, and *auto* picks for each output feature the one that loses least on other tokens. *llmexport* is that
exporter's own model (fp32 scales).
"""


def write_page(results: Mapping[str, Any], path: Path) -> None:
    """Write ``README.md``."""
    lines = [INTRODUCTION]
    for name, result in results.get("models", {}).items():
        model = result["model"]
        head = "a tied head" if model["tied"] else "an untied head"
        lines.append(f"## {name}\n\n{model['parameters']:,} parameters, {head}; home domain: {result['home']}.\n")
        for table in (_widths, _tokens, _without, _domains, _gathering):
            lines += table(result)
    lines += _costs(results.get("cost", {}))
    path.write_text("\n".join(lines), encoding="utf-8")


def _widths(result: Mapping[str, Any]) -> Iterator[str]:
    rows = result["by_width"]
    names = list(dict.fromkeys(row["rounding"] for row in rows))
    yield "KL on the engine; in parentheses, relative to rtn:\n"
    yield "| bits | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for bits in dict.fromkeys(row["bits"] for row in rows):
        found = {row["rounding"]: row["kl_nats"] for row in rows if row["bits"] == bits}
        cells = ["" if nats is None else f"{nats:.3e} ({nats / found['rtn']:.2f})" for nats in found.values()]
        yield f"| {bits} | " + " | ".join(cells) + " |"
    errors = [abs(row["torch_nats"] / row["kl_nats"] - 1) for row in rows if row["torch_nats"] is not None]
    yield f"\ntorch's emulation of the same weights is within {max(errors):.2%} of the engine.\n"


def _tokens(result: Mapping[str, Any]) -> Iterator[str]:
    rows = result["by_tokens"]
    names = list(dict.fromkeys(row["rounding"] for row in rows))
    nearest = next(r["torch_nats"] for r in result["by_width"] if (r["bits"], r["rounding"]) == (4, "rtn"))
    yield "KL at 4 bits relative to rtn, by the number of tokens fitted to:\n"
    yield "| tokens | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for tokens in dict.fromkeys(row["tokens"] for row in rows):
        cells = [f"{row['kl_nats'] / nearest:.3f}" for row in rows if row["tokens"] == tokens]
        yield f"| {tokens:,} | " + " | ".join(cells) + " |"
    yield ""


def _without(result: Mapping[str, Any]) -> Iterator[str]:
    nearest = next(r["torch_nats"] for r in result["by_width"] if (r["bits"], r["rounding"]) == (4, "rtn"))
    yield "What the parts of gptq gain, KL at 4 bits relative to rtn:\n"
    yield "| | |"
    yield "|---|---|"
    for row in result["without"]:
        yield f"| {row['variant']} | {row['kl_nats'] / nearest:.3f} |"
    yield ""


def _domains(result: Mapping[str, Any]) -> Iterator[str]:
    rows = result["across_domains"]
    names = [key.removesuffix("_nats") for key in rows[0] if key.endswith("_nats") and key != "rtn_nats"]
    yield "KL of auto relative to rtn, fitted to one kind of text and tested on another:\n"
    yield "| bits | tested on | rtn | " + " | ".join(f"fitted to {name}" for name in names) + " |"
    yield "|---" * (len(names) + 3) + "|"
    for row in rows:
        cells = [f"{row[f'{name}_nats'] / row['rtn_nats']:.2f}" for name in names]
        yield f"| {row['bits']} | {row['test']} | {row['rtn_nats']:.3e} | " + " | ".join(cells) + " |"
    yield ""


def _gathering(result: Mapping[str, Any]) -> Iterator[str]:
    yield "Gathering second moments:\n"
    yield "| | tokens | seconds | peak, MiB |"
    yield "|---|---|---|---|"
    for name, row in result["gathering"].items():
        peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        yield f"| {name} | {row['tokens']:,} | {row['seconds']:.1f} | {peak} |"
    clock = ", ".join(f"{row['seconds']:.1f} s with {row['jobs']}" for row in result["jobs"])
    yield f"\ngptq of all linears at 4 bits, by `--jobs`, wall time on a shared machine: {clock}.\n"


def _costs(costs: Mapping[str, Any]) -> Iterator[str]:
    if not costs:
        return
    yield "## Cost\n\nOne layer of 2048 x 2048 at 4 bits, one thread, processor time:\n"
    yield "| device | rounding | seconds per million weights | peak, MiB |"
    yield "|---|---|---|---|"
    for device, rows in costs.items():
        for row in rows:
            peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
            yield f"| {device} | {row['rounding']} | {row['seconds_per_million']:.3f} | {peak} |"
    yield ""
