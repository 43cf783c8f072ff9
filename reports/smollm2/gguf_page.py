"""The part of the page on llama.cpp's files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qplan.report import notation
from reports.gguf.page import SUPER_BLOCK
from reports.smollm2.labels import PLAN, Row, label


def against_gguf(results: Mapping[str, Any]) -> Iterator[str]:
    """A table of llama.cpp's files and of MNN's models by size; nothing where there are none of the former."""
    gguf = results["gguf"]
    if not gguf["files"]:
        return
    threads = sorted({row["threads"] for row in gguf["speeds"]})
    yield "## Against GGUF\n"
    yield _introduction(gguf, threads)
    counts = f"{'/'.join(map(str, threads))} thread{'s' if threads[1:] else ''}"
    heads = ("files, MB", "RAM, MB", f"decode, {counts}", f"prefill, {counts}", "KL", "p99", "top-1", "ppl")
    yield f"| | {' | '.join(heads)} |"
    yield "|---|" + "---:|" * len(heads)
    here = [row for row in results["rows"] if not row["for_phones"]]
    files = [file | {"file": True} for file in gguf["files"]]
    for row in sorted([*files, *here], key=lambda row: int(row["file_bytes"])):
        name = f"llama.cpp {row['name']}" if "file" in row else label(row)
        ram = row["ram_bytes"] if "file" in row else results["speeds"][row["name"]]["ram_bytes"]
        yield _line(name, row, ram, results, threads)
    yield ""
    for plan in here:
        # a plan of a file's bytes is a little smaller than that file
        rivals = [
            file
            for file in files
            if file["name"] != "F32" and (file["file_bytes"] <= plan["file_bytes"] or file["name"] == plan["beside"])
        ]
        if not str(plan["name"]).startswith(PLAN) or not rivals:
            continue
        best = min(rivals, key=lambda file: float(file["here"]["kl_nats"]))
        ratio = plan["here"]["kl_nats"] / best["here"]["kl_nats"]
        told = "llama.cpp loses less: " if ratio > 1 else ""
        which = "whose bytes it has" if best["name"] == plan["beside"] else "the best file that is no larger"
        held = f"{notation.ratio(ratio)} the loss of {best['name']}, {which}"
        yield f"- {label(plan)}: {told}{held}."
    yield ""


def rate_of(results: Mapping[str, Any], name: str, phase: str, threads: int = 1) -> float | None:
    """Tokens per second of a model in the minutes in which both engines were timed; None where it was not.

    One of MNN's is its uniform export's by the ratio of their times by turns, which is known better.
    """
    found = {row["name"]: row[phase] for row in results["gguf"]["speeds"] if row["threads"] == threads}
    base = next((row["against"] for row in results["rows"] if row["name"] == name), None)
    turns = results["speeds"].get(name, {}).get(phase)
    if threads == 1 and base in found and turns is not None:
        return float(found[base] / turns["times"])
    return found.get(name)


def _introduction(gguf: Mapping[str, Any], threads: list[int]) -> str:
    tokens = gguf["imatrix_tokens"]
    made = f"with an imatrix of {tokens:,} tokens of the text of qplan's analysis" if tokens else "without an imatrix"
    told = (
        f"The same model in llama.cpp's files, made by its own programs ({gguf['tools']}), {made}, "
        f"run by its library ({gguf['library']}) on the same tokens. Bytes of GGUF files are those of their tensors. "
        "Tokens per second of both engines are the fastest of rounds by turns, decode after 128 tokens with MNN and "
        f"after none with llama.cpp; {_threads(threads)}; good to a tenth where others keep the machine busy. Those of "
        "MNN's other models than plain uniform ones follow from their ratios to these above. llama.cpp's programs are "
        "built for this processor. F32 tells what the conversion and its KV cache in fp16 lose."
    )
    if gguf["odd_rows"]:
        rows = " and ".join(map(str, gguf["odd_rows"]))
        told += (
            f" Rows of {rows} weights are no multiple of {SUPER_BLOCK}: llama.cpp gives them larger types than "
            "K-quants and IQ4_XS."
        )
    return told + "\n"


def _threads(threads: list[int]) -> str:
    one = "one thread by its processor time"
    several = [str(count) for count in threads if count > 1]
    return f"{one}, {' and '.join(several)} by the clock, which whatever else runs disturbs" if several else one


def _line(name: str, row: Row, ram_bytes: int, results: Mapping[str, Any], threads: list[int]) -> str:
    loss = row["here"]
    rates = [[rate_of(results, row["name"], phase, count) for count in threads] for phase in ("decode", "prefill")]
    cells = (
        f"{row['file_bytes'] / 1e6:.1f}",
        f"{ram_bytes / 1e6:.0f}",
        *("/".join(map(notation.speed, found)) for found in rates),
        notation.loss(loss["kl_nats"]),
        notation.loss(loss["kl_p99_nats"]),
        f"{loss['top1']:.1%}",
        notation.perplexity(loss["perplexity"]),
    )
    return f"| {name} | {' | '.join(cells)} |"
