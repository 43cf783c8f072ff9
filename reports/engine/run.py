"""What the engine does with every broken folder, false alarms on good exports, and memory over many restarts.

    python -m reports.engine.run [--restarts 1000] [--architectures llama,qwen2,...] [--only faults|good|restarts]

Writes ``results.json`` beside itself; ``README.md`` says what it means. Takes about 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import qplan
from qplan.artifact import versions
from qplan.errors import QplanError
from qplan.formats import INT8
from qplan.mnn.build.exporter import export, export_skeleton
from qplan.mnn.build.exporter_source import ExportOptions
from qplan.mnn.build.skeleton import Skeleton
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.probe import run_probe
from qplan.mnn.engines import EngineVersion
from qplan.mnn.graph.binary import read_binary_graph
from qplan.mnn.preflight import check_folder
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import load_model
from qplan.model.specimen import save_specimen
from qplan.model.specimen_sizes import SPECIMENS
from qplan.rounding.rounder import Rounder
from reports.engine import page
from tests.support.fault_corpus import FAULTS, make_corpus, write_graph_json

HOME = Path(__file__).parent
IDS = [5, 17, 200, 3, 99, 42, 7, 311]
WRONG_REL = 1e-2
"""Relative error of a broken model's logits against the good one's beyond which they count as garbage."""


def main() -> None:
    """Run the parts that were asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restarts", type=int, default=1000)
    parser.add_argument("--architectures", default=",".join(SPECIMENS))
    parser.add_argument("--only", choices=("faults", "good", "restarts", "speed"))
    arguments = parser.parse_args()
    path = HOME / "results.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results["versions"] = versions()
    with tempfile.TemporaryDirectory(prefix="qplan-report-") as temporary:
        work = Path(temporary)
        good = {name: int8_model(work, specimen) for name, specimen in (("tied", "qwen2"), ("untied", "llama"))}
        if arguments.only in {None, "faults"}:
            results["faults"] = faults(good, work / "faults")
        if arguments.only in {None, "restarts"}:
            results["restarts"] = restarts(good["tied"], arguments.restarts)
        if arguments.only in {None, "speed"}:
            results["speed"] = speed(work)
        if arguments.only in {None, "good"}:
            results["good"] = alarms(arguments.architectures.split(","), work)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page.main()


def int8_model(work: Path, specimen: str) -> Path:
    """A good model of the sizes that the corpus of faults expects: 128 and 172 wide."""
    width = (
        {"hidden_size": 172, "num_key_value_heads": 4, "head_dim": 32} if specimen == "llama" else {"hidden_size": 128}
    )
    source = save_specimen(specimen, work / f"{specimen}-hf", **width)
    loaded = load_model(str(source))
    skeleton: Skeleton = export_skeleton(source, work / f"{specimen}-skeleton")
    out = work / specimen
    formats = {spec.name: INT8.resolve(spec.in_features) for spec in loaded.card.tensors}
    build_model(skeleton, loaded.card.tensors, formats, Rounder(loaded).store, out)
    write_graph_json(out)
    return out


def faults(good: dict[str, Path], out: Path) -> list[dict[str, Any]]:
    """Every broken folder: what the check says, what the engine does, what ``qplan.Engine`` makes of it."""
    made = make_corpus(FAULTS, good, out)
    expected = {name: run_probe(folder, IDS, RuntimeConfig("normal")).logits for name, folder in good.items()}
    found = []
    for fault in FAULTS:
        engine = None if fault.engine is None else EngineVersion.parse(fault.engine)
        findings = check_folder(made[fault.name], engine).findings
        ran = run_probe(made[fault.name], IDS, RuntimeConfig("normal"), timeout_s=60)
        reference = expected[fault.base]
        assert reference is not None
        outcome, error = ran.judged(reference[0], WRONG_REL)
        try:
            with qplan.Engine(made[fault.name], timeout_s=60, check=False) as running:
                survived = "logits" if running.logits(IDS).size else ""
        except QplanError as refusal:
            survived = type(refusal).__name__
        row = {
            "fault": fault.name,
            "code": fault.code,
            "severity": fault.severity,
            "engine": fault.engine or versions()["MNN"],
            "named": fault.code in {finding.code for finding in findings},
            "also": sorted({finding.code for finding in findings} - {fault.code}),
            "native": outcome if fault.engine is None else "not run on that engine",
            "error": error if error is None or np.isfinite(error) else None,
            "detail": ran.detail,
            "unchecked Engine": survived,
        }
        print(row)
        found.append(row)
    return found


def restarts(model: Path, count: int) -> dict[str, Any]:
    """Resident memory and open files of this process and of the engine's over many restarts and reloads."""

    def mine() -> tuple[int, int]:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        return int(status["VmRSS"].split()[0]), len(list(Path("/proc/self/fd").iterdir()))

    trace = []
    with qplan.Engine(model) as engine:
        expected = engine.logits(IDS)
        for step in range(count + 1):
            if step % max(1, count // 10) == 0:
                trace.append({"restarts": step, "rss_kb": mine()[0], "open_files": mine()[1]})
                print(trace[-1])
            engine.restart()
            assert np.array_equal(engine.logits(IDS), expected)
    return {"count": count, "trace": trace}


def speed(work: Path) -> dict[str, Any]:
    """Seconds to check a graph with as many ops as Qwen2.5-7B's, which has 28 layers; the fastest of five."""
    out = work / "deep"
    export(save_specimen("qwen2", work / "deep-hf", num_hidden_layers=28), out, ExportOptions(8, 32))
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        findings = check_folder(out).findings
        seconds.append(time.perf_counter() - started)
    ops = len(read_binary_graph(out / "llm.mnn").nodes)
    found = {"layers": 28, "ops": ops, "graph_bytes": (out / "llm.mnn").stat().st_size, "seconds": min(seconds)}
    print(found, findings)
    return found


def alarms(names: list[str], work: Path) -> list[dict[str, Any]]:
    """Findings on unbroken exports of every architecture that exports."""
    found = []
    for name in names:
        source, out = work / f"{name}-alarm-hf", work / f"{name}-alarm"
        try:
            export(save_specimen(name, source), out, ExportOptions(8, 32))
        except (QplanError, ArithmeticError, ValueError, TypeError, AttributeError) as error:
            row: dict[str, Any] = {
                "architecture": name,
                "exports": False,
                "why": str(error).strip().rpartition("\n")[2][:120],
            }
        else:
            row = {
                "architecture": name,
                "exports": True,
                "findings": [f.code for f in check_folder(out, full=True).findings],
            }
        print(row)
        found.append(row)
    return found


if __name__ == "__main__":
    main()
