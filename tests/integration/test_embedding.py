"""An untied embedding in every format that it may have, on the real engine, beside torch and llmexport."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qplan.artifact import sha256_file
from qplan.errors import InputError
from qplan.formats import FP16, INT8, QuantFormat
from qplan.mnn.build.embedding_file import embedding_format
from qplan.mnn.build.exporter import export, export_skeleton
from qplan.mnn.build.exporter_source import ExportOptions
from qplan.mnn.build.skeleton import folder_bytes
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.engines import EngineVersion
from qplan.mnn.preflight import check_folder
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel, load_model
from qplan.rounding.rounder import Rounder
from qplan.run.plan import Plan
from qplan.run.verification import Verification
from qplan.verify.reference import relative_error, stored_logits
from tests.support.command import ANALYZE, succeed
from tests.support.mnn_models import VOCABULARY, ExportedModel, save
from tests.support.tiny_models import words

FORMATS = ["fp16", "int8-b0-s32", "int8-s32", "int8-b32-s32", "int4-b0-s32", "int4-s32", "int4-b16-s32"]
ENGINE = EngineVersion(3, 6, 1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    """An untied model whose rows blocks divide."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        initializer_range=0.05,
    )
    folder = save(LlamaForCausalLM(config), tmp_path_factory.mktemp("llama"))
    return ExportedModel(folder, export_skeleton(folder, tmp_path_factory.mktemp("skeleton") / "skeleton"))


@pytest.fixture(scope="module")
def loaded(exported: ExportedModel) -> LoadedModel:
    """The same in torch."""
    return load_model(str(exported.folder))


def build(loaded: LoadedModel, exported: ExportedModel, fmt: QuantFormat, out: Path) -> dict[str, QuantFormat]:
    assert loaded.card.embedding is not None
    formats = dict.fromkeys((spec.name for spec in loaded.card.tensors), INT8) | {loaded.card.embedding.name: fmt}
    build_model(exported.skeleton, loaded.card.planned, formats, Rounder(loaded).store, out)
    return formats


@pytest.mark.parametrize("name", FORMATS)
def test_the_engine_looks_up_what_torch_does(
    loaded: LoadedModel, exported: ExportedModel, token_ids: list[int], tmp_path: Path, name: str
) -> None:
    fmt, out = QuantFormat.parse(name), tmp_path / "model"
    formats = build(loaded, exported, fmt, out)
    assert loaded.card.embedding is not None
    assert folder_bytes(out).embedding == loaded.card.embedding.bytes_in(fmt)
    assert embedding_format(out) == fmt
    assert list(check_folder(out, ENGINE).findings) == []
    expected = stored_logits(Rounder(loaded), formats, token_ids)
    plain = stored_logits(Rounder(loaded), formats | {loaded.card.embedding.name: FP16}, token_ids)
    assert name == "fp16" or relative_error(plain, expected) > 1e-3
    with EngineSession(out, RuntimeConfig("normal")) as engine:
        assert relative_error(engine.logits(token_ids), expected) < 1e-5
        assert relative_error(engine.logits_stepwise(token_ids), expected) < 1e-5


@pytest.mark.parametrize(("name", "block"), [("int8-s32", 64), ("int4-b32-s32", 32), ("int8-b0-s32", 0)])
def test_the_file_is_llmexports_byte_for_byte(
    loaded: LoadedModel, exported: ExportedModel, tmp_path: Path, name: str, block: int
) -> None:
    fmt = QuantFormat.parse(name)
    build(loaded, exported, fmt, tmp_path / "ours")
    options = ExportOptions(8, block, others=("--embed_bit", str(fmt.bits)))
    theirs = export(exported.folder, tmp_path / "theirs", options)
    file = f"embeddings_int{fmt.bits}.bin"
    assert sha256_file(theirs / file) == sha256_file(tmp_path / "ours" / file)
    for folder in (theirs, tmp_path / "ours"):
        assert json.loads((folder / "config.json").read_text())["embedding_file"] == file
    assert embedding_format(theirs) == embedding_format(tmp_path / "ours") == fmt


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"alpha_offset": 100}, "tie-offset"),
        ({"alpha_size": 8}, "tie-scales"),
        ({"quant_block": 48}, "tie-block"),
        ({"quant_bit": 6}, "tie-width"),
        ({"alpha_size": 1 << 30}, "tie-offset"),
    ],
)
def test_a_record_that_does_not_fit_the_file_is_found(
    loaded: LoadedModel, exported: ExportedModel, tmp_path: Path, change: dict[str, int], code: str
) -> None:
    out = tmp_path / "model"
    build(loaded, exported, QuantFormat.parse("int8-s32"), out)
    path = out / "llm_config.json"
    settings = json.loads(path.read_text())
    settings["tie_embeddings"] |= change
    path.write_text(json.dumps(settings))
    assert code in {finding.code for finding in check_folder(out, ENGINE).errors}


@pytest.fixture
def make(loaded: LoadedModel, exported: ExportedModel, tmp_path: Path) -> Callable[[str], Path]:
    """Builds the model with its embedding in a format."""

    def built(name: str) -> Path:
        build(loaded, exported, QuantFormat.parse(name), tmp_path / "model")
        return tmp_path / "model"

    return built


