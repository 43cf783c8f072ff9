"""``qplan check`` on the fault corpus, and on good models."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from qplan.formats import QuantFormat
from qplan.mnn.checksums import read_checksums
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.engines import EngineVersion
from qplan.mnn.files import CHECKSUMS_FILE
from qplan.mnn.preflight import check_folder
from qplan.mnn.runtime import RuntimeConfig
from tests.support.command import qplan
from tests.support.fault_corpus import FAULTS, Fault
from tests.support.mnn_models import ExportedModel


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_is_named(fault: Fault, corpus: dict[str, Path]) -> None:
    engine = None if fault.engine is None else EngineVersion.parse(fault.engine)
    found = check_folder(corpus[fault.name], engine).findings
    assert (fault.code, fault.severity) in {(finding.code, finding.severity) for finding in found}
    assert all(finding.what and finding.where and finding.effect and finding.remedy for finding in found)


def test_good_models_have_no_findings(good: dict[str, Path], tied_model: ExportedModel) -> None:
    folders = [*good.values(), tied_model.skeleton.folder]
    assert {folder.name: check_folder(folder).findings for folder in folders} == {f.name: () for f in folders}


def test_the_corpus_is_large_enough() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names)) >= 40


@pytest.mark.parametrize("bits", ["fp16", "int4-b32", "int2", "int3-sym", "int6-s32", "int5-b0"])
def test_every_format_that_qplan_writes_is_clean(untied_model: ExportedModel, bits: str, tmp_path: Path) -> None:
    out = tmp_path / bits
    untied_model.build(untied_model.tensors(untied_model.formats(QuantFormat.parse(bits))), out)
    assert check_folder(out, full=True).findings == ()


def test_the_command_prints_and_exits(corpus: dict[str, Path], good: dict[str, Path], tmp_path: Path) -> None:
    clean = qplan("check", str(good["tied"]), folder=tmp_path)
    assert (clean.returncode, clean.stderr) == (0, "")
    assert "nothing found" in clean.stdout
    broken = qplan("check", str(corpus["tie-bits"]), "--json", folder=tmp_path)
    assert broken.returncode == 8
    body = json.loads(broken.stdout)
    assert (body["ok"], body["findings"][0]["code"]) == (False, "tie-bits")
    assert "tie-bits" in broken.stderr
    old = qplan("check", str(good["tied"]), "--engine", "3.5.0", folder=tmp_path)
    assert old.returncode == 8
    assert all(code in old.stdout for code in ("c4-fusion", "half-scales", "tie-form", "qplan emit --engine 3.5.0"))
    assert qplan("check", str(tmp_path / "nothing"), folder=tmp_path).returncode == 2


def test_the_engine_ignores_checksums_and_settings_may_change(
    good: dict[str, Path], token_ids: list[int], tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(good["tied"], folder)
    assert set(read_checksums(folder).files) == {"llm.mnn", "llm.mnn.weight", "llm_config.json", "tokenizer.mtok"}
    with EngineSession(folder, RuntimeConfig()) as engine:
        with_them = engine.logits(token_ids)
    settings = json.loads((folder / "config.json").read_text()) | {"thread_num": 2}
    (folder / "config.json").write_text(json.dumps(settings))
    assert check_folder(folder).findings == ()
    (folder / CHECKSUMS_FILE).unlink()
    assert check_folder(folder).findings == ()
    with EngineSession(folder, RuntimeConfig()) as engine:
        assert np.array_equal(engine.logits(token_ids), with_them)


def test_a_check_is_fast(good: dict[str, Path]) -> None:
    started = time.perf_counter()
    check_folder(good["tied"])
    assert time.perf_counter() - started < 0.5


def test_damaged_files_never_break_the_check(good: dict[str, Path], tmp_path: Path) -> None:
    draw, folder = random.Random(1), tmp_path / "m"
    shutil.copytree(good["tied"], folder)
    found = 0
    for _ in range(120):
        name = draw.choice(["llm.mnn", "llm.mnn", "tokenizer.mtok", "config.json", "llm_config.json"])
        data = bytearray((good["tied"] / name).read_bytes())
        for _ in range(draw.choice([1, 3, 20])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(data[: draw.randrange(len(data))] if draw.random() < 0.1 else data)
        found += bool(check_folder(folder).findings)
        shutil.copyfile(good["tied"] / name, folder / name)
    assert found > 60
