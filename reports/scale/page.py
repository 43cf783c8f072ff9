"""The benchmark's page, from its results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from textwrap import shorten
from typing import Any

_INTRODUCTION = """\
# What models of some sizes take

Written by `python -m reports.scale.run MODEL --work FOLDER`, from `results.json`: one command for each model.
`qwen2.5-0.5b` and `qwen2.5-7b` are shapes with random weights (`reports/scale/shapes.py`), other names are folders of
trained models. A pass is once forwards and backwards over the calibration tokens. *Processor* is the time of all
threads, and passes are multiples of it; *seconds* are on the clock. Memory is the peak of the command and its children.
What `--dry-run` said before, from the shape and a few seconds of measuring, stands beside what happened. Other programs
on a shared machine lengthen the clock by any factor, and processor time by up to a half.

No GPU was at hand: `python -m reports.scale.device` compares one with the CPU and times it, once there is."""


def page(everything: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of all models."""
    lines = [_INTRODUCTION]
    for name, results in everything.items():
        lines += _model(name, results)
    return "\n".join(lines) + "\n"


def _model(name: str, results: Mapping[str, Any]) -> Iterator[str]:
    one = results["pass"]
    how = "computed from its products" if one["computed"] else "measured"
    yield f"\n## {name}\n"
    yield f"A pass over {results['tokens']:,} tokens takes {one['processor_s']:.1f} processor seconds, {how}."
    for command, found in results["commands"].items():
        yield f"\n```sh\n{command}\n```\n"
        yield "| stage | seconds | processor, s | passes | peak, GB |\n|---|---:|---:|---:|---:|"
        yield from _rows(found["stages"], one["processor_s"])
        yield from _beside(found)
    yield "\n| in the run folder | GB |\n|---|---:|"
    yield from (f"| `{part}` | {size / 1e9:.2f} |" for part, size in results["disk_bytes"].items() if size >= 5e6)  # noqa: PLR2004


def _rows(stages: Sequence[Mapping[str, Any]], one: float) -> Iterator[str]:
    whole = {
        "name": "**all**",
        "seconds": sum(stage["seconds"] for stage in stages),
        "processor_s": sum(stage["processor_s"] for stage in stages),
        "peak_bytes": max(stage["peak_bytes"] for stage in stages),
    }
    for stage in (*stages, whole):
        label = shorten(stage["name"].replace("|", "/"), 72, placeholder=" ...")
        numbers = (stage["seconds"], stage["processor_s"], stage["processor_s"] / one, stage["peak_bytes"] / 1e9)
        yield "| {} | {:.0f} | {:.0f} | {:.1f} | {:.1f} |".format(label, *numbers)


def _beside(found: Mapping[str, Any]) -> Iterator[str]:
    """What was expected beside what happened."""
    expected, stages = found["expected"], found["stages"]
    seconds = sum(stage["seconds"] for stage in stages)
    peak = max(stage["peak_bytes"] for stage in stages)
    yield "\n| | expected | happened |\n|---|---:|---:|"
    yield f"| seconds | {expected['seconds']:.0f} | {seconds:.0f} |"
    yield f"| peak, GB | {expected['memory_bytes'] / 1e9:.2f} | {peak / 1e9:.2f} |"
    yield f"| written, GB | {expected['disk_bytes'] / 1e9:.2f} | {found['written_bytes'] / 1e9:.2f} |"
