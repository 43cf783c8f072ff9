"""Nothing of a model's folder runs: Python, kernels and pickles stay where they are."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from qplan.calibration import check_chat_template
from qplan.errors import InputError
from qplan.model.inert import inert_view, without_code
from qplan.model.load import load_model
from qplan.model.source import weight_files


def change(path: Path, **keys: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(value | keys), encoding="utf-8")


@pytest.fixture
def folder(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny Qwen2 that brings Python which leaves a mark when it is imported."""
    copy = tmp_path / "model"
    shutil.copytree(model_folders["qwen2"], copy)
    mark = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    for name in ("modeling_acme", "configuration_acme", "tokenization_acme", "generate"):
        (copy / f"{name}.py").write_text(mark)
    (copy / "custom_generate").mkdir()
    (copy / "custom_generate" / "generate.py").write_text(mark)
    (copy / "pytorch_model.bin").write_bytes(b"a pickle")
    return copy


def nothing_ran(folder: Path) -> bool:
    return not (folder.parent / "ran").exists()


def test_code_for_a_stock_class_is_left_alone_and_named(folder: Path) -> None:
    change(
        folder / "config.json",
        auto_map={
            "AutoConfig": "configuration_acme.Qwen2Config",
            "AutoModelForCausalLM": "modeling_acme.Qwen2ForCausalLM",
        },
        attn_implementation="kernels-community/flash-attn",
        _attn_implementation="acme/kernel",
    )
    change(folder / "generation_config.json", custom_generate="custom_generate")
    loaded = load_model(str(folder))
    assert nothing_ran(folder)
    assert loaded.own_classes == ("Qwen2Config", "Qwen2ForCausalLM")
    assert type(loaded.model).__module__.startswith("transformers.")


@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoModelForCausalLM": "modeling_acme.AcmeForCausalLM"},
        {"AutoConfig": "acme/elsewhere--configuration_acme.AcmeConfig"},
    ],
)
def test_code_for_another_class_is_refused_by_name(folder: Path, auto_map: dict[str, str]) -> None:
    change(folder / "config.json", auto_map=auto_map)
    with pytest.raises(InputError, match=r"Acme\w+, and qplan runs no code of a model's folder; transformers' Qwen2"):
        load_model(str(folder))
    assert nothing_ran(folder)


@pytest.mark.parametrize("target", [["tokenization_acme.AcmeTokenizer", None], "tokenization_acme.AcmeTokenizer"])
def test_a_tokenizer_of_its_own_is_refused(folder: Path, target: Any) -> None:
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": target})
    with pytest.raises(InputError, match="AutoTokenizer is AcmeTokenizer"):
        load_model(str(folder))
    assert nothing_ran(folder)


@pytest.mark.parametrize("named", ["Qwen2ForSequenceClassification", "Qwen2Model", "AcmeForCausalLM"])
def test_a_checkpoint_of_another_class_is_refused(folder: Path, named: str) -> None:
    change(folder / "config.json", architectures=[named])
    with pytest.raises(InputError, match=f"is a {named}, and would be loaded as Qwen2ForCausalLM"):
        load_model(str(folder))


def test_an_adapter_is_not_left_out_in_silence(folder: Path) -> None:
    change(folder / "adapter_config.json", base_model_name_or_path="acme/base", peft_type="LORA")
    with pytest.raises(InputError, match=r"adapter .* for acme/base, which would be left out; merge it"):
        load_model(str(folder))


def test_a_view_holds_data_alone_and_goes_when_it_is_done_with(folder: Path) -> None:
    with inert_view(folder) as view:
        names = {path.name for path in view.iterdir()}
        assert not any(name.endswith((".py", ".bin")) for name in names)
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
        assert all(path.is_file() for path in view.iterdir())
    assert not view.exists()
    assert (folder / "model.safetensors").is_file()


def test_keys_that_name_code_are_dropped_at_any_depth() -> None:
    value = {"a": [{"auto_map": 1, "b": 2}], "text_config": {"_attn_implementation": "x/y", "hidden_size": 8}}
    assert without_code(value) == {"a": [{"b": 2}], "text_config": {"hidden_size": 8}}


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "model.bin"])
def test_an_index_names_safetensors_in_its_own_folder_only(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    change(folder / "model.safetensors.index.json", weight_map={"lm_head.weight": name})
    with pytest.raises(InputError, match="no safetensors file in its folder"):
        weight_files(folder)


def test_whatever_lies_in_a_folder_is_left_there(folder: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {folder.parent / 'ran'}",)

    mark = (folder / "modeling_acme.py").read_text()
    for name in ("__init__.py", "sitecustomize.py", "torch.py", "transformers.py", "conftest.py", "setup.py"):
        (folder / name).write_text(mark)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.pkl"):
        (folder / name).write_bytes(pickle.dumps(Runs()))
    for name, auto in (("processor_config.json", "AutoProcessor"), ("preprocessor_config.json", "AutoImageProcessor")):
        change(folder / name, processor_class="Acme", auto_map={auto: "modeling_acme.Acme"})
    change(folder / "config.json", attn_implementation="kernels-community/flash-attn", _attn_implementation="a/b")
    change(folder / "generation_config.json", custom_generate="generate", trust_remote_code=True)
    loaded = load_model(str(folder))
    assert loaded.own_classes == ()
    assert nothing_ran(folder)


ATTACKS = {
    "globals": "{{ cycler.__init__.__globals__.os.system('touch RAN') }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "file": "{% include '/etc/passwd' %}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "module": "{% import 'os' as os %}{{ os.system('touch RAN') }}",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_chat_template_reaches_nothing(folder: Path, name: str) -> None:
    (folder / "chat_template.jinja").write_text(ATTACKS[name].replace("RAN", str(folder.parent / "ran")))
    (told,) = check_chat_template(load_model(str(folder)).tokenizer)
    assert told.code == "chat-template-raises"
    assert nothing_ran(folder)
