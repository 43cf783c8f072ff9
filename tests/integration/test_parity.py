"""A model larger than the processor's caches: what a named budget promises of RAM, on the real engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from qplan.choosing.request import PlanRequest
from qplan.choosing.sizes import fixed_bytes
from qplan.choosing.solving import solved
from qplan.formats import Formats
from qplan.jobs.profile import drawn
from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.build.skeleton import Skeleton
from qplan.mnn.build.writer import build_model
from qplan.model.load import load_model
from qplan.planner.budget import parse_budgets
from qplan.planner.rules import Rules
from qplan.run.folder import RunFolder
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.sensitivity.kept_logits import KeptLogits
from qplan.uniform import uniform_formats
from qplan.verify.measure import Trial
from qplan.verify.parity import MORE_RAM
from qplan.verify.turns import Contestant, speeds_in_turns
from tests.support.invented_run import sensitivity
from tests.support.mnn_models import save

FORMATS = ("fp16", "int8", "int8-b0", "int6", "int5", "int4", "int4-b0", "int3")


@dataclass(frozen=True)
class Large:
    """78 million random weights, 57 MB in RAM as uniform int4, with invented losses."""

    skeleton: Skeleton
    table: SensitivityTable
    folder: Path

    def plan(self, parity: str) -> Plan:
        wanted = PlanRequest(budgets=parse_budgets(["int4"]), rules=Rules.parse(parity=parity))
        fixed = fixed_bytes(self.skeleton, self.table.model)
        return solved(RunFolder(self.folder), self.table, fixed, wanted, unfolded=None)

    def build(self, name: str, formats: Formats) -> Path:
        card, out = self.table.model, self.folder / name
        build_model(self.skeleton, card.tensors, formats, lambda n, fmt: drawn(card.tensor(n), fmt), out)
        return out


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Large:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=16384,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("large")
    model: Any = Qwen2ForCausalLM(config)
    source = save(model.to(torch.bfloat16), folder / "hf")
    loaded = load_model(str(source), stream=True)
    table = sensitivity(loaded.card.tensors, FORMATS, batches=1)
    # whole rows lose more, as they do in earnest, and are no way to get RAM for nothing
    rows = tuple(replace(m, kl_nats=m.kl_nats * (6 if m.format.endswith("b0") else 1)) for m in table.measurements)
    table = replace(table, model=loaded.card, measurements=rows)
    return Large(export_skeleton(source, folder / "skeleton"), table, folder)


def test_a_named_budget_takes_no_more_ram_than_the_uniform_export(large: Large) -> None:
    plans = {"all": large.plan("all"), "files": large.plan("files")}
    formats = {name: plan.formats for name, plan in plans.items()}
    formats["uniform"] = uniform_formats(large.table.model, 4)
    folders = {name: large.build(name, found) for name, found in formats.items()}
    reference = KeptLogits.__new__(KeptLogits)  # speeds need no tokens to compare
    trial = Trial(reference, prompt_tokens=16, decode_tokens=4)
    contestants = [Contestant(name, folders[name], formats[name]) for name in ("uniform", "all", "files")]
    speeds = {name: speed for (name, _), speed in speeds_in_turns(contestants, trial, 256).items()}
    ram = {name: speed.ram_bytes for name, speed in speeds.items()}
    assert ram["all"] <= MORE_RAM * ram["uniform"]
    assert ram["files"] > MORE_RAM * ram["uniform"]  # what the old meaning takes
    predicted = {name: plan.footprint for name, plan in plans.items()}
    for name, found in predicted.items():
        assert found is not None
        assert ram[name] - ram["uniform"] == pytest.approx(
            found.ram_bytes - _uniform_ram(plans[name]), abs=0.005 * ram["uniform"]
        )
    # all took their turns in the same rounds
    assert len({speed.session for speed in speeds.values()}) == 1
    assert len({len(speed.rounds) for speed in speeds.values()}) == 1
    assert all(np.isfinite(turn.decode_s) and turn.decode_s > 0 for s in speeds.values() for turn in s.rounds)
    assert speeds["all"].against(speeds["uniform"], "decode") is not None


def _uniform_ram(plan: Plan) -> int:
    found = next(point.footprint for point in plan.uniform if point.name == "int4")
    assert found is not None
    return found.ram_bytes
