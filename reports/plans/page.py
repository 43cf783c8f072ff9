"""The benchmark's results as a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

INTRODUCTION = """# Plans on the engine, at 3 to 8 bits

Written by `python -m reports.plans.run`, from `results.json`. Losses are KL divergences from FP32 in nats per token
on a text that nothing was fitted to, for built models on MNN's engine (prefill).

**Against the uniform export.** What `qplan emit` makes at the bytes of uniform exports with their head at 8 bits
(rounded to nearest, as MNN's exporter does); 3.5 and 4.5 bits lie halfway between their neighbors. *Plan* is with
a scale per token for the int8 activations of memory low (`dynamic_option` 0), *as it ships* with the option that
the plan took. *Predicted* is the plan's joint loss as predicted on calibration tokens, over the measured one. Bytes
are those of the weight and embedding files: as promised by the plan, and on disk.

**Against the peers.** Every peer scores the same model on the same tokens in its own environment and assigns 4 or 8
bits to every tensor. Its allocation becomes a plan of MNN's formats (INT4 and INT8 in blocks of 64, zero points; a
head that it does not plan at 8 bits). qplan plans within exactly those bytes and repairs on held-out calibration
tokens, as `qplan emit` does: with the same two formats, with all that it offers by default, and with these after
folding, as it ships. `dynamic_option` is 0 on either side and all integers are chosen alike (rounding *auto*): the
first two columns compare allocations alone. A number above 1 is **bold**, with a question mark if the difference is
within two standard errors over tokens. *Least possible* is a value that no plan with these formats can beat: the proved
lower bound on the sum of single losses, divided by the sum for the peer's plan, both as predicted for whole models, for
the model as it is planned.
"""

KINDS = {"4/8": "4 and 8 bits", "all": "all formats", "folded": "all formats, folded"}
_LEAST = "least possible"


def write_page(results: Mapping[str, Any], path: Path) -> None:
    """Write ``README.md``."""
    lines = [INTRODUCTION]
    for name, result in results.items():
        judged = result["judged"]
        lines.append(
            f"## {name}\n\n{result['model']['parameters']:,} parameters, {result['model']['tensors']} tensors; "
            f"calibrated on {result['calibration']}, evaluated on {judged['tokens']} tokens of {judged['text']}, "
            f"MNN {result['engine']}.\n"
        )
        lines += _verdict(result)
        for memory in ("low", "normal"):
            lines += _shipped([row for row in result["shipped"] if row["memory"] == memory], memory)
        for memory in ("low", "normal"):
            rows = [row for row in result["rivals"] if row["memory"] == memory]
            lines += _rivals(rows, memory) if rows else ()
        for peer, error in result["failures"].items():
            lines.append(f"{peer} is missing:\n\n```text\n{error}\n```\n")
    path.write_text("\n".join(lines), encoding="utf-8")


def _verdict(result: Mapping[str, Any]) -> Iterator[str]:
    shipped, rivals = result["shipped"], result["rivals"]
    against = [row["kl_nats"] / row["uniform_kl_nats"] for row in shipped if row["uniform_kl_nats"] is not None]
    yield (
        f"- worse than the uniform export: {sum(ratio > 1 for ratio in against)} of {len(against)}; "
        f"{_spread(against)} of its KL"
    )
    for kind, label in KINDS.items():
        ratios = [row["own"][kind]["kl_nats"] / row["peer_kl_nats"] for row in rivals]
        halves = sum(ratio <= 0.5 for ratio in ratios)
        yield (
            f"- worse than a peer's plan, with {label}: {sum(ratio > 1 for ratio in ratios)} of {len(ratios)}; "
            f"{_spread(ratios)} of its KL; at most half in {halves}"
        )
    off = sum(row["promised_bytes"] != row["built_bytes"] for row in shipped)
    yield f"- weight and embedding files whose size differs from the promise: {off} of {len(shipped)}"
    predicted = [row["predicted_nats"] / row["kl_nats"] for row in shipped if row["bits"] >= 4]
    yield f"- predicted joint KL divided by measured, 4 bits and above: {min(predicted):.2f} to {max(predicted):.2f}\n"


def _shipped(rows: Sequence[Mapping[str, Any]], memory: str) -> Iterator[str]:
    yield f"### Against the uniform export, memory {memory}\n"
    yield "| bits | bytes promised | on disk | uniform | plan | over uniform | as it ships | predicted |"
    yield "|---:|---:|---:|---:|---:|---:|---:|---:|"
    for row in rows:
        uniform = row["uniform_kl_nats"]
        shown = "" if uniform is None else f"{uniform:.2e}"
        ratio = "" if uniform is None else _ratio(row["kl_nats"] / uniform)
        option = f" (option {row['dynamic_option']})" if memory == "low" else ""
        sizes = f"{row['promised_bytes']:,} | {row['built_bytes']:,}"
        losses = f"{shown} | {row['kl_nats']:.2e} | {ratio} | {row['shipped_kl_nats']:.2e}{option}"
        yield f"| {row['bits']:g} | {sizes} | {losses} | {row['predicted_nats'] / row['kl_nats']:.2f} |"
    yield ""


def _rivals(rows: Sequence[Mapping[str, Any]], memory: str) -> Iterator[str]:
    yield f"### Against the peers, memory {memory}\n"
    heads = (f"{label} | {_LEAST}" for label in KINDS.values())
    yield "| peer | mean bits, asked and given | bytes | peer's KL | " + " | ".join(heads) + " |"
    yield "|---|---:|---:|---:|" + "---:|" * (2 * len(KINDS))
    for row in rows:
        cells = []
        for kind in KINDS:
            own, peer = row["own"][kind], row["peer_kl_nats"]
            certain = abs(own["kl_nats"] - peer) > 2 * own["stderr_nats"]
            cells += [_ratio(own["kl_nats"] / peer, certain=certain), f"{own['least']:.2f}"]
        bits = f"{row['asked_bits']:g}, {row['bits']:.2f}"
        cells = [row["scorer"], bits, f"{row['peer_bytes']:,}", f"{row['peer_kl_nats']:.2e}", *cells]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _ratio(value: float, *, certain: bool = True) -> str:
    """The ratio in bold where qplan is worse; where it rounds to 1, the plans are mostly the same."""
    shown = f"{value:.3f}"
    return f"**{shown}**{'' if certain else '?'}" if round(value, 3) > 1 else shown


def _spread(ratios: Sequence[float]) -> str:
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return f"{min(ratios):.2f} to {max(ratios):.2f}, in the geometric mean {mean:.2f},"
