"""The KV cache that is chosen, against trying all of them."""

from __future__ import annotations

import pytest

from qplan.choosing.cache import CacheMenu, choose_cache
from qplan.choosing.request import PlanRequest
from qplan.cost.kv_cache import KvMode, KvShape, kv_target
from qplan.errors import InfeasibleError, InputError
from qplan.planner.size import Size
from qplan.run.kv_cache import KvLoss

MENU = CacheMenu(KvShape(30, 3, 64), kv_target("cpu-x86", "low"), "cpu-x86", 2048)
LOSSES = {"k8": 3e-4, "kv8": 2e-3, "ktq4": 3e-2, "tq4": 4e-2, "ktq3": 0.12, "tq3": 0.14}


def loss(mode: KvMode) -> KvLoss:
    return KvLoss(prefill_nats=LOSSES[mode], decode_nats=LOSSES[mode] / 2, prompt_tokens=960, decode_tokens=64)


def weights(request: PlanRequest) -> float:
    """A loss of weights that falls as they get more room: 60 MB at least, and no more than 140 MB are of use."""
    if request.cache is None or request.max_ram is None:
        msg = "no cache to plan beside"
        raise AssertionError(msg)
    room = (request.max_ram.bytes - request.cache.bytes) / 1e6
    if room < 60:
        msg = f"no plan satisfies RAM <= {room:.0f} MB"
        raise InfeasibleError(msg)
    return float(2.0 ** -(min(room, 140) / 10))


@pytest.mark.parametrize("megabytes", [71, 75, 80, 90, 105, 130, 160, 200, 240])
def test_the_least_loss_of_all_pairs_is_chosen(megabytes: int) -> None:
    wanted, tried = PlanRequest(max_ram=Size.parse(f"{megabytes}MB", "--max-ram"), context=2048), []

    def measure(mode: KvMode) -> KvLoss:
        tried.append(mode)
        return loss(mode)

    chosen = choose_cache(MENU, wanted, weights, measure, lambda _: None)
    totals = {}
    for mode in MENU.modes:
        room = megabytes - MENU.cache(mode).bytes / 1e6
        if room >= 60:
            totals[mode] = 2.0 ** -(min(room, 140) / 10) + (0.0 if mode == "float" else loss(mode).nats)
    assert totals[chosen.mode] == min(totals.values())
    assert len(tried) == len(set(tried)) <= len(totals)
    assert chosen.nats == (0.0 if chosen.mode is KvMode.FLOAT else LOSSES[chosen.mode])


def test_floats_are_measured_against_nothing_where_they_cost_nothing() -> None:
    def never(mode: KvMode) -> KvLoss:
        raise AssertionError(mode)

    roomy = PlanRequest(max_ram=Size.parse("240MB", "--max-ram"), context=2048)
    assert choose_cache(MENU, roomy, weights, never, lambda _: None).mode is KvMode.FLOAT
    assert choose_cache(MENU, PlanRequest(context=2048), weights, never, lambda _: None).mode is KvMode.FLOAT


def test_a_named_mode_is_taken_and_measured() -> None:
    wanted = PlanRequest(context=2048, kv=KvMode.KV8)
    chosen = choose_cache(MENU, wanted, weights, loss, lambda _: None)
    assert (chosen.mode, chosen.nats) == (KvMode.KV8, LOSSES["kv8"])
    assert choose_cache(MENU, wanted, weights, None, lambda _: None).loss is None


def test_what_cannot_be_decided_or_does_not_fit_is_refused() -> None:
    tight = PlanRequest(max_ram=Size.parse("100MB", "--max-ram"), context=2048)
    with pytest.raises(InputError, match="name a mode with --kv, or build"):
        choose_cache(MENU, tight, weights, None, lambda _: None)
    tiny = PlanRequest(max_ram=Size.parse("20MB", "--max-ram"), context=2048)
    with pytest.raises(InfeasibleError, match="no plan satisfies RAM"):
        choose_cache(MENU, tiny, weights, loss, lambda _: None)
    with pytest.raises(InputError, match="--kv tq4: heads of 80"):
        CacheMenu(KvShape(2, 2, 80), kv_target("cpu-x86", "low"), "cpu-x86", 64).check(KvMode.TQ4)
