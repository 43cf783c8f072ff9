"""A name that a folder can have, and that means something to a terminal, to Markdown, to HTML and to matplotlib."""

from __future__ import annotations

from dataclasses import replace

from qplan.notes import note, text_note
from qplan.run.verification import Check
from tests.support.invented_run import Run, make_run, plan_of, sensitivity, verification_of

NAME = "[bold]a|b<img src=x onerror=1>`$x_$\n&lt;:bug:\x1b[31m\u202e"

FLAT = " ".join(NAME.split())
"""The name where lines may not break."""


def named_run(name: str = NAME) -> Run:
    """A run in which everything that people name has one name: model, text, tensor, budget, versions in notes."""
    run = make_run(2)
    specs = [
        replace(spec, name=f"model.layers.0.{name}", kind=name) if place == 0 else spec
        for place, spec in enumerate(run.table.model.tensors)
    ]
    table = sensitivity(tuple(specs), run.table.conditions.formats)
    table = replace(
        table,
        model=replace(table.model, source=f"models/{name}"),
        notes=(text_note(name), note("wide-scales", engine=name)),
        conditions=replace(table.conditions, calibration=name),
    )
    plan = replace(plan_of(table), budget=name, notes=(text_note(name),))
    verification = verification_of(plan)
    check = Check(text_note(name), passed=True, found=text_note(name))
    return Run(table, plan, replace(verification, text=text_note(name), checks=(*verification.checks, check)))
