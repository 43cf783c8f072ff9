"""The reference says what the program does: every option with its default, every key, every field."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer.main

import qplan.errors
from qplan.artifact import SEAL
from qplan.calibration import Text, tokenize
from qplan.cli.main import app
from qplan.cli.signals import HungUpCommand, InterruptedCommand, TerminatedCommand
from qplan.cost.file_bytes import estimate_fixed
from qplan.formats import FP16, QuantFormat
from qplan.jobs.frontier import run_frontier
from qplan.notes import note
from qplan.planner.budget import Budget
from qplan.planner.planning import make_plan
from qplan.planner.rules import Rules
from qplan.run.additivity import JointPoint
from qplan.run.fold import FoldRecord
from qplan.run.folder import RunFolder
from qplan.run.journal import Journal, ReferenceRecord
from qplan.run.plan import GivenRules, LeastBits, Pin, PlannedLimit, Tuning
from qplan.run.profile import DeviceProfile, OpTime, TimedModel
from qplan.run.speeds import Round
from tests.support.commands import commands
from tests.support.documented import DOCS, assert_documented, keys, rows, sections
from tests.support.invented_run import small_run
from tests.support.invented_table import make_table
from tests.support.tiny_models import VOCABULARY, words

COMMANDS = DOCS / "reference" / "commands.md"
FILES = DOCS / "reference" / "files.md"


def documented_options(heading: str) -> dict[str, tuple[str, str]]:
    """Default and meaning by option."""
    found = {}
    for cells in rows(sections(COMMANDS)[heading]):
        if cells[0].startswith("`--"):
            found[cells[0].strip("`")] = (cells[1].replace("`", ""), cells[2])
    return found


def default_of(parameter: Any) -> str:
    """As the page writes it."""
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if getattr(parameter, "is_flag", False):
        return "off"
    value = parameter.default
    if value is None:
        return ""
    return str(value.value if isinstance(value, Enum) else value)


@pytest.mark.parametrize("name", commands())
def test_every_option_is_documented_with_its_default(name: str) -> None:
    common = {"--quiet", "--json", "--help"}
    parameters = [p for p in commands()[name].params if p.opts[0].startswith("--") and p.opts[0] not in common]
    documented = documented_options(f"qplan {name}")
    assert {option: default for option, (default, _) in documented.items()} == {
        parameter.opts[0]: default_of(parameter) for parameter in parameters
    }
    assert all(meaning for _, meaning in documented.values())


@pytest.mark.parametrize("name", commands())
def test_every_argument_is_documented(name: str) -> None:
    arguments = [p.name.upper() for p in commands()[name].params if not p.opts[0].startswith("--")]
    documented = [cells[0] for cells in rows(sections(COMMANDS)[f"qplan {name}"]) if re.match(r"`[A-Z]+`", cells[0])]
    assert documented == [f"`{argument}`" for argument in arguments]


def test_options_that_all_commands_have() -> None:
    root = {parameter.opts[0] for parameter in typer.main.get_command(app).params}
    assert set(documented_options("Every command")) == root | {"--quiet", "--json", "--help"}
    for command in commands().values():
        assert {"--quiet", "--json"} <= {parameter.opts[0] for parameter in command.params}


def test_exit_codes() -> None:
    table = next(iter(sections(DOCS / "reference" / "exit-codes.md").values()))
    documented = {cells[1].strip("`"): int(cells[0]) for cells in rows(table) if cells[1]}
    errors = [kind for kind in vars(qplan.errors).values() if isinstance(kind, type)]
    expected = {kind.__name__: kind.exit_code for kind in errors if issubclass(kind, qplan.errors.QplanError)}
    for stop in (InterruptedCommand, TerminatedCommand, HungUpCommand):
        expected[stop.__name__] = stop.exit_code
    del expected["QplanError"]
    assert documented == expected


def written(path: Path, heading: str) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    section = sections(FILES)[heading]
    assert f"Kind `{document['kind']}`, schema {document['schema']}" in section
    header = keys(FILES, "The header")
    if heading == "plan.json":  # people edit it
        del header[SEAL]
    assert_documented(document, header | keys(FILES, heading))


def test_plan_json(tmp_path: Path) -> None:
    table = make_table()
    plan = make_plan(table, Budget.parse("int8"), estimate_fixed(table.model), rules=Rules(pins={"lm_head": FP16}))
    given = GivenRules((Pin("lm_head", FP16),), (LeastBits("*.up_proj", 4),), ("*.up_proj",), fused=True)
    limits = (PlannedLimit("RAM", 1.0, 0.5, "MB"),)
    tuning = Tuning("sequential", ships=True, head=False, tokens=4096, before_nats=0.02, after_nats=0.01)
    replace(plan, given=given, limits=limits, notes=(note("budget-above-fp16"),), tuning=tuning).write(
        tmp_path / "plan.json"
    )
    written(tmp_path / "plan.json", "plan.json")


def test_verification_json(tmp_path: Path) -> None:
    verification = small_run().verification
    speeds = [
        replace(model.speed, rounds=(Round(0.1, 0.01),), session="a")
        for model in verification.models
        if model.speed is not None
    ]
    models = tuple(replace(m, speed=s, other_speed=s) for m, s in zip(verification.models, speeds, strict=True))
    replace(verification, models=models).write(tmp_path / "verification.json")
    written(tmp_path / "verification.json", "verification.json")


def test_frontier_json(tmp_path: Path) -> None:
    run, found = RunFolder(tmp_path), small_run()
    found.table.write(run.sensitivity)
    found.plan.write(tmp_path / "int8" / "plan.json")
    found.verification.write(tmp_path / "int8" / "verification.json")
    run_frontier(run, Rules(), 3)
    written(tmp_path / "frontier" / "frontier.json", "frontier.json")


def test_device_json(tmp_path: Path) -> None:
    ops, models = (OpTime(64, 64, "int4", 2, -0.1, 0.01),), (TimedModel("base", 1.0, 0.1),)
    profile = DeviceProfile("a machine", "3.6.1", "cpu-x86", "low", 1, 128, "c" * 64, "int8", 1.0, 0.1, ops, models)
    profile.write(tmp_path / "device.json")
    written(tmp_path / "device.json", "device.json")


def test_calibration_json(tmp_path: Path, qwen2: Any) -> None:
    text = Text((words(300, seed=1),), "words", None)
    found = tokenize(text, qwen2.tokenizer, samples=2, seq_len=16, seed=0, context=128, vocabulary=VOCABULARY)
    found.write(tmp_path / "calibration.json")
    written(tmp_path / "calibration.json", "calibration.json")


def test_fold_json(tmp_path: Path) -> None:
    losses = {name: {"int8, memory low": 1e-4} for name in ("original", "folded")}
    FoldRecord("model", "a" * 64, "b" * 64, "low", losses).write(tmp_path / "fold.json", {"model": "a" * 64})
    written(tmp_path / "fold.json", "fold.json")


def test_quant_config_json() -> None:
    from qplan.mnn.build.quant_config import _entry

    assert_documented(_entry(QuantFormat(4)), keys(FILES, "quant_config.json"))
    assert _entry(FP16) == {"bits": 16}


def test_sensitivity_parquet_and_the_journal(tmp_path: Path) -> None:
    table = replace(
        make_table(), joint=(JointPoint("normal", 1e-3, 1e-3),), notes=(note("wide-scales", engine="3.5.0"),)
    )
    table = replace(table, conditions=replace(table.conditions, drawn=64))
    table.write(tmp_path / "sensitivity.parquet")
    found = pq.read_table(tmp_path / "sensitivity.parquet")
    section = keys(FILES, "sensitivity.parquet")
    metadata = json.loads(found.schema.metadata[b"qplan"])
    assert f"Schema {metadata['schema']}." in sections(FILES)["sensitivity.parquet"]
    columns = set(found.column_names)
    documented = {key: kind for key, kind in section.items() if key not in columns} | {"model": "map, see the card"}
    assert columns <= set(section)
    assert_documented(metadata, keys(FILES, "The header") | documented)
    with Journal(tmp_path / "journal.jsonl", {"model": "m"}) as journal:
        journal.add_reference(ReferenceRecord(0, 3, 1.5))
        journal.add(table.measurements[0])
    head, reference, measurement = map(json.loads, (tmp_path / "journal.jsonl").read_text().splitlines())
    assert set(head) == {"kind", "schema", "fingerprint", SEAL}
    assert_documented(reference, keys(FILES, "sensitivity.journal.jsonl"))
    assert set(measurement) == columns | {SEAL}
