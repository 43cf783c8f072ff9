"""A device profile from what MNN's llm_bench printed on another device."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from qplan.errors import InputError
from qplan.jobs.phone_times import import_profile
from qplan.run.folder import RunFolder
from qplan.run.profile import DeviceProfile
from tests.support.bench_tables import HEAD, line
from tests.support.bench_tables import table as bench_table
from tests.support.command import qplan
from tests.support.invented_table import make_table

SPEEDS = {"int8": (100, 20), "int4": (160, 40), "int6": (80, 25), "fp16": (125, 10)}
"""Tokens per second of prefill and decode."""


def printed(*left_out: str) -> str:
    """Of the invented table's formats, under memory normal, as that table is."""
    rows = [
        line(name, test, f"{speed:.2f} ± 0.10").replace("| Low |", "| Low | Normal |")
        for name, speeds in SPEEDS.items()
        if name not in left_out
        for test, speed in zip(("pp128", "tg32"), speeds, strict=True)
    ]
    return bench_table(HEAD.replace("| precision |", "| precision | memory |"), *rows)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """An analysis of the invented model."""
    found = RunFolder(tmp_path / "qplan-runs" / "tiny")
    found.folder.mkdir(parents=True)
    make_table().write(found.sensitivity)
    return found


def test_whole_models_take_what_the_table_says(run: RunFolder, tmp_path: Path) -> None:
    source = tmp_path / "pixel.md"
    source.write_text(f"CPU Group: [ 0 1 ]\n{printed()}", encoding="utf-8")
    import_profile(run, source, "arm-dot")
    found = DeviceProfile.read(run.device)
    assert (found.machine, found.target, found.memory, found.threads) == ("pixel", "arm-dot", "normal", 4)
    assert (found.base, found.prompt_tokens) == ("int8", 128)
    table = make_table()
    card = table.model
    for name in SPEEDS:
        # ARM unpacks 6 bits to 8, and a tied head cannot have them
        prefill, decode = SPEEDS["int8" if name == "int6" else name]
        menus = {spec.name: {fmt.name: fmt for fmt in table.formats_of(spec.name)} for spec in card.tensors}
        formats = {tensor: menu.get(name, menu["int8"]) for tensor, menu in menus.items()}
        assert found.predict(card, formats) == pytest.approx((1e3 * 128 / prefill, 1e3 / decode))
    # a tensor takes its share by weights
    up, q = (next(spec for spec in card.tensors if spec.kind == kind) for kind in ("up_proj", "q_proj"))
    int4 = next(f for f in table.formats_of(up.name) if f.name == "int4")
    ratio = found.decode_ms(up, int4) / found.decode_ms(q, int4)
    assert ratio == pytest.approx(up.weights / q.weights)
    assert math.isclose(up.weights / q.weights, 1.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (printed("int4", "fp16"), "no row of fp16, int4, and the run has these formats; .* It has int8, int6"),
        (printed("int8"), "no row of int8"),
        (printed().replace("Normal", "Low"), "memory low, and the run is for memory normal; analyze with --memory low"),
        (printed().replace("CPU", "METAL"), "back end METAL: plans are for MNN's CPU back end"),
        ("", "no table of llm_bench"),
    ],
)
def test_a_table_that_says_too_little(run: RunFolder, tmp_path: Path, text: str, message: str) -> None:
    source = tmp_path / "pixel.md"
    source.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"--from .*pixel.md: {message}"):
        import_profile(run, source, "arm-dot")
    assert not run.device.exists()


def test_files_that_hold_no_text(run: RunFolder, tmp_path: Path) -> None:
    source = tmp_path / "pixel.md"
    with pytest.raises(InputError, match=r"pixel\.md"):
        import_profile(run, source, "arm-dot")
    source.write_bytes(printed().encode("latin-1"))
    with pytest.raises(InputError, match=r"not UTF-8 at byte .*; save it as UTF-8"):
        import_profile(run, source, "arm-dot")


def test_the_command(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "pixel.md").write_text(printed(), encoding="utf-8")
    done = qplan("profile", "--from", "pixel.md", "--target", "arm-dot", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pixel, MNN not told by llm_bench, threads 4, memory normal" in done.stdout
    asked = qplan("profile", "--from", "pixel.md", "--json", folder=tmp_path)
    assert json.loads(asked.stdout)["target"] == "phone"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--models", "new", "--from", "pixel.md"), "--models and --from: build models first"),
        (("--target", "arm-dot"), "--target arm-dot: this machine's processor is measured as it is"),
        (("--from", "pixel.md", "--target", "arm"), "arm"),
        (("--models", "new", "--threads", "4"), "--models: nothing is measured here; give --threads"),
        (("--from", "pixel.md", "--rounds", "9"), "--from: nothing is measured here"),
    ],
)
def test_options_that_say_nothing_together(
    run: RunFolder, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    done = qplan("profile", *options, folder=tmp_path)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
