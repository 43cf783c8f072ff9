"""Losses of whole plans on held-out tokens: the peers' and qplan's, stored and computed alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from qplan.cost.file_bytes import FixedBytes, file_bytes
from qplan.formats import QuantFormat
from qplan.sensitivity.joint import joint_losses
from qplan.sensitivity.rounding import Rounder
from qplan.sensitivity.table import Memory, Mode
from reports.peers.plans import Case, Menu, distinct, key_of, own_plan
from reports.peers.tables import Shelf

MEMORIES: tuple[Memory, ...] = ("low", "normal")


@dataclass(frozen=True)
class Verdict:
    """One plan's loss."""

    scorer: str
    budget: float
    """With `scorer`: the peer's plan whose bytes these are."""
    memory: Memory
    rounding: str
    planner: str
    """``peer`` or the mode that qplan's losses came from."""
    menu: Menu
    total_bytes: int
    kl_nats: float
    """Per held-out token."""
    kl_p99_nats: float


@dataclass(frozen=True)
class Entry:
    """A plan that is to be judged."""

    case: Case
    planner: str
    menu: Menu
    formats: dict[str, QuantFormat]


def entries(
    cases: Iterable[Case], shelf: Shelf, modes: Iterable[Mode], memory: Memory, *, rounder: Rounder, fixed: FixedBytes
) -> list[Entry]:
    """The peers' plans, and beside each qplan's of the same bytes, made for a memory setting and a rounding."""
    menus: tuple[Menu, ...] = ("4/8", "2-16")
    tables = {(mode, menu): shelf.table(mode, menu, memory, rounder) for mode in modes for menu in menus}
    found = []
    for case in cases:
        found.append(Entry(case, "peer", "4/8", case.formats))
        found += [Entry(case, mode, menu, own_plan(table, case, fixed)) for (mode, menu), table in tables.items()]
    return found


def judge(
    entries: list[Entry], tokens: torch.Tensor, memory: Memory, *, rounder: Rounder, fixed: FixedBytes
) -> list[Verdict]:
    """Measure every plan in torch, equal ones once."""
    loaded = rounder.loaded
    plans = distinct(entry.formats for entry in entries)
    print(f"{len(plans)} plans, memory {memory}, rounding {rounder.rounding}")
    losses = joint_losses(loaded, tokens, plans, memory, rounder=rounder, engine_embedding=True)
    return [
        Verdict(
            entry.case.scorer,
            entry.case.budget,
            memory,
            rounder.rounding,
            entry.planner,
            entry.menu,
            file_bytes(loaded.card, entry.formats, fixed).total,
            losses[key_of(entry.formats)].kl_nats,
            losses[key_of(entry.formats)].kl_p99_nats,
        )
        for entry in entries
    ]
