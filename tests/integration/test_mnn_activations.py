"""The emulated int8 activations of memory low against the engine: one quantized op at a time, and losses of models."""

from pathlib import Path

import numpy as np
import pytest
import torch

import qplan.demo
from qplan.formats import INT4, INT8, QuantFormat
from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.build.skeleton import Skeleton
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel, load_model
from qplan.rounding import EnginePath, Int8Activations
from qplan.rounding.rounder import Rounder
from qplan.sensitivity.joint import joint_losses
from qplan.sensitivity.kept_logits import kept_logits
from qplan.settings import DynamicOption
from qplan.uniform import uniform_formats
from tests.support.mnn_models import EmulatedOp, ExportedModel

HOME = Path(qplan.demo.__file__).parent
OPTIONS: tuple[DynamicOption, ...] = (0, 2)
Q_PROJ, DOWN_PROJ = "/layers.0/self_attn/q_proj/Linear", "/layers.1/mlp/down_proj/Linear"


@pytest.mark.parametrize(("op_name", "fmt"), [(Q_PROJ, INT8), (DOWN_PROJ, QuantFormat(8, 32)), (DOWN_PROJ, INT4)])
def test_emulation_is_the_engines_arithmetic(
    tied_model: ExportedModel, op_name: str, fmt: QuantFormat, token_ids: list[int], tmp_path: Path
) -> None:
    emulated = EmulatedOp(tied_model, op_name, fmt)
    tied_model.build(emulated.tensors, tmp_path / "m")
    plain = emulated.logits(token_ids, lambda x: x)
    odd = token_ids[:-1]  # the last three tokens fill no tile
    for option in OPTIONS:
        prefill, decode = Int8Activations("prefill", option), Int8Activations("decode", option)
        with EngineSession(tmp_path / "m", RuntimeConfig(dynamic_option=option)) as engine:
            for found, activations in (
                (engine.logits(token_ids), prefill),
                (engine.logits(odd), prefill),
                (engine.logits_stepwise(token_ids), decode),
            ):
                ids = token_ids[: len(found)]
                expected = emulated.logits(ids, lambda x, a=activations: a.round(x, a.block(fmt)))  # type: ignore[misc]
                # a code that lies on the edge may fall to either side
                assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(found - plain[: len(found)])


def test_option_2_garbles_blocks_that_cut_through_packed_features(
    tied_model: ExportedModel, token_ids: list[int], tmp_path: Path
) -> None:
    """If this fails, MNN computes them now: `QuantFormat.allows_block_activations` forbids too much."""
    fmt = QuantFormat(8, 12)
    assert not fmt.allows_block_activations
    emulated = EmulatedOp(tied_model, DOWN_PROJ, fmt)
    tied_model.build(emulated.tensors, tmp_path / "m")
    plain = emulated.logits(token_ids, lambda x: x)
    errors = []
    for option in OPTIONS:
        with EngineSession(tmp_path / "m", RuntimeConfig(dynamic_option=option)) as engine:
            errors.append(np.linalg.norm(engine.logits(token_ids) - plain))
    assert errors[1] > 20 * errors[0]


@pytest.fixture(scope="module")
def embedded() -> LoadedModel:
    return load_model(str(HOME / "stdlib-3m"))


@pytest.fixture(scope="module")
def skeleton(embedded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Skeleton:
    return export_skeleton(embedded.folder, tmp_path_factory.mktemp("embedded") / "skeleton")


@pytest.mark.parametrize("bits", [8, 4])
def test_torch_predicts_the_engines_loss_within_five_percent(
    embedded: LoadedModel, skeleton: Skeleton, bits: int, tmp_path: Path
) -> None:
    text = (HOME / "heldout.txt").read_text(encoding="utf-8")
    rows = np.array(embedded.tokenizer(text)["input_ids"][: 4 * 128], dtype=np.int64).reshape(4, 128)
    formats = uniform_formats(embedded.card, bits)
    build_model(skeleton, embedded.card.tensors, formats, Rounder(embedded).store, tmp_path / "m")
    paths: tuple[EnginePath, ...] = ("prefill", "decode")
    with kept_logits(embedded, rows) as reference:
        for option in OPTIONS:
            with EngineSession(tmp_path / "m", RuntimeConfig(dynamic_option=option)) as engine:
                measured = [reference.compare(logits).kl_nats for logits in (engine.logits, engine.logits_stepwise)]
            predicted = [
                joint_losses(
                    embedded,
                    torch.from_numpy(rows),
                    {"": formats},
                    "low",
                    Int8Activations(path, option),
                    engine_embedding=True,
                )[""].kl_nats
                for path in paths
            ]
            assert predicted == pytest.approx(measured, rel=0.05)
