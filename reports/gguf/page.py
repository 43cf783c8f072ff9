"""The results as a page with a figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

INTRODUCTION = """# GGUF files against plans of the same bytes

Written by `python -m reports.gguf.run`, from `results.json`. The same float model, quantized by llama.cpp's own
`llama-quantize` and run by its library, and planned by qplan within the bytes of each file and run by MNN under
memory low. Losses are mean KL divergences per token from the Hugging Face model in FP32, in nats, in prefill, on the
same tokens of a text that nothing was fitted to. Both engines quantize activations to 8 bits. An imatrix is made on
the text of qplan's analysis where llama.cpp knows the model's tokenizer. Bytes of GGUF files are those of their
tensors, bytes of MNN's are graph and weights.

[SmolLM2-135M-Instruct](../smollm2/README.md#against-gguf), with an imatrix and with speeds, is in a report of its own.

K-quants and IQ4_XS take rows of a multiple of 256 weights; llama.cpp gives other rows other types, and their files
are larger than elsewhere.
"""

SUPER_BLOCK = 256
"""Weights that K-quants and IQ4_XS take at a time."""


def write_page(results: Mapping[str, Any], folder: Path) -> None:
    """Write ``README.md`` and ``losses.png``."""
    lines = [INTRODUCTION]
    if any(result["plans"] for result in results.values()):
        lines.append("![KL against bytes](losses.png)\n")
    for name, result in results.items():
        lines += _model(name, result)
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
    _draw(results, folder / "losses.png")


def _model(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    judged, files = result["judged"], _quantized(result)
    yield (
        f"## {name}\n\n{result['parameters']:,} parameters; analyzed on {result['calibration']}, judged on "
        f"{judged['tokens']:,} tokens of {judged['text']}; MNN {result['engine']}; {result['library']}.\n"
    )
    odd = [str(width) for width in result["rows"] if width % SUPER_BLOCK]
    if odd:
        yield f"Rows of {' and '.join(odd)} weights are no multiple of 256.\n"
    whole = next(file for file in result["files"] if file["type"] == "F32")
    if not result.get("imatrix"):
        yield (
            "Made without an imatrix: llama.cpp does not know this tokenizer. GGUF files with one lose less as a rule, "
            "so these are not llama.cpp at its best.\n"
        )
    yield f"llama.cpp in F32 loses {whole['kl_nats']:.1e}: the conversion and the fp16 KV cache.\n"
    plans = {plan["type"]: plan for plan in result["plans"]}
    yield "| type | bytes | KL | top-1 |" + (" qplan's bytes | KL | over GGUF's |" if plans else "")
    yield "|---|---:|---:|---:|" + ("---:|---:|---:|" if plans else "")
    for file in files:
        row = f"| {file['type']} | {file['file_bytes']:,} | {file['kl_nats']:.2e} | {file['top1']:.1%} |"
        if file["type"] in plans:
            plan = plans[file["type"]]
            ratio = plan["kl_nats"] / file["kl_nats"]
            told = f"**{ratio:.2f}**" if ratio > 1 else f"{ratio:.2f}"
            row += f" {plan['file_bytes']:,} | {plan['kl_nats']:.2e} | {told} |"
        elif plans:
            row += " not made | | |"
        yield row
    yield ""
    if plans:
        pairs = [(file, plans[file["type"]]) for file in files if file["type"] in plans]
        lost = [file["type"] for file, plan in pairs if plan["kl_nats"] > file["kl_nats"]]
        told = f"llama.cpp loses less at {', '.join(lost)} (**bold**)" if lost else "qplan loses less"
        yield f"{told}, of the {len(pairs)} of {len(files)} sizes that were planned.\n"
        uniform = next(iter(plans.values()))["uniform"]
        told = "; ".join(f"{kind} {kl:.2e} at {size:,} bytes" for kind, (size, kl) in uniform.items())
        yield f"MNN's uniform exports: {told}.\n"


def _quantized(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted((file for file in result["files"] if file["type"] != "F32"), key=lambda file: int(file["file_bytes"]))


def _draw(results: Mapping[str, Any], path: Path) -> None:
    planned = {name: result for name, result in results.items() if result["plans"]}
    if not planned:
        return
    import matplotlib as mpl  # noqa: PLC0415 - not for a page without a figure

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, len(planned), figsize=(6 * len(planned), 4.2), squeeze=False, layout="constrained")
    for axis, (name, result) in zip(axes[0], planned.items(), strict=True):
        files = _quantized(result)
        axis.plot([f["file_bytes"] / 1e6 for f in files], [f["kl_nats"] for f in files], "s", label="llama.cpp")
        for file in files:
            place = (file["file_bytes"] / 1e6, file["kl_nats"])
            axis.annotate(file["type"], place, (5, 5), textcoords="offset points", fontsize=8)
        plans = sorted(result["plans"], key=lambda plan: int(plan["file_bytes"]))
        axis.plot([p["file_bytes"] / 1e6 for p in plans], [p["kl_nats"] for p in plans], "o-", label="qplan")
        uniform = plans[0]["uniform"].values()
        axis.plot([size / 1e6 for size, _ in uniform], [kl for _, kl in uniform], "x", label="MNN uniform")
        axis.set(yscale="log", xlabel="MB", ylabel="KL to FP32, nats per token", title=name)
        axis.legend()
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
