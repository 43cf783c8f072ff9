"""``qplan compat measure``: one architecture through the command, and the first cells of one engine."""

from __future__ import annotations

import json
import sys
import sysconfig
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import pytest

from qplan.compat.engines import BUILDS, _builds, _on_engines, measure_engines
from qplan.compat.table import PACKAGED, CompatTable
from qplan.mnn.engine.venv import EngineVenv
from qplan.mnn.engines import EngineVersion
from qplan.model.load import load_model
from qplan.model.specimen import save_specimen
from tests.support.command import succeed

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> EngineVenv:
    """An environment with the installed engine, as pip would have made it: this one by another name."""
    venv = EngineVenv.of(EngineVersion.installed(), tmp_path_factory.mktemp("engines"))
    packages = Path(sysconfig.get_path("purelib"))
    place = venv.folder / "lib" / packages.parent.name
    place.mkdir(parents=True)
    (place / "site-packages").symlink_to(packages)
    venv.python.parent.mkdir()
    venv.python.symlink_to(sys.executable)
    base = Path(sys.base_prefix) / "bin"
    (venv.folder / "pyvenv.cfg").write_text(f"home = {base}\ninclude-system-site-packages = false\n")
    (venv.folder / "qplan-installed").touch()
    return venv


def test_one_architecture_is_measured_and_the_rest_of_the_table_stays(tmp_path: Path) -> None:
    printed = succeed("compat", "measure", "--architectures", "--only", "llama", "--json", folder=tmp_path)
    found = CompatTable.read(tmp_path / "qplan-compat.json")
    cells = [cell for cell in found.architectures if cell.architecture == "llama"]
    here = [cell for cell in cells if cell.engine == version("MNN") and cell.exporter.startswith("llmexport ")]
    assert [(cell.tokens, cell.outcome) for cell in here] == [(48, "ok"), (200, "ok")]
    assert all(cell.error is not None and cell.error < 1e-3 for cell in here)
    assert json.loads(printed)["file"] == "qplan-compat.json"
    before = CompatTable.read(PACKAGED)
    assert found.cells == before.cells
    others = [cell for cell in found.architectures if cell.architecture != "llama"]
    assert others == [cell for cell in before.architectures if cell.architecture != "llama"]


def test_an_engine_is_measured_in_an_environment_of_its_own(home: EngineVenv) -> None:
    said: list[str] = []
    normal, low = islice(measure_engines(home.folder.parent, said.append, (home.version,)), 2)
    assert (normal.model, normal.options, normal.converter) == ("qwen2", "--quant_bit 16", str(home.version))
    assert [(cell.memory, cell.outcome, cell.engine) for cell in (normal, low)] == [
        ("normal", "ok", str(home.version)),
        ("low", "ok", str(home.version)),
    ]
    assert not any("making" in line for line in said)


def test_a_build_is_measured_too(home: EngineVenv, tmp_path: Path) -> None:
    loaded = load_model(str(save_specimen("qwen2", tmp_path / "qwen2")))
    made = next(_builds(tmp_path, "qwen2", loaded, lambda _: None))
    assert (made.exporter, made.options) == ("qplan", BUILDS[0].options)
    assert {cell.outcome for cell in _on_engines(made, [home], lambda _: None)} == {"ok"}
