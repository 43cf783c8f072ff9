"""A mixture of experts on the engine: its arithmetic, its bytes, and the whole job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from qplan.artifact import sha256_file
from qplan.choosing.sizes import fixed_bytes
from qplan.formats import FP16, INT8, QuantFormat
from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.build.exporter_source import find_exporter
from qplan.mnn.build.quant_config import make_quant_config
from qplan.mnn.build.skeleton import Skeleton, folder_bytes, predict_files
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.session import EngineSession, Logits
from qplan.mnn.graph.binary import read_linears
from qplan.mnn.preflight import check_folder
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel, load_model
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.rounding import EnginePath, Int8Activations
from qplan.rounding.rounder import Rounder
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.run.verification import Verification
from qplan.sensitivity.variants import apply_formats
from qplan.settings import DynamicOption, Memory
from qplan.tensors import Role
from qplan.verify.reference import torch_logits
from tests.support.command import succeed
from tests.support.mnn_models import VOCABULARY, export_with_config, save
from tests.support.tiny_models import words

WIDE = ("fp16", "int8", "int6-b0", "int5", "int4", "int4-sym", "int3-b32", "int2-b0", "int8-b0-sym", "int4-b32-s32")


@dataclass(frozen=True)
class Exported:
    """A mixture in torch and its export."""

    loaded: LoadedModel
    skeleton: Skeleton

    def build(self, formats: Mapping[str, QuantFormat], out: Path) -> None:
        """Build it rounded to nearest, formats by tensor name."""
        build_model(self.skeleton, self.loaded.card.tensors, formats, Rounder(self.loaded).store, out)

    def logits(self, formats: Mapping[str, QuantFormat], token_ids: list[int], path: Int8Activations | None) -> Logits:
        """What torch computes with the same weights; with int8 activations, or None for floats."""
        memory: Memory = "normal" if path is None else "low"
        with apply_formats(self.loaded, formats, memory, path or Int8Activations(), engine_embedding=True):
            return torch_logits(self.loaded, token_ids)

    def all(self, fmt: QuantFormat) -> dict[str, QuantFormat]:
        """One format for every tensor."""
        return {spec.name: fmt.resolve(spec.in_features) for spec in self.loaded.card.tensors}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense layer, then one with ten experts, of which a short prompt gives many a single token."""
    torch.manual_seed(6)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        num_experts=10,
        num_experts_per_tok=3,
        moe_intermediate_size=32,
        norm_topk_prob=True,
        mlp_only_layers=[0],
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    model = Qwen3MoeForCausalLM(config)
    # a trained router's choices are no close ones
    model.model.layers[1].mlp.gate.weight.data.mul_(8)
    return save(model, tmp_path_factory.mktemp("mixture") / "model")


@pytest.fixture(scope="module")
def exported(folder: Path) -> Exported:
    return Exported(load_model(str(folder)), export_skeleton(folder, folder.with_name("skeleton")))


def test_every_op_has_its_tensor(exported: Exported) -> None:
    assert {op.name for op in exported.skeleton.ops} == {spec.op_name for spec in exported.loaded.card.tensors}
    shapes = {op.name: (op.out_features, op.in_features, op.bias) for op in exported.skeleton.ops}
    assert all(shapes[s.op_name] == (s.out_features, s.in_features, s.bias) for s in exported.loaded.card.tensors)


