"""The comparison's results as a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qplan.jobs.options import FIT_TOKENS

INTRODUCTION = """# What each effort's plans lose

Written by `python -m reports.effort.run`, from `results.json`. `qplan analyze` is run with `--effort quick` and
`--effort default`, and with every format of every tensor rounded whole and every loss measured (under the goal's
memory setting, which plans hang on; folds decided by whole models), as `--mode measured` and `--effort thorough` do.
At several budgets a plan is made from each of the three tables, within the same bytes, and the whole model is measured
in torch: folded as that analysis decided, every tensor rounded whole to its moments, under memory low, on a text that
no analysis saw. *Ratio* is the plan's joint KL divided by that of the plan from measured losses, with its standard
error over sequences; *formats alone* the same ratio if the plan's formats are given to the yardstick's model, with its
folds and its integers. *Predicted* is what the table says of the plan, over what was measured of it on that text.
"""

CAUSE = """## What fewer fit tokens lose

With rounding fitted to 16,384 tokens, which was the default of all models once, plans of qwen2-8m lost 2.7 % more than
the yardstick's (section of that name). It was neither formats nor folds. The same plans of the default effort, on its
own folded model, with integers fitted to 32,768 tokens as well (measured once, at commit 2e94195):

| budget | integers: fitted to 16,384 over 32,768 | folds: the default's over the yardstick's | *ratio* with 32,768 |
|---|---:|---:|---:|
| int4 | 1.046 | 1.012 | 1.005 |
| 4.5bpw | 1.020 | 0.972 | 0.975 |
| 5bpw | 1.059 | 0.999 | 1.006 |
| 6bpw | 1.020 | 0.984 | 0.997 |
| mean | 1.036 | 0.992 | 0.996 |

Tried there with 16,384 tokens, losses at int4 and 5bpw over what they were: H of the 4,096 tokens that losses are
measured on as well, 0.968 and 0.968, for no pass at all, but then nothing judges on other tokens; damping of 0.05
instead of 0.01, 0.970 and 0.998.
"""


def write_page(results: Mapping[str, Any], path: Path) -> None:
    """Write ``README.md``."""
    lines = [INTRODUCTION, CAUSE]
    for name, result in results.items():
        lines += [
            f"## {name}\n",
            f"{result['parameters']:,} parameters, {result['tensors']} tensors; calibrated on {result['calibration']}",
            f"(the yardstick measured losses on {result['measured_tokens']:,} of these tokens);",
            f"rounding was fitted to {result['fit_tokens']:,} tokens, the yardstick's to {FIT_TOKENS:,};",
            f"judged on {result['judged_tokens']:,} tokens of {result.get('judged_text', 'demo/heldout.txt')}.",
            f"Formats: {', '.join(result['formats'])}.\n",
            *_on_layers(result),
            *_summary(result["plans"]),
            *_table(result["plans"]),
        ]
    path.write_text("\n".join(lines), encoding="utf-8")


def _on_layers(result: Mapping[str, Any]) -> Iterator[str]:
    if result.get("layers") is None:
        return
    yield (
        f"Only tensors of layers {', '.join(map(str, result['layers']))} are planned, within bits per weight of these; "
        "all others are stored as fp16. The whole model was analyzed with each effort, and only the integer formats of "
        "these tensors were rounded whole and measured, on the model that the efforts had folded: folds are the same "
        "for all, so *ratio* compares formats and integers. fp16 keeps its estimate.\n"
    )


def _summary(plans: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    for way in ("quick", "default"):
        ratios = [row["ratio"] for row in plans[way]]
        mean, alone = (
            math.exp(math.fsum(math.log(row[key]) for row in plans[way]) / len(ratios))
            for key in ("ratio", "formats_alone")
        )
        errors = math.sqrt(math.fsum(row["stderr"] ** 2 for row in plans[way])) / len(ratios)
        yield (
            f"- {way}: {mean:.3f} times the loss of plans from measured losses in the geometric mean over "
            f"{len(ratios)} budgets (standard error at most {errors * math.sqrt(len(ratios)):.3f}), "
            f"{min(ratios):.3f} to {max(ratios):.3f}; formats alone {alone:.3f}"
        )
    yield ""


def _table(plans: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    columns = ("ratio", "formats alone", "same formats", "predicted")
    yield f"| budget | measured, nats | {' | '.join(f'{w}: {c}' for w in ('quick', 'default') for c in columns)} |"
    yield "|---|" + "---:|" * (1 + 2 * len(columns))
    others = {way: {row["budget"]: row for row in plans[way]} for way in ("quick", "default")}
    for row in plans["measured"]:
        cells = [row["budget"], f"{row['kl_nats']:.3g}"]
        for way in ("quick", "default"):
            other = others[way].get(row["budget"])
            if other is None:
                cells += ["does not fit", "", "", ""]
            else:
                cells += [
                    f"{other['ratio']:.3f} ± {other['stderr']:.3f}",
                    f"{other['formats_alone']:.3f}",
                    f"{other['same_formats']:.0%}",
                    f"{other['predicted']:.2f}",
                ]
        yield f"| {' | '.join(cells)} |"
    yield ""
