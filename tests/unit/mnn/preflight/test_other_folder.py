"""Given another folder than a model's, the message says which one is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from qplan.errors import InputError
from qplan.mnn.engines import EngineVersion
from qplan.mnn.preflight import check_folder


def put(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}", encoding="utf-8")
    return folder


def told(folder: Path) -> str:
    with pytest.raises(InputError) as raised:
        check_folder(folder, EngineVersion(3, 6, 1))
    return str(raised.value)


def test_a_plan(tmp_path: Path) -> None:
    plan = put(tmp_path / "int8", "plan.json")
    assert told(plan).endswith("is the folder of a plan, and no model is built in it; build one with 'qplan emit'")
    put(plan, "model/llm.mnn")
    assert told(plan) == f"{plan} is the folder of a plan; the model is in {plan / 'model'}"


def test_a_run(tmp_path: Path) -> None:
    run = put(tmp_path / "run", "sensitivity.parquet", "skeleton/llm.mnn", "int8/model/llm.mnn", "int4/model/llm.mnn")
    assert told(run) == (
        f"{run} is the folder of a run; the model is in {run / 'int4' / 'model'} (or one of 2 others in it)"
    )


def test_a_hugging_face_model(tmp_path: Path) -> None:
    folder = put(tmp_path / "qwen", "config.json", "model.safetensors", "tokenizer_config.json")
    message = told(folder)
    assert "is a Hugging Face model, not yet an MNN model" in message
    assert f"'qplan analyze {folder}', then 'qplan emit'" in message


def test_a_folder_of_folders_and_a_file(tmp_path: Path) -> None:
    model = put(tmp_path / "all" / "mine", "llm.mnn")
    assert told(tmp_path / "all").endswith(f"is not the folder of an MNN model; the model is in {model}")
    assert told(model / "llm.mnn").endswith(f"is a file of an MNN model; give its folder: {model}")
    assert "is not a folder; give the folder of an MNN model" in told(tmp_path / "none")


def test_a_broken_model_is_checked_and_not_refused(tmp_path: Path) -> None:
    folder = put(tmp_path / "m", "config.json", "llm.mnn.weight", "tokenizer_config.json")
    assert {finding.code for finding in check_folder(folder, EngineVersion(3, 6, 1)).errors} >= {"missing-file"}


def test_a_name_that_no_file_system_holds() -> None:
    assert told(Path("m" * 5000)).startswith(f"{'m' * 80}... cannot name a folder: File name too long; give the folder")
