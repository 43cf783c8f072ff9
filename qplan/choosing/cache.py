"""Chooses how the KV cache is stored, together with the weights that share the RAM limit with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from qplan.choosing.request import PlanRequest
from qplan.cost.kv_cache import KvMode, KvShape, KvTarget
from qplan.errors import InfeasibleError, InputError
from qplan.run.kv_cache import KvLoss, PlannedCache
from qplan.settings import Say


@dataclass(frozen=True)
class CacheMenu:
    """The caches that a model may have where it is to run."""

    shape: KvShape
    target: KvTarget
    name: str
    """Of the target."""
    tokens: int

    def cache(self, mode: KvMode, loss: KvLoss | None = None) -> PlannedCache:
        """The cache in a mode."""
        found, floats = (self.target.bytes(kind, self.shape, self.tokens).total for kind in (mode, KvMode.FLOAT))
        return PlannedCache(mode=mode, tokens=self.tokens, bytes=found, float_bytes=floats, loss=loss)

    @property
    def modes(self) -> tuple[KvMode, ...]:
        """Modes that are right, floats first."""
        return tuple(mode for mode in KvMode if self.target.legal(mode, self.shape))

    @property
    def smallest(self) -> PlannedCache:
        """The cache that takes least."""
        return min(map(self.cache, self.modes), key=lambda cache: cache.bytes)

    def check(self, mode: KvMode) -> None:
        """Refuse a mode that is not right.

        Raises:
            InputError: it isn't.
        """
        why = self.target.defect(mode, self.shape, self.name)
        if why is not None:
            msg = f"--kv {mode}: {why}"
            raise InputError(msg)


def choose_cache(
    menu: CacheMenu,
    wanted: PlanRequest,
    predicted: Callable[[PlanRequest], float],
    measure: Callable[[KvMode], KvLoss] | None,
    say: Say,
) -> PlannedCache:
    """The cache with which weights and cache together lose least within the RAM limit.

    Without a limit it stays in floats. A mode is measured only if the weights that it leaves room for would lose less
    than the best cache so far with its weights.

    Args:
        menu: the caches that there are.
        wanted: budgets, limits and rules; ``kv`` names a mode, None leaves the choice.
        predicted: the predicted loss of the best plan for a request; raises InfeasibleError.
        measure: measures what a mode loses; None where nothing is built.
        say: called with a line about each mode.

    Raises:
        InputError: losses are needed, and nothing is built.
        InfeasibleError: no plan leaves room for any cache; the message is that of the smallest.
    """
    if wanted.kv is not None:
        loss = None if measure is None or wanted.kv is KvMode.FLOAT else measure(wanted.kv)
        return menu.cache(wanted.kv, loss)
    if wanted.max_ram is None:
        return menu.cache(KvMode.FLOAT)
    best: tuple[float, PlannedCache] | None = None
    refused: InfeasibleError | None = None
    for mode in sorted(menu.modes, key=lambda mode: -menu.cache(mode).bytes):
        cache = menu.cache(mode)
        try:
            nats = predicted(replace(wanted, cache=cache))
        except InfeasibleError as error:
            refused = error
            continue
        if best is not None and nats >= best[0]:
            continue
        if mode is not KvMode.FLOAT:
            if measure is None:
                msg = (
                    f"--max-ram with --context {menu.tokens}: what a KV cache in {mode} loses is measured on the "
                    "engine; name a mode with --kv, or build with 'qplan emit'"
                )
                raise InputError(msg)
            cache = menu.cache(mode, measure(mode))
        total = nats + cache.nats
        say(f"KV cache {mode}: {cache.bytes / 1e6:.1f} MB, {cache.nats:.3e} nats; with its weights {total:.3e}")
        if best is None or total < best[0]:
            best = (total, cache)
    if best is None:
        raise refused or InfeasibleError("no KV cache fits")
    return best[1]
