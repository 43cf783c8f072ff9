"""A saved run is explored where neither torch, transformers nor MNN can be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import io, sys

ABSENT = ("torch", "transformers", "MNN", "datasets", "huggingface_hub")

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import qplan

run = qplan.open_run(sys.argv[1])
plan, other = run.plan("int8"), run.solve("70%", pins={"0.mlp.down_proj": "int8"})
for thing in (run, run.table, plan, other, other.explain("lm_head")):
    thing._repr_html_(), repr(thing)
frames = (run.sensitivity, run.frontier, run.verification, run.checks, plan.frame, plan.diff(other),
          plan.compare(other), plan.explanations, run.tokens("int8"), run.price_of_logits_rule(), run.across_memories())
assert all(len(frame) for frame in frames)
figures = [run.plot_losses(), run.plot_ranking("int4"), run.plot_sqnr(), run.plot_frontier(), run.plot_predictions(),
           run.plot_weights("1.mlp.down_proj", "int4"), run.plot_channels("1.mlp.down_proj"), run.plot_tokens("int8"),
           plan.plot(), plan.plot_diff(other), run.slider().figure()]
for figure in figures:
    figure.savefig(io.BytesIO(), dpi=20)
loaded = {name.partition(".")[0] for name in sys.modules} & set(ABSENT)
assert not loaded, loaded
assert "matplotlib.pyplot" not in sys.modules
print("explored")
"""

FIRST = """
import sys
import qplan.explore
late = [name for name in ("matplotlib", "scipy", "torch") if name in sys.modules]
assert not late, late
"""


def python(script: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_frames_solves_and_plots_need_neither_torch_nor_mnn(saved: Path) -> None:
    assert python(SCRIPT, str(saved)) == "explored\n"


def test_importing_it_leaves_plots_and_solver_for_later() -> None:
    python(FIRST)
