"""Which settings of a config `analyze` accepts, limits and refuses, held against the table that was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qplan.compat.settings import check_settings, setting_rows
from qplan.compat.table import PACKAGED, CompatTable
from qplan.errors import InputError
from qplan.model.model_settings import CONFIG_KEYS, ModelSetting
from qplan.model.registry import ARCHITECTURES
from qplan.model.setting_specimens import setting_specimens

TABLE = CompatTable.read(PACKAGED)
EXPORTER = "llmexport 0.0.5"
ROWS = {(row.model_type, row.setting): row for row in setting_rows(TABLE) if row.within.exporter == EXPORTER}


def test_every_setting_of_every_supported_architecture_is_measured() -> None:
    asked = {(model_type, setting) for model_type, setting, _ in setting_specimens()}
    assert set(ROWS) == asked
    assert {model_type for model_type, _ in asked} == set(ARCHITECTURES)
    assert {setting for _, setting in asked} == set(CONFIG_KEYS)


def test_what_was_measured_of_the_exporter_that_ships() -> None:
    verdicts = {key: row.verdict for key, row in ROWS.items() if key[0] != "hunyuan_v1_dense"}
    windows = {verdict for (_, setting), verdict in verdicts.items() if setting == "sliding window"}
    assert windows == {"right up to the boundary"}
    expected = {"linear": "wrong", "llama3": "wrong", "yarn": "right"}
    expected |= dict.fromkeys(("dynamic", "longrope"), "right up to the boundary")
    for kind, verdict in expected.items():
        assert {found for (_, setting), found in verdicts.items() if setting == f"rope {kind}"} == {verdict}
    assert verdicts["gemma2", "attn_logit_softcapping"] == "wrong"
    assert verdicts["gemma2", "final_logit_softcapping"] == "right"
    assert verdicts["phi", "qk_layernorm"] == "wrong"
    assert verdicts["ernie4_5", "use_bias"] == "right"


def test_a_window_is_refused_within_the_context_and_told_beyond_it() -> None:
    window = ModelSetting("sliding window", "sliding_window", "4096", 4096)
    with pytest.raises(InputError, match=r"sliding_window 4096: .*beyond 4096 tokens of its 32768.*--max-context 4096"):
        check_settings(TABLE, "mistral", [window], 32768, EXPORTER)
    (told,) = check_settings(TABLE, "mistral", [window], 4096, EXPORTER)
    assert told.code == "setting-beyond-context"


def test_of_two_limits_the_smaller_is_the_remedy() -> None:
    settings = [
        ModelSetting("sliding window", "sliding_window", "2047", 2047),
        ModelSetting("rope longrope", "rope_parameters.rope_type", "longrope", 4096),
    ]
    with pytest.raises(InputError, match="--max-context 2047,"):
        check_settings(TABLE, "phi3", settings, 131072, EXPORTER)


@pytest.mark.parametrize(
    ("model_type", "setting"),
    [
        ("llama", ModelSetting("rope llama3", "rope_parameters.rope_type", "llama3 (factor 8)", 8192)),
        ("llama", ModelSetting("rope linear", "rope_parameters.rope_type", "linear (factor 4)")),
        ("phi", ModelSetting("qk_layernorm", "qk_layernorm", "true")),
        ("gemma2", ModelSetting("attn_logit_softcapping", "attn_logit_softcapping", "50")),
    ],
)
def test_what_is_wrong_at_every_length_is_refused_with_its_measured_error(
    model_type: str, setting: ModelSetting
) -> None:
    with pytest.raises(InputError) as refused:
        check_settings(TABLE, model_type, [setting], 64, EXPORTER)
    error = ROWS[model_type, setting.name].within.error
    for word in (setting.key, setting.value, EXPORTER, f"{error:.0e} at 48 tokens", "--llmexport"):
        assert word in str(refused.value)


def test_what_cannot_be_exported_is_refused_as_that() -> None:
    parallel = ModelSetting("use_parallel_residual", "use_parallel_residual", "true")
    with pytest.raises(InputError, match=r"use_parallel_residual true: llmexport 0\.0\.5 fails with it, TypeError"):
        check_settings(TABLE, "stablelm", [parallel], 64, EXPORTER)


def test_an_exporter_that_is_right_is_named() -> None:
    right = "MNN checkout 0123456789ab"
    cells = [
        replace(cell, exporter=right, outcome="ok", error=1e-6)
        for cell in TABLE.architectures
        if cell.architecture == "llama-rope-linear"
    ]
    table = replace(TABLE, architectures=(*TABLE.architectures, *cells))
    linear = ModelSetting("rope linear", "rope_parameters.rope_type", "linear (factor 4)")
    with pytest.raises(InputError, match=f"--llmexport with {right}, which is right about it"):
        check_settings(table, "llama", [linear], 64, EXPORTER)
    assert check_settings(table, "llama", [linear], 64, right) == ()


def test_an_architecture_that_is_wrong_by_itself_is_refused_for_that_exporter_alone() -> None:
    with pytest.raises(InputError, match=r"hunyuan_v1_dense: llmexport 0\.0\.5 translates it wrongly"):
        check_settings(TABLE, "hunyuan_v1_dense", [], 64, EXPORTER)
    assert check_settings(TABLE, "hunyuan_v1_dense", [], 64, "MNN checkout 37600dd35231") == ()


def test_what_nobody_measured_is_told() -> None:
    linear = ModelSetting("rope linear", "rope_parameters.rope_type", "linear (factor 4)")
    (told,) = check_settings(TABLE, "llama", [linear], 64, "llmexport 9.9.9")
    assert told.code == "setting-unmeasured"
