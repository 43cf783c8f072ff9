"""Whatever happens to the files of a run, reading them ends in their content or in an error of qplan."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from qplan.artifact import SEAL, header, sha256_json
from qplan.errors import DamagedArtifactError, QplanError, StaleArtifactError
from qplan.formats import INT4
from qplan.run.baselines import KIND as BASELINE
from qplan.run.baselines import measured_once
from qplan.run.calibration import CalibrationSet
from qplan.run.damage import DamagedCacheWarning
from qplan.run.fold import FoldRecord
from qplan.run.folder import RunFolder
from qplan.run.frontier import Sweep, find_frontier
from qplan.run.journal import Journal
from qplan.run.moments import StoredMoments, write_matrix
from qplan.run.plan import Plan
from qplan.run.plan_folder import PlanFolder
from qplan.run.profile import DeviceProfile
from qplan.run.provenance import Provenance
from qplan.run.rounded import RoundedArrays, RoundedTensors, find_rounded
from qplan.run.skeleton_record import SkeletonRecord
from qplan.run.table import SensitivityTable
from qplan.run.times import Times, TimesJournal
from qplan.run.token_losses import TokenLosses
from qplan.run.verification import Verification
from tests.support.golden import GOLDEN
from tests.support.invented_table import make_table

TENSOR = "model.layers.0.self_attn.q_proj"
MATRIX = f"rounding/fit-50881829e828/{TENSOR}.safetensors"
ROUNDED = f"rounding/tensors-e7d85bc8b98c/{TENSOR}.int4.safetensors"

_DIGITS = [b"%d" % digit for digit in range(10)]

TRIES = 24
"""Mutations of each file."""


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _sweep() -> Sweep:
    inputs = _json(GOLDEN / "frontier" / "frontier.json")["inputs"]
    return Sweep(inputs["sensitivity"], inputs["rules"])


def _open_moments(run: RunFolder) -> object:
    folder = (run.folder / MATRIX).parent
    found = StoredMoments.open(folder, _json(GOLDEN / "rounding" / folder.name / "index.json")["inputs"])
    return None if found is None else found.read(TENSOR)


def _open_journal(run: RunFolder) -> object:
    fingerprint = json.loads((GOLDEN / run.journal.name).read_text().splitlines()[0])["fingerprint"]
    with Journal(run.journal, fingerprint) as journal:
        return dict(journal.measurements)


def _open_baseline(run: RunFolder) -> object:
    path = run.baselines / "int8.json"
    inputs = _json(GOLDEN / "baselines" / "int8.json")["inputs"]
    inputs.pop("formats")
    return measured_once(path, inputs, {}, lambda: Verification.read(GOLDEN / "int8" / "verification.json").models[0])


READERS: dict[str, Callable[[RunFolder], object]] = {
    "sensitivity.parquet": lambda run: SensitivityTable.read(run.sensitivity).sha256,
    "calibration.json": lambda run: CalibrationSet.read(run.calibration).sha256,
    "fold.json": lambda run: FoldRecord.read(run.fold).note,
    "device.json": lambda run: DeviceProfile.read(run.device),
    "skeleton.json": lambda run: SkeletonRecord.kept(run.folder / "skeleton.json"),
    "int8/plan.json": lambda run: Plan.read(PlanFolder(run.folder / "int8").plan),
    "int8/verification.json": lambda run: Verification.read(run.folder / "int8" / "verification.json").passed,
    "int8/token-losses.json": lambda run: TokenLosses.read(run.folder / "int8" / "token-losses.json"),
    "int8/report.json": lambda run: Provenance.read(PlanFolder(run.folder / "int8")),
    "frontier/frontier.json": lambda run: find_frontier([run.frontier], _sweep()),
    "baselines/int8.json": _open_baseline,
    "sensitivity.journal.jsonl": _open_journal,
    MATRIX: _open_moments,
    "rounding/fit-50881829e828/index.json": _open_moments,
    ROUNDED: lambda run: find_rounded(run, FoldRecord.read(run.fold).folded_sha256 or "", "auto", TENSOR, INT4),
}
"""Every artifact of the golden run, and what reads it."""


def mutations(data: bytes, random_: random.Random) -> Iterator[bytes]:
    """Damaged copies: bits, cuts, zeros, digits, and of JSON also keys and types."""
    for _ in range(TRIES):
        at, kind = random_.randrange(len(data)), random_.randrange(6)
        changed = bytearray(data)
        if kind == 0:
            changed[at] ^= 1 << random_.randrange(8)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            changed[at : at + 40] = bytes(len(changed[at : at + 40]))
        elif kind == 3:
            digits = [i for i in range(at, min(at + 200, len(data))) if data[i : i + 1] in _DIGITS]
            for i in digits[:1]:
                changed[i] = ord(str((int(chr(data[i])) + 1) % 10))
        elif (value := _object(data)) is not None:
            _disturb(value, random_, drop=kind == 4)
            changed = bytearray(json.dumps(value).encode())
        else:
            changed[at : at + 8] = random_.randbytes(8)
        yield bytes(changed)


def _object(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _disturb(value: Any, random_: random.Random, *, drop: bool) -> None:
    """Drop a key somewhere in a JSON value, or give one a value of another type."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = random_.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and random_.random() < 0.8:
            value = value[key]
            continue
        if drop:
            del value[key]
        else:
            value[key] = random_.choice([None, True, -1, 1e300, "x", [], {}, [[1]], {"a": None}])
        return


