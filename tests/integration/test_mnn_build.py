"""Built folders on the real engine: the numbers of torch, the bytes of the prediction, the bytes of llmexport."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qplan.artifact import sha256_file
from qplan.errors import InputError
from qplan.formats import FP16, FP32, INT8, QuantFormat
from qplan.mnn.build.exporter_source import find_exporter
from qplan.mnn.build.quant_config import make_quant_config
from qplan.mnn.build.skeleton import Skeleton, folder_bytes, predict_files
from qplan.mnn.build.writer import build_model
from qplan.mnn.child import run_child
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.engines import EngineTarget, EngineVersion
from qplan.mnn.graph.binary import read_linears
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import load_model
from qplan.uniform import uniform_formats
from qplan.verify.bench import BuildBench
from qplan.verify.engine_memory import EngineMemory
from qplan.verify.measure import Trial
from qplan.verify.prove import gate
from tests.support.mnn_models import ExportedModel, export_with_config

NORMAL = RuntimeConfig(memory="normal")
UP_PROJ = "/layers.0/mlp/up_proj/Linear"
PLANS = ["fp32", "fp16", "int8", "int4-sym", "mixed-0", "mixed-1", "mixed-2"]


def formats_of(model: ExportedModel, plan: str) -> dict[str, QuantFormat]:
    if plan.startswith("mixed"):
        return model.mixed(int(plan[-1]))
    return model.formats(QuantFormat.parse(plan))


@pytest.mark.parametrize("name", ["tied", "untied"])
@pytest.mark.parametrize("plan", PLANS)
def test_build_computes_and_weighs_what_was_promised(
    model_of: Callable[[str], ExportedModel], name: str, plan: str, token_ids: list[int], tmp_path: Path
) -> None:
    model = model_of(name)
    formats = formats_of(model, plan)
    tensors = model.tensors(formats)
    ops = model.build(tensors, tmp_path / "m", runtime=NORMAL)
    assert all(op.holds(formats[op.name]) for op in ops)

    predicted, real = predict_files(model.skeleton, formats), folder_bytes(tmp_path / "m")
    assert (predicted.weight, predicted.embedding) == (real.weight, real.embedding)
    assert predicted.graph == pytest.approx(real.graph, rel=0.01)

    expected = model.reference(tensors, token_ids)
    with EngineSession(tmp_path / "m", NORMAL) as engine:
        for logits in (engine.logits(token_ids), engine.logits_stepwise(token_ids)):
            # a tied head of floats is looked up in halves
            limit = 1e-3 if plan == "fp32" and name == "tied" else 1e-5
            assert np.linalg.norm(logits - expected) <= limit * np.linalg.norm(expected)


def test_weight_file_is_llmexports_byte_for_byte(tied_model: ExportedModel, tmp_path: Path) -> None:
    formats = {
        op.name: QuantFormat(8 if number % 2 else 4, 0 if number % 3 == 0 else 64, scale_bits=32)
        for number, op in enumerate(tied_model.skeleton.ops)
    }
    formats["/layers.1/mlp/up_proj/Linear"] = FP16
    formats["/lm/lm_head/Linear"] = QuantFormat(8, 32, scale_bits=32)
    config = make_quant_config(tied_model.skeleton, formats, find_exporter())
    assert config.problems == ()
    config.write(tmp_path / "quant_config.json")
    theirs = export_with_config(tied_model.folder, tmp_path / "theirs", tmp_path / "quant_config.json")
    tied_model.build(tied_model.tensors(formats), tmp_path / "ours", tie_form="list")
    assert sha256_file(theirs / "llm.mnn.weight") == sha256_file(tmp_path / "ours" / "llm.mnn.weight")
    assert read_linears(theirs) == read_linears(tmp_path / "ours")
    ties = [json.loads((folder / "llm_config.json").read_text()) for folder in (theirs, tmp_path / "ours")]
    assert ties[0] == ties[1]
    # any export is a skeleton, whatever its formats
    rebuilt, whole = tmp_path / "rebuilt", Skeleton.open(theirs)
    ExportedModel(tied_model.folder, whole).build(tied_model.tensors(formats), rebuilt)
    assert sha256_file(rebuilt / "llm.mnn.weight") == sha256_file(theirs / "llm.mnn.weight")
    # and one whose matrices were neither read nor written is the same
    assert (tied_model.skeleton.whole, whole.whole) == (False, True)
    assert graph_without_id(tied_model.skeleton, tmp_path / "ours") == graph_without_id(whole, rebuilt)
    status = (tied_model.skeleton.folder / "llm.mnn.weight").stat()
    assert 512 * status.st_blocks < status.st_size / 4


def graph_without_id(skeleton: Skeleton, built: Path) -> bytes:
    """A built graph without the number that the converter draws for every export."""
    drawn = json.loads((skeleton.folder / "llm.mnn.json").read_text(encoding="utf-8"))["mnn_uuid"]
    return (built / "llm.mnn").read_bytes().replace(drawn.encode(), b"")


def test_export_leaves_no_machine_paths(tied_model: ExportedModel) -> None:
    folder = tied_model.skeleton.folder
    assert not (folder / "export_args.json").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    everything = folder.parents[2]  # the model's folder as well, whichever of pytest's workers made this
    assert everything in tied_model.folder.parents
    for path in folder.iterdir():
        assert str(everything).encode() not in path.read_bytes()


def test_one_converter_makes_a_build_and_none_reads_it_back(
    tied_model: ExportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def counted(script: str, arguments: Sequence[str], **settings: Any) -> str:
        started.append(arguments[0])
        return run_child(script, arguments, **settings)

    monkeypatch.setattr("qplan.mnn.graph.converter.run_child", counted)
    built = tied_model.build(tied_model.tensors(tied_model.formats(INT8)), tmp_path / "m")
    assert read_linears(tmp_path / "m") == built
    assert started == ["to-mnn"]


def test_built_folder_holds_only_what_ships(untied_model: ExportedModel, tmp_path: Path) -> None:
    untied_model.build(untied_model.tensors(untied_model.formats(INT8)), tmp_path / "m")
    assert {path.name for path in (tmp_path / "m").iterdir()} == {
        "checksums.json",
        "config.json",
        "llm_config.json",
        "llm.mnn",
        "llm.mnn.weight",
        "tokenizer.mtok",
        "embeddings_bf16.bin",
    }


@pytest.mark.parametrize("bits", [2, 3, 5, 6])
def test_tied_head_refuses_widths_that_the_lookup_cannot_read(
    tied_model: ExportedModel, bits: int, tmp_path: Path
) -> None:
    tensors = tied_model.tensors(tied_model.formats(INT8, QuantFormat(bits, 64)))
    with pytest.raises(InputError, match=f"wrongly at {bits} bits"):
        tied_model.build(tensors, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_list_form_refuses_short_scales(tied_model: ExportedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs 32-bit scales"):
        tied_model.build(tied_model.tensors(tied_model.formats(INT8)), tmp_path / "m", tie_form="list")


def test_missing_and_extra_names_are_listed(tied_model: ExportedModel, tmp_path: Path) -> None:
    tensors = tied_model.tensors(tied_model.formats(INT8))
    other = "/layers.9/mlp/up_proj/Linear"
    specs = tuple(
        replace(spec, op_name=other if spec.op_name == UP_PROJ else spec.op_name) for spec in tied_model.specs
    )
    formats = {spec.name: INT8 for spec in specs}
    with pytest.raises(InputError, match=rf"1 ops have none: {UP_PROJ}; 1 names match no op: {other}"):
        build_model(tied_model.skeleton, specs, formats, lambda name, fmt: pytest.fail(name), tmp_path / "m")
    del tensors[UP_PROJ]
    with pytest.raises(InputError, match=f"1 ops have none: {UP_PROJ}$"):
        tied_model.build(tensors, tmp_path / "m")


def test_tensor_of_another_shape_is_refused(tied_model: ExportedModel, tmp_path: Path) -> None:
    tensors = tied_model.tensors(tied_model.formats(FP32))
    tensors[UP_PROJ] = tensors["/layers.0/mlp/down_proj/Linear"]
    with pytest.raises(InputError, match="is 192 x 128, its tensor 128 x 192"):
        tied_model.build(tensors, tmp_path / "m")


def test_existing_folder_is_kept_unless_told(tied_model: ExportedModel, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "precious").touch()
    tensors = tied_model.tensors(tied_model.formats(INT8))
    with pytest.raises(InputError, match="already exists"):
        tied_model.build(tensors, tmp_path / "m")
    assert (tmp_path / "m" / "precious").exists()
    tied_model.build(tensors, tmp_path / "m", replace=True)
    assert not (tmp_path / "m" / "precious").exists()


def test_first_layers_stand_for_all_where_the_engine_may_not_take_more(
    tied_model: ExportedModel, token_ids: list[int], tmp_path: Path
) -> None:
    loaded = load_model(str(tied_model.folder))
    reference: Any = SimpleNamespace(rows=np.array([token_ids]))
    formats = uniform_formats(loaded.card, 16)
    memory = EngineMemory(loaded.card, len(token_ids), 10**9, 0)
    absent: Any = None
    bench = BuildBench(
        loaded=loaded,
        skeleton=tied_model.skeleton,
        trial=Trial(reference),
        text=absent,
        text_sha256="",
        baselines=tmp_path,
        say=absent,
        target=EngineTarget.of(EngineVersion.installed()),
        memory=replace(memory, free_bytes=memory.need(formats, "normal", 1)),
    )
    assert bench.layers(formats) == 1
    said: list[str] = []
    checks = gate(replace(bench, say=said.append))
    assert said == ["FP16 on the engine against the Hugging Face model, its first 1 of 2 layers for --max-memory"]
    assert [(check.promise.code, check.passed) for check in checks] == [("first-logits", True)]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"a layer and the head takes about 0\.3 GB .* 1\.0GB leaves 0\.0 GB"):
        gate(replace(bench, memory=memory))
