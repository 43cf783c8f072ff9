"""Code in a model's folder is not run by any job, the exporter's included."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qplan.mnn.build.exporter import export_skeleton
from qplan.notes import note
from qplan.run.folder import RunFolder
from qplan.run.table import SensitivityTable
from tests.support.command import ANALYZE, succeed
from tests.support.tiny_models import words


@pytest.fixture
def folder(tied_model_dir: Path, tmp_path: Path) -> Path:
    """The tied model, with Python for its own stock class, its configuration and its generation, and a pickle."""
    copy = tmp_path / "model"
    shutil.copytree(tied_model_dir, copy)
    mark = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nfrom transformers import Qwen2Config, Qwen2ForCausalLM\n"
    for name in ("modeling_acme", "configuration_acme", "generate"):
        (copy / f"{name}.py").write_text(mark)
    (copy / "pytorch_model.bin").write_bytes(b"no pickle")
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_acme.Qwen2Config",
        "AutoModelForCausalLM": "modeling_acme.Qwen2ForCausalLM",
        "AutoModel": "modeling_acme.AcmeModel",
    }
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def test_no_job_runs_code_of_a_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(words(4000))
    succeed("analyze", str(folder), "--calib", "text.txt", "--run", "run", *ANALYZE, folder=tmp_path)
    told = note("own-code-not-run", classes=["AcmeModel", "Qwen2Config", "Qwen2ForCausalLM"])
    assert told in SensitivityTable.read(RunFolder(tmp_path / "run").sensitivity).notes
    succeed("emit", "--run", "run", "--budget", "int8", "--tokens", "128", folder=tmp_path)
    succeed("ladder", str(folder), "--text", "text.txt", "--tokens", "64", "--seq-len", "64", folder=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_exporter_reads_a_view_that_is_gone_afterwards(folder: Path, tmp_path: Path) -> None:
    skeleton = export_skeleton(folder, tmp_path / "skeleton")
    assert skeleton.ops
    assert not (tmp_path / "ran").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"model", "skeleton"}
    assert (folder / "model.safetensors").is_file()


def test_several_chat_templates_are_exported_as_the_default_one(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ messages[0].content }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    export_skeleton(folder, tmp_path / "skeleton")
    llm_config = json.loads((tmp_path / "skeleton" / "llm_config.json").read_text())
    assert llm_config["jinja"]["chat_template"] == "{{ messages[0].content }}"
