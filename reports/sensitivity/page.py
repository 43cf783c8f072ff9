"""The benchmark's results as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

INTRODUCTION = """# How good are losses from gradients?

Written by `python -m reports.sensitivity.run`, from `results.json`. *Measured* runs the model with every format of
every tensor. *Gradient* estimates all of them from one forward and one backward pass. *Auto* estimates, then
measures what plans depend on. Losses are mean KL divergences per token; memory *low* has int8 activations.
"""


def write_page(results: Mapping[str, Any], path: Path) -> None:
    """Write ``README.md``."""
    lines = [INTRODUCTION]
    for name, result in results.items():
        text = result["calibration"]
        lines.append(
            f"## {name}\n\n{result['model']['parameters']:,} parameters, {result['model']['tensors']} tensors; "
            f"{text['samples']} sequences of {text['seq_len']} tokens of {text['text']}.\n"
        )
        lines += _formats(result)
        lines += _costs(result)
        lines += _plans(result)
        lines += _joint(result)
    path.write_text("\n".join(lines), encoding="utf-8")


def _formats(result: Mapping[str, Any]) -> Iterator[str]:
    yield "Gradient against measured, over tensors:\n"
    yield "| memory | format | tensors | Spearman | median ratio | rms log error | within 2 standard errors |"
    yield "|---|---|---|---|---|---|---|"
    for row in result["formats"]:
        found = row["agreement"]
        if found is None:
            yield f"| {row['memory']} | {row['format']} | all | lossless, and both say exactly 0 | | | |"
            continue
        yield (
            f"| {row['memory']} | {row['format']} | {found['count']} | {found['spearman']:.3f} | "
            f"{found['median_ratio']:.3f} | {found['log_error']:.3f} | {found['within_two_errors']:.0%} |"
        )
    yield ""


def _costs(result: Mapping[str, Any]) -> Iterator[str]:
    forward, whole, both = (
        result["costs"][name]["seconds"] for name in ("forward", "forward and loss", "forward and backward")
    )
    entries = result["entries"]
    yield f"Time on one thread, and memory; {entries} losses of single formats, both memory settings:\n"
    yield (
        "*Forward and loss* is a measurement that reuses nothing: a forward pass whose logits are compared with known "
        "ones. The first two rows are medians over the whole run.\n"
    )
    yield (
        "| | seconds | forward passes | forward and backward passes | per loss, forward passes | per loss, forward and "
        "loss | peak, MiB |"
    )
    yield "|---|---|---|---|---|---|---|"
    for name, cost in result["costs"].items():
        seconds, peak = cost["seconds"], cost["peak_mib"]
        is_mode = name in ("gradient", "auto", "measured")
        per_loss = f"{seconds / forward / entries:.3f} | {seconds / whole / entries:.3f}" if is_mode else " | "
        shown = "" if peak is None else f"{peak:.0f}"
        yield f"| {name} | {seconds:.2f} | {seconds / forward:.1f} | {seconds / both:.2f} | {per_loss} | {shown} |"
    yield f"\nAuto measured {result['auto_measured_share']:.0%} of the losses and estimated the others.\n"


def _plans(result: Mapping[str, Any]) -> Iterator[str]:
    yield "Plans, relative to those of measured mode at the same bytes (any format for the head):\n"
    yield "| budget | mode | same formats | joint KL, calibration | joint KL, held out |"
    yield "|---|---|---|---|---|"
    for row in result["plans"]:
        if row["mode"] != "measured":
            yield (
                f"| {row['budget']} | {row['mode']} | {row['same']:.0%} | {row['calibration_ratio']:.3f} | "
                f"{row['heldout_ratio']:.3f} |"
            )
    yield ""


def _joint(result: Mapping[str, Any]) -> Iterator[str]:
    yield "Predicted against measured joint KL of random plans:\n"
    yield "| prediction | plans | Spearman | median ratio | rms log error |"
    yield "|---|---|---|---|---|"
    for name, row in result["joint"].items():
        yield (
            f"| {name} | {row['count']} | {row['spearman']:.3f} | {row['median_ratio']:.3f} | {row['log_error']:.3f} |"
        )
    ratios = ", ".join(f"{point['ratio']:.3f} at {point['sum_nats']:.1e} nats" for point in result["additivity"])
    yield f"\nJoint loss divided by the sum of single losses along the frontier: {ratios}.\n"
