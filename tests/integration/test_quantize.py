"""One command from a Hugging Face folder to an MNN folder that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

import qplan as package
from qplan.errors import InputError
from qplan.run.folder import RunFolder
from tests.support.command import qplan, succeed
from tests.support.documented import DOCS, assert_documented, keys
from tests.support.tiny_models import words

PAGE = DOCS / "reference" / "json.md"


def test_from_a_model_to_a_folder_that_runs(untied_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(words(4000))
    line = ("quantize", str(untied_model_dir), "--budget", "int8", "--calib", "text.txt", "--effort", "quick")
    done = qplan(*line, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = done.document
    known = (keys(PAGE, f"qplan {name}") for name in ("emit", "quantize"))
    assert_documented(found, {key: kind for one in (keys(PAGE, "Every command"), *known) for key, kind in one.items()})
    out = f"{untied_model_dir.name}-int8-MNN"
    assert (found["out"], found["effort"], found["verified"]) == (out, "quick", True)
    assert RunFolder(tmp_path / "qplan-runs" / untied_model_dir.name).is_finished
    assert "nothing found" in succeed("check", out, folder=tmp_path)
    assert succeed("run", out, "the quick", "--max-tokens", "3", folder=tmp_path)
    measured = qplan(
        *("bench", out, "--reference", str(untied_model_dir), "--text", "text.txt", "--tokens", "256", "--json"),
        folder=tmp_path,
    )
    assert 0 < measured.document["agreement"]["kl_nats"] < 1e-2
    # again, into another folder: what is known is kept, and people get a table of a few lines
    shown = succeed(*line[:2], "other", *line[2:], folder=tmp_path)
    for told in ("uniform int8", "RAM after loading", "KL to FP32", "model:  other", "next:   qplan run other Hello"):
        assert told in shown
    assert len(shown.splitlines()) < 20
    assert (tmp_path / "other" / "llm.mnn").is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    refused = qplan(*line[:2], "mine", *line[2:], folder=tmp_path)
    assert refused.returncode == 2
    assert "holds something else" in refused.stderr
    _from_python(untied_model_dir, tmp_path)


def _from_python(model: Path, folder: Path) -> None:
    """The same by a call, which goes on from the same run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(InputError, match="holds something else"):
            package.quantize(model, "mine", "int8", calib="text.txt", effort="quick")
        made = package.quantize(model, "called", "int8", calib="text.txt", effort="quick", quiet=True)
        assert (made.out / "llm.mnn").is_file()
        assert made.report.is_file()
        assert made.plan.measured is not None
        assert made.losses["plan"] == made.plan.measured.kl_nats
        assert set(made.losses) >= {"plan", "int8", "int4"}
        assert set(made.verification["budget"]) == {"int8"}
        for shown in (repr(made), made._repr_html_(), made._repr_markdown_()):
            assert "KL to FP32" in shown
            assert "called" in shown
        with made.engine() as engine:
            assert engine.vocabulary == made.run.model.vocabulary
