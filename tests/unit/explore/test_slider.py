"""The slider over budgets, with widgets and without."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from qplan.explore import Run


def test_moving_it_solves_and_draws_again(run: Run) -> None:
    slider = run.slider(logits_bits=0)
    box = slider.widget()
    control, words, picture = box.children
    before = bytes(picture.value), words.value
    control.value = slider.budgets[2]
    assert bytes(picture.value) != before[0]
    assert words.value != before[1]
    assert bytes(picture.value).startswith(b"\x89PNG")
    view = slider.plan_at(slider.budgets[2])
    assert view.total_bytes <= slider.budgets[2]
    assert view.plan.logits.min_bits == 0
    sizes = [slider.plan_at(budget).total_bytes for budget in slider.budgets[::8]]
    assert sizes == sorted(sizes)


def test_a_page_gets_a_picture_and_a_front_end_the_widget(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = run.slider()._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert "model_id" in bundle["application/vnd.jupyter.widget-view+json"]
    known = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "ipywidgets":
            raise ModuleNotFoundError(name)
        return known(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    assert set(run.slider()._repr_mimebundle_()) == {"text/plain", "image/png"}
