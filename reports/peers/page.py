"""The benchmark's results as a page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INTRODUCTION = """# Plans of the peers against qplan's, at equal bytes

Written by `python -m reports.peers.run`, from `results.json`. Every peer scores and plans the same model on the same
calibration tokens in its own environment, with 4 and 8 bits in blocks of 64, which all of them support, for
a mean of {budgets} bits. Its allocation then becomes a plan of MNN's formats (INT4 and INT8, block 64, zero points; a
head that it does not plan at 8 bits), and qplan plans within exactly the bytes of that, for the same memory setting
and rounding (auto mode measures only for memory low, and plans for memory normal from estimates). All plans are
written by qplan and evaluated in the same way: mean KL divergence from FP32 per held-out token, on a text that nothing
was fitted to. Rounding *rtn* is to nearest; *auto* is qplan's default.

ModelOpt runs without its fused groups, unless the row says so, and may not leave a tensor unquantized; AutoScheme
scores with symmetric integers, its default; NNCF's INT8 has one scale per row while it scores; Quark scores weights
without tokens, in the architectures and formats that it is taught here. A number above 1 is a plan of qplan's that
loses more than the peer's; such numbers are **bold**, with a question mark if the difference is within two standard
errors over the tokens.
"""

MODES = ("gradient", "auto", "measured")
MENUS = ("4/8", "2-16")


def write_page(results: Mapping[str, Any], path: Path) -> None:
    """Write ``README.md``."""
    budgets = sorted({case["budget"] for result in results.values() for case in result["cases"]})
    lines = [INTRODUCTION.format(budgets=", ".join(f"{budget:g}" for budget in budgets))]
    for name, result in results.items():
        text = result["calibration"]
        lines.append(
            f"## {name}\n\n{result['model']['parameters']:,} parameters, {result['model']['tensors']} tensors; "
            f"calibrated on {text['samples']} sequences of {text['seq_len']} tokens of {text['text']}, evaluated on "
            f"{result['heldout']['tokens']} tokens of {result['heldout']['text']}.\n"
        )
        lines += _summary(result)
        lines += _losses(result, result["verdicts"], "Emulated in torch")
        if result["engine"]:
            lines += _losses(result, result["engine"], "On MNN's engine, prefill")
            lines += _emulation(result)
        lines += _costs(result)
        lines += _failures(result)
    path.write_text("\n".join(lines), encoding="utf-8")


def _summary(result: Mapping[str, Any]) -> Iterator[str]:
    yield "KL of qplan's plans divided by that of the peers' plans, geometric mean over peers and budgets (largest):\n"
    columns = _columns(result["verdicts"])
    yield "| memory | rounding | " + " | ".join(f"{mode}, {menu}" for mode, menu in columns) + " |"
    yield "|---|---|" + "---|" * len(columns)
    for memory, rounding in _settings(result["verdicts"]):
        rows = list(_ratios(result["verdicts"], memory, rounding))
        cells = []
        for column in columns:
            found = [row[column].value for _, _, row in rows if column in row]
            cells.append(f"{_geomean(found):.3f} ({max(found):.3f})" if found else "")
        yield f"| {memory} | {rounding} | " + " | ".join(cells) + " |"
    yield ""


def _losses(result: Mapping[str, Any], verdicts: Sequence[Mapping[str, Any]], where: str) -> Iterator[str]:
    cases = {(case["scorer"], case["budget"]): case for case in result["cases"]}
    for memory, rounding in _settings(verdicts):
        yield f"{where}, memory {memory}, rounding {rounding}; qplan's KL over the peer's, by mode and widths:\n"
        rows = [verdict for verdict in verdicts if (verdict["memory"], verdict["rounding"]) == (memory, rounding)]
        columns = _columns(rows)
        yield (
            "| peer | mean bits, asked and given | bytes | peer's KL, nats | "
            + " | ".join(f"{mode}, {menu}" for mode, menu in columns)
            + " |"
        )
        yield "|---|---|---|---|" + "---|" * len(columns)
        for key, peer, ratios in _ratios(verdicts, memory, rounding):
            cells = [str(ratios[column]) for column in columns]
            bits = f"{key[1]:g}, {cases[key]['bits']:.2f}"
            cells = [key[0], bits, f"{peer['total_bytes']:,}", f"{peer['kl_nats']:.3e}", *cells]
            yield f"| {' | '.join(cells)} |"
        yield ""


def _emulation(result: Mapping[str, Any]) -> Iterator[str]:
    emulated = {_identity(verdict): verdict["kl_nats"] for verdict in result["verdicts"]}
    pairs = [(v["kl_nats"], emulated[_identity(v)]) for v in result["engine"] if _identity(v) in emulated]
    ratios = [engine / torch for engine, torch in pairs]
    yield (
        f"The engine's KL divided by the emulated KL, {len(ratios)} plans: "
        f"{min(ratios):.3f} to {max(ratios):.3f}, geometric mean {_geomean(ratios):.3f}.\n"
    )


def _costs(result: Mapping[str, Any]) -> Iterator[str]:
    forward, both = (result["costs"][name]["seconds"] for name in ("forward", "forward and backward"))
    yield (
        "Cost: processor seconds on one thread, the same in passes over the same tokens with qplan's model in torch, "
        "and in forward passes of the peer's own framework:\n"
    )
    yield "| | seconds | forward passes | forward and backward passes | own forward passes | peak, MiB |"
    yield "|---|---|---|---|---|---|"
    for name, cost in result["costs"].items():
        seconds, peak, own = cost["seconds"], cost["peak_mib"], cost.get("forward_s")
        yield (
            f"| {name} | {seconds:.2f} | {seconds / forward:.1f} | {seconds / both:.2f} | "
            f"{'' if own is None else format(seconds / own, '.1f')} | {'' if peak is None else format(peak, '.0f')} |"
        )
    yield ""
    yield "Versions: " + ", ".join(f"{name} {number}" for name, number in result["versions"].items()) + ".\n"


def _failures(result: Mapping[str, Any]) -> Iterator[str]:
    for name, error in result["failures"].items():
        yield f"{name} is missing:\n\n```text\n{error}\n```\n"


Key = tuple[str, float]


@dataclass(frozen=True)
class Ratio:
    """A plan's KL over the peer's."""

    value: float
    certain: bool
    """Whether the two differ by more than two standard errors over tokens."""

    @classmethod
    def of(cls, ours: Mapping[str, Any], peer: Mapping[str, Any]) -> Ratio:
        """Compare two verdicts."""
        difference = abs(ours["kl_nats"] - peer["kl_nats"])
        return cls(ours["kl_nats"] / peer["kl_nats"], difference > 2 * ours["difference_stderr_nats"])

    def __str__(self) -> str:
        """The ratio in bold where qplan is worse; where it rounds to 1, the plans are mostly the same."""
        shown = f"{self.value:.3f}"
        return f"**{shown}**{'' if self.certain else '?'}" if round(self.value, 3) > 1 else shown


def _ratios(
    verdicts: Iterable[Mapping[str, Any]], memory: str, rounding: str
) -> Iterator[tuple[Key, Mapping[str, Any], dict[tuple[str, str], Ratio]]]:
    """For every scorer and budget, the peer's verdict, and qplan's KL over the peer's by mode and menu."""
    groups: dict[Key, list[Mapping[str, Any]]] = {}
    for verdict in verdicts:
        if (verdict["memory"], verdict["rounding"]) == (memory, rounding):
            groups.setdefault((verdict["scorer"], verdict["budget"]), []).append(verdict)
    for key, group in groups.items():
        peer = next(verdict for verdict in group if verdict["planner"] == "peer")
        ours = {(v["planner"], v["menu"]): Ratio.of(v, peer) for v in group if v is not peer}
        yield key, peer, ours


def _settings(verdicts: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((verdict["memory"], verdict["rounding"]) for verdict in verdicts))


def _identity(verdict: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(verdict[name] for name in ("scorer", "budget", "memory", "rounding", "planner", "menu"))


def _columns(verdicts: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Qplan's modes and menus that were judged."""
    there = {(verdict["planner"], verdict["menu"]) for verdict in verdicts}
    return [(mode, menu) for menu in MENUS for mode in MODES if (mode, menu) in there]


def _geomean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
