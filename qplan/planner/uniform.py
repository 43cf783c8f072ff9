"""Uniform exports that keep to the limits of a plan: what people could make with MNN's own tools instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qplan.card import ModelCard
from qplan.cost.file_bytes import FixedBytes, record_bytes
from qplan.cost.target import Target
from qplan.errors import InputError
from qplan.formats import QuantFormat
from qplan.planner.ceiling import Ceiling
from qplan.planner.limits import ResourceLimit
from qplan.tensors import TensorSpec
from qplan.uniform import UniformExport, every_export


def uniform_loss(formats: Mapping[str, QuantFormat], losses: Mapping[str, Mapping[str, float]]) -> float | None:
    """Sum of the single losses of given formats; None if one was not measured."""
    found = [losses.get(name, {}).get(fmt.name) for name, fmt in formats.items()]
    return None if any(loss is None for loss in found) else sum(loss for loss in found if loss is not None)


def exports_within(
    card: ModelCard,
    fixed: FixedBytes,
    limit_bytes: int,
    limits: Sequence[Ceiling | ResourceLimit],
    *,
    target: Target,
    scale_bits: int = 16,
) -> tuple[UniformExport, ...]:
    """The uniform exports within the limits of a plan that no other one of them contains; widest first.

    Args:
        card: the model.
        fixed: bytes of its files besides the linear records, as it is exported.
        limit_bytes: of all files.
        limits: those on RAM, on times and the like; limits on losses are left out.
        target: where the formats must be legal.
        scale_bits: width of scales and zero points.
    """
    resources = [limit for limit in limits if isinstance(limit, ResourceLimit)]
    groups = _alike(card)
    alike, counts = [specs[0] for specs in groups], [len(specs) for specs in groups]
    found: list[UniformExport] = []
    for export in sorted(every_export(), key=_most_first):
        if any(known.contains(export) for known in found):
            continue
        formats = [export.format(spec, scale_bits) for spec in alike]
        pairs = list(zip(alike, formats, strict=True))
        size = sum(count * record_bytes(spec, fmt) for count, (spec, fmt) in zip(counts, pairs, strict=True))
        if fixed.total + size > limit_bytes or not all(target.legal(spec, fmt) for spec, fmt in pairs):
            continue
        every = export.formats(card, scale_bits) if resources else {}
        try:
            within = all(limit.holds(card, every) for limit in resources)
        except InputError:  # a device profile does not know one of its formats
            continue
        if within:
            found.append(export)
    return tuple(found)


def _alike(card: ModelCard) -> list[list[TensorSpec]]:
    """Tensors of one shape and use: there may be thousands of experts."""
    found: dict[tuple[object, ...], list[TensorSpec]] = {}
    for spec in card.planned:
        key = spec.out_features, spec.in_features, spec.bias, spec.tied, spec.role
        found.setdefault(key, []).append(spec)
    return list(found.values())


def _most_first(export: UniformExport) -> tuple[int, int, bool, int, int]:
    """Sorts every export behind those that contain it."""
    body, head = export.body, export.head
    return -body.bits, body.block or 1 << 30, body.symmetric, -head.bits, head.block or 1 << 30
