"""On a Ray cluster of two nodes on this machine: the same bytes as here, whatever dies."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from qplan.errors import InputError, MeasurementError, ToolError
from qplan.folding.analyzed import load_analyzed
from qplan.formats import FP16, INT4, INT8, QuantFormat
from qplan.jobs.analyze import run_analyze
from qplan.jobs.emit import run_emit
from qplan.jobs.options import AnalyzeOptions, EmitOptions
from qplan.model.load import LoadedModel
from qplan.rounding.moment_tasks import gather_by
from qplan.rounding.moments import Moments, gather_moments
from qplan.rounding.round_all import round_all
from qplan.rounding.rounder import Rounder
from qplan.rounding.run_rounder import run_rounder
from qplan.rounding.stored_cache import StoredCache
from qplan.run.calibration import CalibrationSet
from qplan.run.folder import RunFolder
from qplan.run.moments import write_matrix
from qplan.run.table import SensitivityTable
from qplan.sensitivity.analysis import Analysis, open_analysis
from qplan.sensitivity.measured import measure
from qplan.settings import Progress, Say
from qplan.spread import cluster as clusters
from qplan.spread.cluster import Cluster, connected
from qplan.spread.nodes import workers_at
from qplan.spread.work import Task, Workers
from tests.support.local_cluster import local_cluster
from tests.support.tiny_models import words

pytestmark = pytest.mark.slow

INPUTS = {"model": "a"}
MENU = (FP16, INT4, QuantFormat(3, 32))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with local_cluster() as started:
        yield started


@pytest.fixture(scope="module")
def workers(
    nodes: Any, qwen2: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Cluster, list[str]]]:
    told: list[str] = []
    run = RunFolder(tmp_path_factory.mktemp("run"))
    with workers_at(nodes.address, run, qwen2.folder, told.append) as found:
        assert found is not None
        assert not list(run.folder.iterdir())
        yield found, told


@pytest.fixture(scope="module")
def gathered(qwen2: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Moments:
    tokens = torch.randint(3, 300, (16, 32), generator=torch.Generator().manual_seed(0))
    return gather_moments(qwen2, tokens, tmp_path_factory.mktemp("moments"), inputs=INPUTS)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_node_was_found_fit(workers: tuple[Cluster, list[str]]) -> None:
    assert workers[1] == ["Ray: 2 nodes with 2 processors"]


def test_moments_are_the_same_bytes(
    qwen2: LoadedModel, gathered: Moments, workers: tuple[Cluster, list[str]], tmp_path: Path
) -> None:
    tokens = torch.randint(3, 300, (16, 32), generator=torch.Generator().manual_seed(0))
    seen: list[tuple[int, int]] = []
    found = gather_by(workers[0], qwen2, tokens, tmp_path, inputs=INPUTS, progress=lambda *done: seen.append(done))
    assert files(tmp_path) == files(gathered.folder)
    assert (found.key_of, found.tokens) == (gathered.key_of, gathered.tokens)
    assert seen == [(done, 4) for done in range(1, 5)]


def test_rounded_tensors_are_the_same_bytes(
    qwen2: LoadedModel, gathered: Moments, workers: tuple[Cluster, list[str]], tmp_path: Path
) -> None:
    menu = {spec.name: MENU for spec in qwen2.card.tensors}
    for folder, hands in (("near", None), ("far", workers[0])):
        seen: list[tuple[int, int]] = []
        rounder = Rounder(qwen2, "auto", gathered, gathered, StoredCache(tmp_path / folder, INPUTS), hands)
        round_all(rounder, menu, progress=lambda *done, seen=seen: seen.append(done))
        assert seen[-1] == (2 * len(menu), 2 * len(menu))
    assert len(files(tmp_path / "far")) == 2 * len(menu)
    assert files(tmp_path / "near") == files(tmp_path / "far")


def test_what_a_task_refuses_arrives_with_its_tensor(
    qwen2: LoadedModel, gathered: Moments, workers: tuple[Cluster, list[str]], tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.down_proj"
    write_matrix(tmp_path, name, torch.zeros(128, 128).numpy())
    empty = Moments(tmp_path, {name: name}, {name: 512})
    rounder = Rounder(qwen2, "gptq", empty, cache=StoredCache(tmp_path / "tensors", INPUTS), workers=workers[0])
    with pytest.raises(MeasurementError, match=f"^{name}: inputs with a mean square of 0.0"):
        round_all(rounder, {name: (INT4,)})


@dataclass(frozen=True)
class Marks:
    """Work that leaves a file for every attempt; a task whose item says so ends its worker, once or always."""

    folder: Path
    memory_bytes: int = 0
    threads: int = 1

    def open(self) -> Callable[[tuple[int, str]], int]:
        def run(item: tuple[int, str]) -> int:
            number, dies = item
            attempt = len(list(self.folder.glob(f"{number}-*")))
            (self.folder / f"{number}-{attempt}").touch()
            if dies == "always" or (dies == "once" and not attempt):
                os._exit(1)
            return number * number

        return run


def test_a_killed_worker_costs_its_task_alone(workers: tuple[Cluster, list[str]], tmp_path: Path) -> None:
    tasks = [Task((number, "once" if number == 2 else ""), str(number)) for number in range(5)]
    found = dict(workers[0].run(Marks(tmp_path), tasks))
    assert found == {number: number * number for number in range(5)}
    assert sorted(files(tmp_path)) == ["0-0", "1-0", "2-0", "2-1", "3-0", "4-0"]


def test_a_task_that_always_kills_its_worker_is_named(
    workers: tuple[Cluster, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "RETRIES", 0)
    with pytest.raises(ToolError, match=r"down_proj: its worker on the Ray cluster at .* died 1 times"):
        list(workers[0].run(Marks(tmp_path), [Task((1, "always"), "down_proj")]))


def test_work_that_fits_in_no_worker_is_refused_before_it_starts(
    workers: tuple[Cluster, list[str]], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"needs 1000000\.5 GB in every worker, and the largest node .* offers"):
        list(workers[0].run(Marks(tmp_path, memory_bytes=10**15), [Task((1, ""), "one")]))
    assert not files(tmp_path)


def rows_of(analysis: Analysis) -> tuple[dict[Any, Any], dict[int, Any]]:
    return dict(analysis.kept.measurements), dict(analysis.kept.references)


def test_an_address_that_nobody_listens_at_is_refused_with_the_remedy() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        refused = pytest.raises(
            InputError, match=r"no connection to a Ray cluster: .*[^.]\. Start one with 'ray start --head'"
        )
        with refused, connected(f"127.0.0.1:{port}"):
            pass


def test_without_ray_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'qplan\[ray\]'"), connected("auto"):
        pass


def rounding_alone(
    options: EmitOptions, run: RunFolder, say: Say, progress: Progress, _command: str, *, workers: Workers | None
) -> None:
    """What the cluster does of an emit."""
    table = SensitivityTable.read(run.sensitivity)
    loaded = load_analyzed(run, table.model, say, most_bytes=0).loaded
    rounder = run_rounder(run, loaded, CalibrationSet.read(run.calibration), "auto", workers=workers)
    round_all(rounder, {spec.name: (INT4,) for spec in loaded.card.tensors}, progress=progress)


def test_a_quick_analysis_and_what_emit_rounds_are_the_same(
    qwen2: LoadedModel, workers: tuple[Cluster, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the cluster was not started, and run folders are named from
    (tmp_path / "text.txt").write_text(words(2000, seed=1))
    options = AnalyzeOptions(
        model=str(qwen2.folder),
        calib=str(tmp_path / "text.txt"),
        samples=4,
        seq_len=32,
        effort="quick",
        fit_tokens=512,
        formats=(INT8, INT4),
        ray="auto",
    )
    tables, journals, tensors = [], [], []
    monkeypatch.setattr("qplan.jobs.emit._emit", rounding_alone)
    for hands in (None, workers[0]):
        for job in ("analyze", "emit"):
            monkeypatch.setattr(f"qplan.jobs.{job}.workers_at", lambda *_, hands=hands: nullcontext(hands))
        run = RunFolder(Path(f"run-{hands is None}"))
        tables.append(run_analyze(options, run, lambda _line: None, lambda _done, _total: None))
        journals.append(sorted(run.journal.read_bytes().splitlines()))
        seen: list[tuple[int, int]] = []
        run_emit(EmitOptions(ray="auto"), run, lambda _line: None, lambda *done, seen=seen: seen.append(done), "")
        assert seen[-1] == (len(qwen2.card.tensors), len(qwen2.card.tensors))
        (folder,) = run.rounding.glob("tensors-*")
        tensors.append(files(folder))
    assert tables[0].measurements == tables[1].measurements
    assert tables[0].sha256 == tables[1].sha256
    assert journals[0] == journals[1]
    assert tensors[0] == tensors[1]
    assert len(tensors[0]) == len(qwen2.card.tensors)


def test_losses_are_the_same_though_a_node_dies_among_them(  # noqa: PLR0917 - fixtures
    nodes: Any,
    qwen2: LoadedModel,
    gathered: Moments,
    calibration: CalibrationSet,
    workers: tuple[Cluster, list[str]],
    tmp_path: Path,
) -> None:
    rounder = Rounder(qwen2, "auto", gathered, gathered, StoredCache(tmp_path / "tensors", INPUTS))
    (lost,) = nodes.worker_nodes
    tables, rows = [], []
    for hands in (None, workers[0]):
        journal = tmp_path / f"{hands is None}.journal"
        seen: list[int] = []

        def note(done: int, total: int, seen: list[int] = seen, hands: object = hands) -> None:
            if hands is not None and done and not any(seen):
                nodes.remove_node(lost, allow_graceful=False)
            seen.append(done)

        with open_analysis(
            qwen2, calibration, [FP16, INT8, INT4], "low", batch_size=3, rounder=rounder, journal=journal
        ) as analysis:
            measure(analysis, workers=hands, progress=note)
            rows.append(rows_of(analysis))
            tables.append(analysis.table("measured", analysis.all_rows("measured")))
        assert seen[-1] == len(tables[-1].measurements)
        assert len(set(seen)) > 4
    assert rows[0] == rows[1]
    assert tables[0].measurements == tables[1].measurements
    assert tables[0].sha256 == tables[1].sha256
    assert sorted((tmp_path / "True.journal").read_bytes().splitlines()) == sorted(
        (tmp_path / "False.journal").read_bytes().splitlines()
    )
