"""Which formats each tensor is measured in, and notes where these differ from the requested ones."""

from __future__ import annotations

from collections.abc import Sequence

from qplan.card import ModelCard
from qplan.errors import InputError
from qplan.formats import FP16, TIED_BITS, QuantFormat
from qplan.notes import Note, few, note
from qplan.settings import DynamicOption
from qplan.tensors import Role

Menu = dict[str, tuple[QuantFormat, ...]]
"""Formats by tensor name, widest first, tensors in order of execution."""


def resolve_menu(
    card: ModelCard, formats: Sequence[QuantFormat], dynamic_option: DynamicOption = 0
) -> tuple[Menu, tuple[Note, ...]]:
    """Resolve the requested formats for every tensor.

    A block that does not divide a tensor's width becomes one scale per row; the halved block that MNN's exporter would
    choose is measured as well. Widths that a tied head cannot have, and blocks that the engine garbles under
    ``dynamic_option`` 2, are left out. Notes describe all of these changes.

    Raises:
        InputError: a tensor is left without any format.
    """
    menu: Menu = {}
    changed: dict[tuple[QuantFormat, tuple[QuantFormat, ...], int], list[str]] = {}
    skipped: dict[str, list[str]] = {}
    garbled: list[str] = []
    for spec in card.tensors:
        usable: list[QuantFormat] = []
        # routers keep fp16 whatever is requested for other tensors
        for fmt in dict.fromkeys((FP16, *formats)) if spec.role is Role.ROUTER else formats:
            resolved = fmt.resolve(spec.in_features)
            if not spec.allows(resolved):
                skipped.setdefault(spec.name, []).append(str(fmt))
                continue
            choices: tuple[QuantFormat, ...]
            choices = (resolved,) if resolved == fmt or spec.tied else (resolved, fmt.halved(spec.in_features))
            if dynamic_option == 2:
                garbled += [choice.name for choice in choices if not choice.allows_block_activations]
                choices = tuple(choice for choice in choices if choice.allows_block_activations)
            if resolved != fmt:
                changed.setdefault((fmt, choices, spec.in_features), []).append(spec.name)
            usable.extend(choice for choice in choices if choice not in usable)
        if not usable:
            msg = (
                f"{spec.name} allows none of the formats {', '.join(map(str, formats))}; "
                f"add one of {', '.join(map(str, TIED_BITS))} bits, e.g. int8"
            )
            raise InputError(msg)
        menu[spec.name] = tuple(usable)
    notes = [_on_blocks(fmt, choices, width, names) for (fmt, choices, width), names in changed.items()]
    notes += [
        note("tied-head-unmeasured", tensor=name, formats=out, bits=list(TIED_BITS)) for name, out in skipped.items()
    ]
    if garbled:
        notes.append(note("garbled-unmeasured", formats=list(dict.fromkeys(garbled))))
    return menu, tuple(notes)


def _on_blocks(fmt: QuantFormat, choices: Sequence[QuantFormat], row_weights: int, names: Sequence[str]) -> Note:
    tensors, others = few(names)
    return note(
        "block-changed",
        format=fmt.name,
        choices=[choice.name for choice in choices],
        tensors=tensors,
        others=others,
        block=fmt.block,
        row_weights=row_weights,
    )
