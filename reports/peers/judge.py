"""Losses of whole plans on held-out tokens: the peers' and qplan's, stored and computed alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from qplan.cost.file_bytes import FixedBytes, file_bytes
from qplan.formats import QuantFormat
from qplan.rounding.rounder import Rounder
from qplan.sensitivity.joint import joint_losses
from qplan.sensitivity.metrics import TokenStats
from qplan.settings import Memory, Mode
from reports.peers.plans import Case, Menu, distinct, key_of, own_plan
from reports.peers.tables import Shelf

MEMORIES: tuple[Memory, ...] = ("low", "normal")


@dataclass(frozen=True)
class Verdict:
    """One plan's loss."""

    scorer: str
    budget: float
    """Mean bits asked of `scorer` for the peer's plan that has these bytes."""
    memory: Memory
    rounding: str
    planner: str
    """``peer`` or the mode that qplan's losses came from."""
    menu: Menu
    total_bytes: int
    kl_nats: float
    """KL in nats per held-out token."""
    kl_p99_nats: float
    difference_stderr_nats: float
    """Standard error, over tokens, of the KL's difference from the peer's."""


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
    """The peers' plans, each with qplan's of the same bytes, made for a memory setting and a rounding."""
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
    """Measure every plan in torch; equal plans once."""
    loaded = rounder.loaded
    plans = distinct(entry.formats for entry in entries)
    print(f"{len(plans)} plans, memory {memory}, rounding {rounder.rounding}")
    stats = joint_losses(loaded, tokens, plans, memory, rounder=rounder, engine_embedding=True)
    totals = {key: file_bytes(loaded.card, formats, fixed).total for key, formats in plans.items()}
    return verdicts_of(entries, stats, totals, memory, rounder.rounding)


def verdicts_of(
    entries: Iterable[Entry],
    stats: Mapping[str, TokenStats],
    total_bytes: Mapping[str, int],
    memory: Memory,
    rounding: str,
) -> list[Verdict]:
    """Summarize the comparisons of plans; ``stats`` and ``total_bytes`` are by `key_of` their formats."""
    found = []
    for entry in entries:
        key, peer = key_of(entry.formats), stats[key_of(entry.case.formats)]
        ours = stats[key]
        difference = ours.kl - peer.kl
        found.append(
            Verdict(
                entry.case.scorer,
                entry.case.budget,
                memory,
                rounding,
                entry.planner,
                entry.menu,
                total_bytes[key],
                ours.kl_nats,
                ours.kl_p99_nats,
                float(difference.std()) / math.sqrt(len(difference)),
            )
        )
    return found
