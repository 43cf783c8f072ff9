"""The results as a page, and the table that the README shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qplan.report import notation
from qplan.verify.parity import MORE_RAM
from reports.smollm2.gguf_page import against_gguf
from reports.smollm2.labels import FLOAT, PLAN, label

Row = Mapping[str, Any]
Results = Mapping[str, Any]

INTRODUCTION = """# {model} on MNN's engine

Written by

    python -m reports.smollm2.run

from `results.json`. Every model is an MNN folder, run by MNN's engine with one thread as its own `config.json` says
(memory low: int8 activations). Losses are KL divergences from the Hugging Face model in FP32 in nats per token, in
prefill, on tokens of a text that nothing was fitted to; top-5 is the share of FP32's five likeliest tokens that are
among the model's. RAM is the growth of the engine's resident memory by loading. Speeds are medians of rounds in which
all models took turns, in processor time of the engine's thread, after a prompt of 128 tokens; beside a speed stands how
much longer than the uniform export's the time is, with the interval of the rounds' median, or `=` where that or the
ratio itself is 1.
"""

HEADS = ("files, MB", "RAM, MB", "decode, tokens/s", "prefill, tokens/s", "KL", "p99", "p99.9", "top-1", "top-5", "ppl")


def write_page(results: Results, folder: Path) -> None:
    """Write ``README.md``."""
    lines = [INTRODUCTION.format(model=results["model"]), *_subject(results)]
    lines += [*table(results, spread=True), "", *_verdict(results)]
    lines += ["", "![KL against files, RAM and decode](losses.png)"] if (folder / "losses.png").is_file() else []
    lines += ["", *_emulated(results), *against_gguf(results), *_texts(results), *_commands(results)]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(results: Results, *, spread: bool = False) -> Iterator[str]:
    """The table of all models on this machine.

    Args:
        results: of the run.
        spread: whether to tell the interval of ratios of times.
    """
    yield f"| | {' | '.join(HEADS)} |"
    yield "|---|" + "---:|" * len(HEADS)
    for row in _ordered(row for row in results["rows"] if not row["for_phones"] and row["beside"] is None):
        speed, loss = results["speeds"][row["name"]], row["here"]
        cells = (
            f"{row['file_bytes'] / 1e6:.1f}",
            f"{speed['ram_bytes'] / 1e6:.0f}",
            *(_speed(speed, phase, spread=spread) for phase in ("decode", "prefill")),
            *(notation.loss(loss[key]) for key in ("kl_nats", "kl_p99_nats", "kl_p999_nats")),
            *(f"{loss[key]:.1%}" for key in ("top1", "top5")),
            notation.perplexity(loss["perplexity"]),
        )
        yield f"| {label(row)} | {' | '.join(cells)} |"


def _ordered(rows: Iterator[Row]) -> list[Row]:
    """FP16 first, then each uniform export with what is beside it, plans last of these."""
    found = list(rows)
    places = {row["name"]: number for number, row in enumerate(found)}

    def place(row: Row) -> tuple[int, bool, int]:
        base = row["name"] if row["name"] in {FLOAT, "int8", "int4"} else row["against"]
        return {FLOAT: 0, "int8": 1, "int4": 2}[base], str(row["name"]).startswith(PLAN), places[row["name"]]

    return sorted(found, key=place)


def _speed(speed: Row, phase: str, *, spread: bool) -> str:
    rate, times = notation.speed(speed[f"{phase}_tokens_per_s"]), speed.get(phase)
    if times is None:
        return rate
    if times["low"] <= 1 <= times["high"] or round(times["times"], 2) == 1:
        return f"{rate} (=)"
    told = f", {times['low']:.2f}\N{EN DASH}{times['high']:.2f}" if spread else ""
    return f"{rate} ({notation.ratio(times['times'])}{told})"


def _subject(results: Results) -> Iterator[str]:
    yield (
        f"{results['model']}, {results['parameters']:,} parameters; analyzed by `{results['analysis']['command']}` "
        f"({_minutes(results['analysis']['seconds'])}), judged on {results['tokens']:,} tokens of {results['text']} in "
        f"rows of {results['seq_len']}, where FP32's perplexity is "
        f"{notation.perplexity(results['reference_perplexity'])}. "
        f"{results['machine']}; MNN {results['engine']}; {_rounds(results)} rounds of speeds. "
        f"Plans took {_minutes(results['took_s']['plans'])}, "
        f"measuring {_minutes(results['took_s']['measured'])}.\n"
    )
    if results["note"]:
        yield f"{results['note']}\n"


def _rounds(results: Results) -> int:
    """Rounds in which models were timed: as many for each."""
    return max((int(speed["decode"]["rounds"]) for speed in results["speeds"].values() if "decode" in speed), default=0)


def _verdict(results: Results) -> Iterator[str]:
    """What each plan keeps of its promise, against the uniform export of its budget and every other one."""
    rows = {row["name"]: row for row in results["rows"] if not row["for_phones"] and row["beside"] is None}
    for row in rows.values():
        if not str(row["name"]).startswith(PLAN):
            continue
        beside = (one for one in rows.values() if one["against"] == row["against"] and one["name"] != FLOAT)
        rivals = [rows[row["against"]], *(one for one in beside if not str(one["name"]).startswith(PLAN))]
        best = min(rivals, key=lambda one: float(one["here"]["kl_nats"]))
        ratio = row["here"]["kl_nats"] / rows[row["against"]]["here"]["kl_nats"]
        others = notation.ratio(row["here"]["kl_nats"] / best["here"]["kl_nats"])
        told = "" if best["name"] == row["against"] else f", {others} that of {label(best)}"
        yield (
            f"- {label(row)}: {notation.ratio(ratio)} the loss of {label(rows[row['against']])}{told}"
            f"{_beyond(row, rows[row['against']], results['speeds'])}."
        )


def _beyond(row: Row, uniform: Row, speeds: Mapping[str, Row]) -> str:
    """What a plan takes more of than the uniform export."""
    own, its = speeds[row["name"]], speeds[uniform["name"]]
    more = [f"{phase} time" for phase in ("decode", "prefill") if phase in own and own[phase]["low"] > 1]
    more += ["RAM"] if own["ram_bytes"] > MORE_RAM * its["ram_bytes"] else []
    larger = row["file_bytes"] - uniform["file_bytes"]
    more += [f"{larger:,.0f} bytes of files"] if larger > 0 else []
    return f"; it takes more {' and '.join(more)}" if more else "; it takes no more of anything"


def _emulated(results: Results) -> Iterator[str]:
    rows = [row for row in results["rows"] if "arm" in row]
    if not rows:
        return
    tokens, processor = rows[0]["arm"]["tokens"], results["processor"]
    yield f"## On {processor}, emulated\n"
    yield (
        f"MNN's aarch64 engine under qemu, as the folders ship (precision low: arithmetic in fp16), on the first "
        f"{tokens:,} of the tokens; the same tokens on this machine beside it. Models with a format that is not right "
        "there are left out; plans for phones are made with `--target phone`, and one for x86 is no promise on ARM.\n"
    )
    yield "| | files, MB | KL | p99 | top-1 | ppl | KL on x86 |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for row in _ordered(iter(rows)):
        loss = row["arm"]
        cells = (
            f"{row['file_bytes'] / 1e6:.1f}",
            notation.loss(loss["kl_nats"]),
            notation.loss(loss["kl_p99_nats"]),
            f"{loss['top1']:.1%}",
            notation.perplexity(loss["perplexity"]),
            notation.loss(row["same_tokens_here"]["kl_nats"]),
        )
        yield f"| {label(row)} | {' | '.join(cells)} |"
    yield ""


def _texts(results: Results) -> Iterator[str]:
    yield "## What they answer\n"
    yield f"Greedy, in the chat template, {results['new_tokens']} tokens at most.\n"
    rows = [row for row in results["rows"] if "texts" in row]
    for number, question in enumerate(results["questions"]):
        yield f"**{question}**\n"
        yield "| | |"
        yield "|---|---|"
        yield f"| FP32 | {_cell(results['texts'][number])} |"
        for row in _ordered(iter(rows)):
            yield f"| {label(row)} | {_cell(row['texts'][number])} |"
        yield ""


def _commands(results: Results) -> Iterator[str]:
    yield "## What made them\n"
    for row in results["rows"]:
        bits = (
            ""
            if row["mean_bits"] is None
            else f" ({row['mean_bits']:.2f} bits, dynamic_option {row['dynamic_option']})"
        )
        yield f"- {label(row)}: `{row['command']}`{bits}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _minutes(seconds: float | None) -> str:
    if seconds is None:
        return "not timed"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"  # noqa: PLR2004 - seconds of a minute
