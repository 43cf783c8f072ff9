"""A plan in llmexport's words."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qplan.errors import InputError
from qplan.formats import FP16, FP32, INT4, QuantFormat
from qplan.mnn.build.exporter_source import Exporter
from qplan.mnn.build.quant_config import embedding_problem, export_command, make_quant_config
from qplan.mnn.build.skeleton import Skeleton, predict_files
from qplan.mnn.graph.linear import HALVES, Linear

PYPI = Exporter(
    Path("/p/llmexport.py"),
    "llmexport 0.0.5",
    (1, 2, 4, 8),
    has_scale_bit=False,
    has_quant_config=True,
    has_c4_option=False,
    symmetry_is_global=True,
    has_embed_bit=True,
)
CHECKOUT = Exporter(
    Path("/c/llmexport.py"),
    "MNN checkout x",
    (1, 2, 3, 4, 8),
    has_scale_bit=True,
    has_quant_config=True,
    has_c4_option=False,
    symmetry_is_global=False,
    has_embed_bit=True,
)


def op(name: str, offset: int, in_features: int = 64) -> Linear:
    external = (offset, 2 * 8 * in_features, 0, 0)
    return Linear(name=name, out_features=8, in_features=in_features, coding=HALVES, bits=16, external=external)


SKELETON = Skeleton(
    Path("/s"), (op("/q", 0), op("/k", 1024, 172), op("/lm", 3776)), (), None, 0, 5000, "llmexport 0.0.5"
)


def test_entries_are_resolved_and_complete(tmp_path: Path) -> None:
    formats = {"/q": INT4, "/k": QuantFormat(8, 64, scale_bits=32), "/lm": FP16}
    config = make_quant_config(SKELETON, formats, PYPI)
    config.write(tmp_path / "quant_config.json")
    assert json.loads((tmp_path / "quant_config.json").read_text()) == {
        "/q": {"bits": 4, "block_size": 64, "symmetric": False},
        "/k": {"bits": 8, "block_size": 0, "symmetric": False},  # 64 does not divide 172
        "/lm": {"bits": 16},
    }
    assert config.problems == ("llmexport 0.0.5 stores scales in 32 bits where the plan counts 16; its file is larger",)


def test_every_name_is_proved() -> None:
    with pytest.raises(InputError, match=r"1 ops have none: /lm; 1 names match no op: /l"):
        make_quant_config(SKELETON, {"/q": INT4, "/k": INT4, "/l": INT4}, PYPI)
    with pytest.raises(InputError, match="cannot keep a single op in fp32"):
        make_quant_config(SKELETON, {"/q": INT4, "/k": INT4, "/lm": FP32}, PYPI)


def test_what_an_exporter_cannot_do_is_said() -> None:
    formats = {"/q": QuantFormat(3), "/k": QuantFormat(6, 0, symmetric=True), "/lm": QuantFormat(8, scale_bits=32)}
    pypi = make_quant_config(SKELETON, formats, PYPI).problems
    checkout = make_quant_config(SKELETON, formats, CHECKOUT).problems
    assert len(pypi) == 3
    assert "stops at 2 ops, first /q (int3)" in pypi[0]
    assert "1 ops would be broken, first /k" in pypi[1]
    assert len(checkout) == 2
    assert "stops at 1 ops, first /k" in checkout[0]
    assert "one --scale_bit" in checkout[1]


def test_command_line_is_complete() -> None:
    formats = {"/q": INT4, "/k": INT4, "/lm": FP16}
    command = export_command(CHECKOUT, Path("my model"), Path("out"), Path("quant_config.json"), formats)
    assert command.endswith(
        "/c/llmexport.py --path 'my model' --dst_path out --export mnn --quant_bit 16 --quant_block 64 "
        "--scale_bit 16 --quant_config quant_config.json"
    )
    assert "--scale_bit" not in export_command(PYPI, Path("m"), Path("o"), Path("c"), formats)
    symmetric = dict.fromkeys(formats, QuantFormat(8, symmetric=True))
    assert "--sym" in export_command(PYPI, Path("m"), Path("o"), Path("c"), symmetric)


def test_an_embedding_of_integers_is_exported_or_said() -> None:
    formats, int8 = {"/q": INT4, "/k": INT4, "/lm": FP16}, QuantFormat.parse("int8-b0-s32")
    paths = Path("m"), Path("o"), Path("c")
    command = export_command(PYPI, *paths, formats, embedding=int8)
    assert "--quant_block 0" in command
    assert "--embed_bit 8" in command
    assert "--embed_bit" not in export_command(PYPI, *paths, formats)
    assert embedding_problem(PYPI, formats, int8) == embedding_problem(PYPI, formats, FP16) == ()
    symmetric = dict.fromkeys(formats, QuantFormat(8, symmetric=True))
    assert "without zero points" in embedding_problem(PYPI, symmetric, int8)[0]
    old = replace(PYPI, has_embed_bit=False)
    assert "--embed_bit" not in export_command(old, *paths, formats, embedding=int8)
    assert "bfloat16, the plan has int8-b0-s32" in embedding_problem(old, formats, int8)[0]


def test_prediction_counts_records_and_fixed_bytes() -> None:
    files = predict_files(SKELETON, {"/q": INT4, "/k": INT4, "/lm": FP16})
    expected = INT4.record_bytes(8, 64, bias=False) + QuantFormat(4, 0).record_bytes(8, 172, bias=False) + 1024
    assert (files.weight, files.embedding) == (expected, 0)
