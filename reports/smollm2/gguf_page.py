"""The part of the page on llama.cpp's files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qplan.report import notation
from reports.gguf.page import SUPER_BLOCK
from reports.smollm2.labels import Row, label


def against_gguf(results: Mapping[str, Any]) -> Iterator[str]:
    """A table of llama.cpp's files and qplan's plans of the same bytes; nothing where there are none."""
    gguf = results["gguf"]
    if not gguf["files"]:
        return
    threads = sorted({row["threads"] for row in gguf["speeds"]})
    plans = {row["beside"]: row for row in results["rows"] if row["beside"] is not None}
    yield "## Against GGUF\n"
    yield _introduction(gguf, threads)
    counts = f"{'/'.join(map(str, threads))} thread{'s' if threads[1:] else ''}"
    speeds = f"decode, {counts}", f"prefill, {counts}"
    heads = ("files, MB", "RAM, MB", *speeds, "KL", "p99", "top-1", "ppl")
    yield f"| | {' | '.join(heads)} |"
    yield "|---|" + "---:|" * len(heads)
    for file in sorted(gguf["files"], key=lambda file: int(file["file_bytes"])):
        yield _line(file["name"], file, file["ram_bytes"], gguf, threads)
        plan = plans.get(file["name"])
        if plan is not None:
            yield _line(label(plan), plan, results["speeds"][plan["name"]]["ram_bytes"], gguf, threads)
    yield ""
    pairs = [(file, plans[file["name"]]) for file in gguf["files"] if file["name"] in plans]
    if pairs:
        lost = [file["name"] for file, plan in pairs if plan["here"]["kl_nats"] > file["here"]["kl_nats"]]
        told = f"llama.cpp loses less at {', '.join(lost)}" if lost else "qplan loses less"
        yield f"Of {len(pairs)} sizes that were planned, {told}.\n"


def _introduction(gguf: Mapping[str, Any], threads: list[int]) -> str:
    tokens = gguf["imatrix_tokens"]
    made = f"with an imatrix of {tokens:,} tokens of the text of qplan's analysis" if tokens else "without an imatrix"
    told = (
        f"The same model in llama.cpp's files, made by its own programs ({gguf['tools']}), {made}, "
        f"run by its library ({gguf['library']}) on the same tokens; and plans of the same bytes (`--parity files`: "
        "RAM and speed as they come). Bytes of GGUF files are those of their tensors. Speeds of both engines are the "
        f"fastest of rounds by turns, after 128 tokens with MNN and after none with llama.cpp; {_threads(threads)}. "
        "llama.cpp's programs are built for this processor."
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


def _line(name: str, row: Row, ram_bytes: int, gguf: Mapping[str, Any], threads: list[int]) -> str:
    rates = {found["threads"]: found for found in gguf["speeds"] if found["name"] == row["name"]}
    loss = row["here"]
    speeds = (
        "/".join(notation.speed(rates[count][phase]) for count in threads) if rates else ""
        for phase in ("decode", "prefill")
    )
    cells = (
        f"{row['file_bytes'] / 1e6:.1f}",
        f"{ram_bytes / 1e6:.0f}",
        *speeds,
        notation.loss(loss["kl_nats"]),
        notation.loss(loss["kl_p99_nats"]),
        f"{loss['top1']:.1%}",
        notation.perplexity(loss["perplexity"]),
    )
    return f"| {name} | {' | '.join(cells)} |"
