"""The peers' benchmark: what is made of an allocation, what qplan holds against it, and what the page admits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qplan.card import ModelCard
from qplan.cost.file_bytes import estimate_fixed, file_bytes
from qplan.errors import MeasurementError, ToolError
from qplan.formats import INT4, INT8
from reports.peers import page, scorers
from reports.peers.plans import case_of, own_plan, view
from reports.peers.score.job import Job
from reports.peers.scorers import SCORERS, ask
from tests.support.invented_table import make_table

GRADIENT = SCORERS[0]


def body(card: ModelCard, width: int) -> dict[str, int]:
    return {spec.name: width for spec in card.tensors[:-1]}


def test_a_head_that_is_not_planned_has_8_bits() -> None:
    card = make_table().model
    fixed = estimate_fixed(card)
    widths = body(card, 4) | {card.tensors[0].name: 8}
    case = case_of(GRADIENT, 4.5, widths, card, fixed)
    assert case.formats["lm_head"] == INT8
    assert case.formats[card.tensors[1].name] == INT4
    assert not case.plans_head
    assert case.total_bytes == file_bytes(card, case.formats, fixed).total
    sizes = [spec.weights for spec in card.tensors[:-1]]
    assert case.bits == pytest.approx(4 + 4 * sizes[0] / sum(sizes))


def test_a_head_that_is_planned_has_what_the_peer_gave_it() -> None:
    card = make_table().model
    case = case_of(GRADIENT, 4.5, body(card, 8) | {"lm_head": 4}, card, estimate_fixed(card))
    assert case.formats["lm_head"] == INT4
    assert case.plans_head


@pytest.mark.parametrize("width", [None, 16])
def test_an_allocation_that_is_not_of_4_and_8_bits_is_refused(width: int | None) -> None:
    card = make_table().model
    widths = body(card, 4)
    name = card.tensors[2].name
    if width is None:
        del widths[name]
    else:
        widths[name] = width
    with pytest.raises(MeasurementError, match=name):
        case_of(GRADIENT, 5, widths, card, estimate_fixed(card))


def test_plans_of_the_same_bytes_and_widths_lose_no_more_in_the_table() -> None:
    table = make_table()
    card, fixed = table.model, estimate_fixed(table.model)
    widths = {spec.name: 8 if index % 2 else 4 for index, spec in enumerate(card.tensors[:-1])}
    case = case_of(GRADIENT, 6, widths, card, fixed)
    losses = table.kl(table.goal)
    theirs = sum(losses[name][fmt.name] for name, fmt in case.formats.items())
    narrow = own_plan(view(table, "4/8", table.goal), case, fixed)
    assert {fmt.bits for fmt in narrow.values()} <= {4, 8}
    assert file_bytes(card, narrow, fixed).total <= case.total_bytes
    ours = sum(losses[name][fmt.name] for name, fmt in narrow.items())
    wide = own_plan(table, case, fixed)
    assert file_bytes(card, wide, fixed).total <= case.total_bytes
    assert sum(losses[name][fmt.name] for name, fmt in wide.items()) <= ours <= theirs


def test_the_page_marks_where_qplan_is_worse(tmp_path: Path) -> None:
    def verdict(planner: str, menu: str, kl: float, error: float = 0.0) -> dict[str, object]:
        common = {"scorer": "A", "budget": 5.0, "memory": "low", "rounding": "rtn", "total_bytes": 1000}
        return common | {"planner": planner, "menu": menu, "kl_nats": kl, "difference_stderr_nats": error}

    cost = {"seconds": 1.0, "peak_mib": None}
    result = {
        "model": {"parameters": 10, "tensors": 2},
        "calibration": {"samples": 1, "seq_len": 2, "text": "a.txt"},
        "heldout": {"text": "b.txt", "tokens": 2},
        "cases": [{"scorer": "A", "budget": 5.0, "bits": 4.9}],
        "costs": {"forward": cost, "forward and backward": cost, "A": cost | {"forward_s": 0.5}},
        "verdicts": [
            verdict("peer", "4/8", 0.1),
            verdict("auto", "4/8", 0.11),
            verdict("auto", "2-16", 0.05),
            verdict("gradient", "2-16", 0.12, 0.011),
        ],
        "engine": [],
        "versions": {"a": "1"},
        "failures": {"B": "does not run"},
    }
    page.write_page({"m": result}, tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| A | 5, 4.90 | 1,000 | 1.000e-01 | **1.100** | **1.200**? | 0.500 |" in text
    assert "B is missing" in text
    assert "does not run" in text


@pytest.mark.slow
def test_scorers_do_not_need_qplan() -> None:
    modules = "reports.peers.score.job, reports.peers.score.meter, reports.peers.score.hugging_face"
    script = f"import sys, {modules}; print([name for name in sys.modules if 'qplan' in name])"
    done = subprocess.run([sys.executable, "-c", script], cwd=scorers.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_scorer_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "tokens.npy", np.zeros((1, 2), dtype=np.int64))
    job = Job("no-model", str(tmp_path / "tokens.npy"), (4.5,), 1)
    # this environment holds no peer: what a broken installation looks like
    monkeypatch.setattr(scorers, "prepare", lambda _peer, _parent: Path(sys.executable))
    with pytest.raises(ToolError, match="modelopt"):
        ask(GRADIENT, job, tmp_path, tmp_path)
    asked = next(tmp_path.glob("*.job.json"))
    assert json.loads(asked.read_text(encoding="utf-8"))["variant"] == "gradient"
