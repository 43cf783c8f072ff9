"""Small values at the edge of MNN: runtime settings, exporters, draft folders."""

import json
import os
from pathlib import Path

import pytest

from qplan.artifact import new_folder
from qplan.cost.kv_cache import KvMode
from qplan.errors import InputError
from qplan.mnn.build.exporter_source import Exporter, ExportOptions, find_exporter
from qplan.mnn.build.writer import set_runtime
from qplan.mnn.runtime import RuntimeConfig


def exporter(*, scale: bool = False, config: bool = True) -> Exporter:
    return Exporter(
        Path("/x/llmexport.py"),
        "llmexport 9",
        (4, 8),
        scale,
        config,
        has_c4_option=False,
        symmetry_is_global=True,
        has_embed_bit=True,
    )


def test_runtime_settings() -> None:
    assert RuntimeConfig().to_json()["memory"] == "low"
    assert RuntimeConfig(threads=3, dynamic_option=2).to_json()["thread_num"] == 3
    for wrong in ({"memory": "tiny"}, {"precision": "double"}, {"dynamic_option": 7}, {"threads": 0}):
        with pytest.raises(InputError):
            RuntimeConfig(**wrong)


def test_a_folder_runs_with_its_own_settings_on_the_processors_that_there_are() -> None:
    assert RuntimeConfig.of_settings({}, 1) == RuntimeConfig()
    given = {"memory": "high", "precision": "normal", "dynamic_option": 2, "thread_num": 1, "backend_type": "opencl"}
    assert RuntimeConfig.of_settings(given) == RuntimeConfig("high", "normal", 1, 2)
    assert RuntimeConfig.of_settings({"thread_num": 1000}).threads == min(1000, os.cpu_count() or 1)
    assert RuntimeConfig.of_settings({"thread_num": "many"}).threads == 1
    with pytest.raises(InputError, match="'tiny'"):
        RuntimeConfig.of_settings({"memory": "tiny"})


def test_a_kv_cache_is_left_to_the_folder_unless_it_is_named() -> None:
    assert not {"attention_mode", "attn_scale", "kvcache_mmap"} & set(RuntimeConfig().to_json())
    assert RuntimeConfig(kv=KvMode.FLOAT).to_json()["attention_mode"] == 8
    assert "attn_scale" not in RuntimeConfig(kv=KvMode.KV8).to_json()
    assert RuntimeConfig(kv=KvMode.TQ4).to_json()["attn_scale"] == 1.0


def test_a_folder_forgets_the_cache_that_it_had(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"llm_model": "llm.mnn"}')
    set_runtime(tmp_path, RuntimeConfig(kv=KvMode.TQ3))
    assert json.loads((tmp_path / "config.json").read_text())["attention_mode"] == 12
    set_runtime(tmp_path, RuntimeConfig(kv=KvMode.K8))
    settings = json.loads((tmp_path / "config.json").read_text())
    assert (settings["attention_mode"], settings["llm_model"]) == (9, "llm.mnn")
    assert "attn_scale" not in settings
    set_runtime(tmp_path, RuntimeConfig())
    assert "attention_mode" not in json.loads((tmp_path / "config.json").read_text())


def test_turbo_takes_the_usual_scale_out_of_the_way(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "llm_config.json").write_text(json.dumps({"attn_scale": 32**-0.5, "hidden_size": 64}))
    set_runtime(tmp_path, RuntimeConfig(kv=KvMode.K8))
    assert "attn_scale" in json.loads((tmp_path / "llm_config.json").read_text())
    set_runtime(tmp_path, RuntimeConfig(kv=KvMode.TQ4))
    assert json.loads((tmp_path / "llm_config.json").read_text()) == {"hidden_size": 64}
    (tmp_path / "llm_config.json").write_text(json.dumps({"attn_scale": 0.07}))
    with pytest.raises(InputError, match=r"scales attention by 0\.07"):
        set_runtime(tmp_path, RuntimeConfig(kv=KvMode.TQ4))


def test_installed_exporter_is_read_from_its_source() -> None:
    found = find_exporter()
    assert found.version == "llmexport 0.0.5"
    assert found.packable_bits == (1, 2, 4, 8)
    assert (found.has_scale_bit, found.has_quant_config, found.symmetry_is_global) == (False, True, True)


def test_checkout_is_found_at_all_three_places(tmp_path: Path) -> None:
    export = tmp_path / "transformers" / "llm" / "export"
    (export / "utils").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no llmexport\.py in"):
        find_exporter(tmp_path)
    (export / "llmexport.py").write_text("'--scale_bit' '--quant_config'")
    with pytest.raises(InputError, match="whole MNN checkout"):
        find_exporter(tmp_path)
    (export / "utils" / "mnn_converter.py").write_text("assert(quant_bit in (1, 2, 3, 4, 8))")
    found = {find_exporter(path) for path in (tmp_path, export, export / "llmexport.py")}
    assert [(e.packable_bits, e.has_scale_bit, e.symmetry_is_global) for e in found] == [((1, 2, 3, 4, 8), True, False)]
    assert next(iter(found)).version.startswith("MNN checkout ")


def test_export_options() -> None:
    words = ExportOptions(4, 32, 8, 0, symmetric=True, scale_bits=16, quant_config=Path("c.json")).arguments(
        exporter(scale=True), Path("m"), Path("o")
    )
    assert " ".join(words) == (
        "--path m --dst_path o --export mnn --quant_bit 4 --quant_block 32 --lm_quant_bit 8 --lm_quant_block 0 "
        "--sym --scale_bit 16 --quant_config c.json"
    )
    assert ExportOptions(others=("--hqq",)).arguments(exporter(), Path("m"), Path("o"))[-1] == "--hqq"
    assert "--scale_bit" not in ExportOptions(scale_bits=32).arguments(exporter(), Path("m"), Path("o"))
    with pytest.raises(InputError, match="has no --scale_bit"):
        ExportOptions(scale_bits=16).arguments(exporter(), Path("m"), Path("o"))
    with pytest.raises(InputError, match="has no --quant_config"):
        ExportOptions(quant_config=Path("c")).arguments(exporter(config=False), Path("m"), Path("o"))


def test_a_failed_draft_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out") as draft:
        (draft / "half").touch()
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as draft:  # an empty folder is as good as none
        (draft / "whole").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole"]
