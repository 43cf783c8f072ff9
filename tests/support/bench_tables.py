"""Tables as MNN's llm_bench prints them."""

from __future__ import annotations

HEAD = "| model | modelSize | backend | threads | precision | test | t/s |"


def line(model: str, test: str, speed: str) -> str:
    """A row below `HEAD`."""
    return f"| {model} | 86.31 MiB | CPU | 4 | Low | {test} | {speed} |"


def table(head: str, *rows: str) -> str:
    """Header, rule and rows, with llm_bench's widths."""
    rule = "|".join(f" {'-' * len(cell)}: " for cell in head.strip("| ").split("|"))
    return "\n".join([head, f"|{rule}|", *rows, ""])


APART = table(
    HEAD,
    line("int8", "pp128", "100.00 ± 1.00"),
    line("int8", "tg32", "20.00 ± 0.10"),
    line("int4", "pp128", "160.00 ± 1.00"),
    line("int4", "tg32", "32.50 ± 0.10"),
)