def damaged(folder: Path, data: Callable[[bytes], bytes], **record: object) -> Path:
    """Change the embedding's file and its record, as if nobody had left checksums."""
    (folder / "checksums.json").unlink(missing_ok=True)
    path, file = folder / "llm_config.json", next(folder.glob("embeddings_int*.bin"))
    file.write_bytes(data(file.read_bytes()))
    settings = json.loads(path.read_text())
    settings["tie_embeddings"] |= record
    path.write_text(json.dumps(settings))
    return folder


def poke(place: int, *numbers: float) -> Callable[[bytes], bytes]:
    """Other scales from a place on, counted in numbers from the file's end."""
    new = struct.pack(f"<{len(numbers)}f", *numbers)
    return lambda data: data[: len(data) - 4 * place] + new + data[len(data) - 4 * place + len(new) :]


def same(data: bytes) -> bytes:
    return data


@pytest.mark.parametrize(
    ("data", "record", "code"),
    [
        (same, {"quant_block": 0}, "tie-scales"),
        (same, {"quant_block": 128}, "tie-scales"),
        (same, {"quant_block": 16}, "tie-scales"),
        (same, {"quant_block": 32}, "tie-block"),  # as many numbers, were they scales alone
        (same, {"quant_bit": 4}, "tie-block"),  # as if there were twice the tokens
        (same, {"alpha_size": 4 * VOCABULARY}, "tie-scales"),
        (same, {"alpha_dtype": "fp16"}, "tie-scales"),
        (poke(1, math.nan), {}, "bad-numbers"),
        (poke(16, math.inf), {}, "bad-numbers"),
        (poke(4 * VOCABULARY, -1e7), {}, "bad-numbers"),
        (lambda data: data[:-100], {}, "tie-offset"),
    ],
)
def test_a_broken_file_is_found_without_checksums(
    make: Callable[[str], Path], data: Callable[[bytes], bytes], record: dict[str, object], code: str
) -> None:
    out = make("int8-s32")
    assert check_folder(damaged(out, same), ENGINE).findings == ()
    assert code in {finding.code for finding in check_folder(damaged(out, data, **record), ENGINE).errors}


def test_a_full_check_reads_every_scale_of_it(make: Callable[[str], Path]) -> None:
    out = make("int8-b16-s32")
    damaged(out, poke(3600, math.nan))  # between the samples
    assert check_folder(out, ENGINE).findings == ()
    assert [finding.code for finding in check_folder(out, ENGINE, full=True).errors] == ["bad-numbers"]


def test_bytes_behind_it_are_told(make: Callable[[str], Path]) -> None:
    out = make("int4-s32")
    (found,) = check_folder(damaged(out, lambda data: data + b"x"), ENGINE).findings
    assert (found.code, found.severity, found.where) == ("embedding-size", "warning", "embeddings_int4.bin")


@pytest.mark.parametrize("symmetric", [False, True])
def test_what_llmexport_makes_passes(exported: ExportedModel, tmp_path: Path, *, symmetric: bool) -> None:
    options = ExportOptions(8, 64, others=("--embed_bit", "4", *(["--sym"] if symmetric else [])))
    assert check_folder(export(exported.folder, tmp_path / "theirs", options), ENGINE, full=True).errors == ()


@pytest.mark.parametrize("change", [{"quant_block": 32}, {"alpha_size": 8}, None])
def test_a_record_that_was_changed_since_is_an_error(
    make: Callable[[str], Path], change: dict[str, int] | None
) -> None:
    out = make("int8-s32")
    path = out / "llm_config.json"
    settings = json.loads(path.read_text())
    if change is None:
        del settings["tie_embeddings"]
        (out / "embeddings_int8.bin").rename(out / "embeddings_bf16.bin")
    else:
        settings["tie_embeddings"] |= change
    path.write_text(json.dumps(settings))
    found = [(f.code, f.where) for f in check_folder(out, ENGINE).errors]
    assert ("checksum", "llm_config.json, tie_embeddings") in found


def test_a_tied_model_has_no_such_file(
    loaded: LoadedModel, model_of: Callable[[str], ExportedModel], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"embed_tokens is to be stored in int8-b0-s32.*expected"):
        build(loaded, model_of("tied"), QuantFormat.parse("int8-b0-s32"), tmp_path / "model")


def test_the_job_plans_it_and_a_pin_decides(exported: ExportedModel, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text(words(6000), encoding="utf-8")
    succeed("analyze", str(exported.folder), "--calib", "words.txt", "--run", "run", *ANALYZE, folder=tmp_path)
    found: dict[str, Plan] = {}
    for name, fmt, more in (
        ("free", "", ("--parity", "files")),
        ("int4", "int4-s32", ("--parity", "files", "--pin", "model.embed_tokens=int4")),
        ("exported", "fp16", ("--parity", "files", "--pin", "model.embed_tokens=fp16", "--no-build")),
    ):
        succeed("emit", "--budget", "int4", "--run", "run", "--tokens", "256", *more, folder=tmp_path)
        (out,) = {path.parent for path in (tmp_path / "run").glob("*/plan.json")}
        plan = found[name] = Plan.read(out / "plan.json")
        own = plan.formats["model.embed_tokens"]
        assert own.name == fmt if fmt else own.bits in {4, 8}
        if "--no-build" not in more:
            assert Verification.read(out / "verification.json").passed
            assert plan.files.embedding == folder_bytes(out / "model").embedding
            assert embedding_format(out / "model") == own
    # bytes that the embedding gives up make the linears better
    assert found["free"].predicted_nats < found["exported"].predicted_nats