def refusal(read: Callable[[], object]) -> str | None:
    """What qplan says about a file; None if it reads it. Anything but an error of qplan fails the test."""
    try:
        read()
    except QplanError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_of_any_version_ends_in_no_traceback(tmp_path: Path, name: str) -> None:
    shutil.copytree(GOLDEN, tmp_path / "run")
    run, path = RunFolder(tmp_path / "run"), tmp_path / "run" / name
    whole, random_ = path.read_bytes(), random.Random(name)
    assert READERS[name](run) is not None
    for changed in mutations(whole, random_):
        path.write_bytes(changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DamagedCacheWarning)
            problem = refusal(lambda: READERS[name](run))
        assert problem is None or str(run.folder) in problem


SEALED = ("calibration.json", "fold.json", "device.json", "int8/verification.json", "int8/token-losses.json")


@pytest.mark.parametrize("name", SEALED)
def test_a_damaged_result_is_refused_with_the_command_that_makes_it_again(tmp_path: Path, name: str) -> None:
    shutil.copytree(GOLDEN, tmp_path / "run")
    run, path = RunFolder(tmp_path / "run"), tmp_path / "run" / name
    value = _json(path)
    path.write_text(json.dumps(value | {SEAL: sha256_json(value)}))
    whole, random_, refused = path.read_bytes(), random.Random(name), 0
    READERS[name](run)
    for changed in mutations(whole, random_):
        path.write_bytes(changed)
        problem = refusal(lambda: READERS[name](run))
        if problem is None:
            assert {k: v for k, v in _json(path).items() if k in value} == value
        else:
            assert "qplan" in problem
            refused += 1
    assert refused >= TRIES - 4


def test_no_changed_table_is_read(tmp_path: Path) -> None:
    path, random_ = tmp_path / "sensitivity.parquet", random.Random(0)
    table = make_table()
    table.write(path)
    whole = path.read_bytes()
    for changed in mutations(whole, random_):
        path.write_bytes(changed)
        found_sha256: list[str] = []
        if refusal(lambda: found_sha256.append(SensitivityTable.read(path).sha256)) is None:  # noqa: B023 - called here
            assert found_sha256 == [table.sha256]
    # what no checksum of a page shows: a table that was written anew
    path.write_bytes(whole)
    found = pq.read_table(path)
    meta = json.loads(found.schema.metadata[b"qplan"])
    meta["reference_nll_nats"] += 1.0
    pq.write_table(found.replace_schema_metadata({"qplan": json.dumps(meta)}), path)
    with pytest.raises(DamagedArtifactError, match=r"does not match its sha256.*'qplan analyze'"):
        SensitivityTable.read(path)