def test_experts_of_any_format_compute_and_weigh_what_was_promised(
    exported: Exported, token_ids: list[int], tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    names = exported.loaded.card.tensors
    formats = {s.name: QuantFormat.parse(str(draw.choice(WIDE))).resolve(s.in_features) for s in names}
    exported.build(formats, tmp_path / "m")
    by_op = {spec.op_name: formats[spec.name] for spec in names}
    predicted, real = predict_files(exported.skeleton, by_op), folder_bytes(tmp_path / "m")
    assert (predicted.weight, predicted.embedding) == (real.weight, real.embedding)
    assert predicted.graph == pytest.approx(real.graph, abs=64)
    expected = exported.logits(formats, token_ids, None)
    with EngineSession(tmp_path / "m", RuntimeConfig("normal")) as engine:
        for found in (engine.logits(token_ids), engine.logits_stepwise(token_ids)):
            assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
    assert check_folder(tmp_path / "m").findings == ()


def test_llmexport_makes_the_same_file_of_a_quant_config(exported: Exported, tmp_path: Path) -> None:
    specs = exported.loaded.card.tensors
    formats = {
        spec.name: QuantFormat(8 if number % 2 else 4, 0 if number % 3 == 0 else 32, scale_bits=32)
        for number, spec in enumerate(specs)
    }
    formats |= {spec.name: FP16 for spec in specs if spec.role is Role.ROUTER}
    config = make_quant_config(exported.skeleton, {s.op_name: formats[s.name] for s in specs}, find_exporter())
    assert config.problems == ()
    config.write(tmp_path / "quant_config.json")
    theirs = export_with_config(exported.loaded.folder, tmp_path / "theirs", tmp_path / "quant_config.json")
    exported.build(formats, tmp_path / "ours")
    assert sha256_file(theirs / "llm.mnn.weight") == sha256_file(tmp_path / "ours" / "llm.mnn.weight")
    assert read_linears(theirs) == read_linears(tmp_path / "ours")


@pytest.mark.parametrize("kind", ["gate_up_proj", "down_proj"])
@pytest.mark.parametrize("option", [0, 2])
def test_emulation_of_routed_tokens_is_the_engines_arithmetic(
    exported: Exported, kind: str, option: DynamicOption, token_ids: list[int], tmp_path: Path
) -> None:
    # the last layer's experts: what they give reaches no router
    experts = {s.name: INT8.resolve(s.in_features) for s in exported.loaded.card.tensors if s.expert is not None}
    formats = exported.all(FP16) | {name: fmt for name, fmt in experts.items() if kind in name}
    exported.build(formats, tmp_path / "m")
    paths: tuple[EnginePath, EnginePath] = ("prefill", "decode")
    with EngineSession(tmp_path / "m", RuntimeConfig(dynamic_option=option)) as engine:
        for ids in (token_ids, token_ids[:7]):
            plain = exported.logits(formats, ids, None)
            for path, found in zip(paths, (engine.logits(ids), engine.logits_stepwise(ids)), strict=True):
                expected = exported.logits(formats, ids, Int8Activations(path, option))
                errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(found - plain, axis=1)
                assert np.median(errors) < 0.01
                # a code that lies on the edge may fall to either side: half a step of one feature of one token
                assert np.sort(errors)[-1 - len(ids) // 10] < 0.05


def test_a_plan_of_experts_keeps_its_promises(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(words(4000))
    analyze = (
        "--samples",
        "4",
        "--seq-len",
        "64",
        "--batch-size",
        "2",
        "--formats",
        "fp16,int8,int6,int4,int3",
        "--fold",
        "off",
    )
    succeed("analyze", str(folder), "--calib", "text.txt", "--run", "run", *analyze, folder=tmp_path)
    table = SensitivityTable.read(tmp_path / "run" / "sensitivity.parquet")
    (router,) = (spec for spec in table.model.tensors if spec.role is Role.ROUTER)
    assert FP16 in table.formats_of(router.name)
    for budget in ("int8", "int4"):
        # within uniform's times there is hardly any room beside a router in fp16
        emit = ("emit", "--run", "run", "--budget", budget, "--parity", "files")
        succeed(*emit, "--tokens", "256", "--repair", "8", folder=tmp_path)
        out = tmp_path / "run" / f"{budget}-files"
        plan, verification = Plan.read(out / "plan.json"), Verification.read(out / "verification.json")
        assert verification.passed
        assert plan.formats[router.name] == FP16
        assert any(str(note).startswith("rule: routers are fp16") for note in plan.notes)
        for kind in ("gate_up_proj", "down_proj"):
            assert len({t.format for t in plan.tensors if ".experts." in t.name and t.kind == kind}) == 1
        assert set(json.loads((out / "quant_config.json").read_text())) == {
            t.op_name for t in plan.tensors if t.op_name
        }
        assert "nothing found" in succeed("check", str(out / "model"), folder=tmp_path)
    fixed = fixed_bytes(Skeleton.open(tmp_path / "run" / "skeleton"), table.model)
    rules = Rules(pins={"*.mlp.gate": INT8}, group_patterns=("{layer}.mlp.experts.{expert}.{kind}",))
    finest = make_plan(table, Budget.parse("int8"), fixed, rules=rules)
    assert finest.formats[router.name] == INT8
    assert len({t.format for t in finest.tensors if ".experts." in t.name and t.kind == "down_proj"}) > 1
    assert (
        finest.predicted_nats
        < make_plan(table, Budget.parse("int8"), fixed, rules=Rules(pins=rules.pins)).predicted_nats
    )