def test_damaged_lines_of_a_journal_are_told_and_left_out(tmp_path: Path) -> None:
    path, fingerprint = tmp_path / "journal.jsonl", {"model": "m"}
    measured = make_table().measurements[:20]
    with Journal(path, fingerprint) as journal:
        for measurement in measured:
            journal.add(measurement)
    lines = path.read_bytes().splitlines(keepends=True)
    digit = next(i for i, byte in enumerate(lines[5]) if chr(byte) in "123")
    lines[5] = lines[5][:digit] + b"4" + lines[5][digit + 1 :]
    lines[9] = bytes(len(lines[9]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.warns(DamagedCacheWarning, match="2 of 20 lines were damaged"), Journal(path, fingerprint) as journal:
        assert list(journal.measurements.values()) == [m for i, m in enumerate(measured, 1) if i not in (5, 9)]
    with Journal(path, fingerprint) as journal:  # told once
        assert len(journal.measurements) == 18
    whole = path.read_bytes()
    path.write_bytes(b"\0" * 10 + whole[10:])
    with pytest.warns(DamagedCacheWarning, match="header"), Journal(path, fingerprint) as journal:
        assert len(journal.measurements) == 18
    assert path.read_bytes() == whole
    path.write_bytes(b"\0" * 10 + whole[10:])
    with pytest.raises(StaleArtifactError, match="--restart"):
        Journal(path, {"model": "other"})


def test_zeroed_integers_and_moments_are_told_and_made_again(tmp_path: Path) -> None:
    kept, inputs = RoundedTensors(tmp_path / "r", {"model": "a"}), {"model": "a", "tokens": "b"}
    arrays = RoundedArrays(np.full((8, 64), 3, np.uint8), np.ones((8, 1), np.float32), np.zeros((8, 1), np.float32))
    kept.write("t", INT4, arrays)
    moments = StoredMoments(tmp_path / "m", {"t": "t"}, {"t": 5})
    write_matrix(moments.folder, "t", np.eye(64, dtype=np.float32))
    moments.write_index(inputs)
    assert kept.read("t", INT4) is not None
    assert StoredMoments.open(moments.folder, inputs) == moments
    assert moments.are_whole(["t"])
    for path in (kept.path("t", INT4), moments.folder / "t.safetensors"):
        data = path.read_bytes()
        path.write_bytes(data[:-80] + bytes([7] * 40) + data[-40:])
    with pytest.warns(DamagedCacheWarning, match="does not match its sha256"):
        assert kept.read("t", INT4, slice(0, 2)) is None
    with pytest.warns(DamagedCacheWarning, match="does not match its sha256"):
        assert not moments.are_whole(["t"])
    assert moments.are_whole(["of another menu"])
    with pytest.raises(DamagedArtifactError, match="does not match its sha256"):
        moments.read("t")


def test_a_damaged_export_is_told_and_made_again(tmp_path: Path) -> None:
    folder, path = tmp_path / "skeleton", tmp_path / "skeleton.json"
    folder.mkdir()
    for name in ("llm.mnn", "tokenizer.mtok"):
        (folder / name).write_bytes(bytes(range(200)))
    record = SkeletonRecord.of(folder, "model", "llmexport 0.0.5")
    record.write(path)
    assert SkeletonRecord.kept(path) == record
    for damage in (bytes(range(199)) + b"x", None):
        (folder / "tokenizer.mtok").unlink() if damage is None else (folder / "tokenizer.mtok").write_bytes(damage)
        with pytest.warns(DamagedCacheWarning, match=r"tokenizer\.mtok.*it is made again"):
            assert SkeletonRecord.kept(path) is None


def test_a_damaged_baseline_is_measured_again(tmp_path: Path) -> None:
    model = Verification.read(GOLDEN / "int8" / "verification.json").models[0]
    path, asked = tmp_path / "int8.json", []

    def measure() -> Any:
        asked.append(1)
        return model

    assert measured_once(path, {}, {}, measure) == measured_once(path, {}, {}, measure) == model
    assert len(asked) == 1
    assert BASELINE in path.read_text()
    path.write_text(path.read_text().replace('"kl_nats": ', '"kl_nats": 1', 1))
    with pytest.warns(DamagedCacheWarning, match="it is made again"):
        assert measured_once(path, {}, {}, measure) == model
    assert len(asked) == 2


def test_damaged_times_are_taken_again(tmp_path: Path) -> None:
    TimesJournal.open(tmp_path, {"model": "m"}).add("base", Times(1.0, 2.0))
    assert TimesJournal.open(tmp_path, {"model": "m"}).times == {"base": [Times(1.0, 2.0)]}
    path = tmp_path / "times.json"
    path.write_text(path.read_text().replace("2.0", "3.0"))
    with pytest.warns(DamagedCacheWarning):
        assert not TimesJournal.open(tmp_path, {"model": "m"}).times


def test_every_header_but_a_plans_is_sealed() -> None:
    assert SEAL not in header("qplan-plan", 3, {})
