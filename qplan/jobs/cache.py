"""The KV cache of an emit: its modes, measured where they are needed, and the proof of the chosen one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qplan.artifact import versions
from qplan.choosing.cache import CacheMenu
from qplan.choosing.request import PlanRequest
from qplan.cost.kv_cache import KvMode, kv_target
from qplan.errors import InputError, VerificationError
from qplan.mnn.build.writer import set_runtime
from qplan.mnn.engines import EngineVersion
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.attention_shape import kv_shape
from qplan.model.model_settings import model_config
from qplan.model.source import local_folder
from qplan.notes import Note, note
from qplan.planner.rules import Rules
from qplan.run.kv_cache import KvLoss, PlannedCache, loss_once
from qplan.run.plan import Plan
from qplan.run.table import SensitivityTable
from qplan.run.verification import Verification
from qplan.uniform import uniform_formats
from qplan.verify.bench import BuildBench
from qplan.verify.cache import CacheTrial, cache_trial, prove_cache
from qplan.verify.checks import folder_check

_WIDTH = 16
"""Bits of the weights that caches are measured with: nothing else is rounded then."""


def cache_menu(request: PlanRequest, table: SensitivityTable, engine: EngineVersion) -> CacheMenu | None:
    """The caches that a request may get; None without a context.

    Raises:
        InputError: the context is longer than the model's, nobody knows the target's layout of the cache, or the mode
            that was asked for is not right there.
    """
    if request.context is None:
        return None
    menu = menu_of(request.context, request.rules.target.name, request.rules.target.precision, table, engine)
    if request.kv is not None:
        menu.check(request.kv)
    return menu


def menu_of(tokens: int, target: str, precision: str, table: SensitivityTable, engine: EngineVersion) -> CacheMenu:
    """The caches of so many tokens.

    Raises:
        InputError: the context is longer than the model's, or nobody knows the target's layout of the cache.
    """
    if tokens > table.model.context:
        msg = f"--context {tokens} is above the model's {table.model.context:,} tokens; lower it"
        raise InputError(msg)
    found = kv_target(target, precision)
    if engine != EngineVersion.installed():  # measured with the installed one
        found = replace(found, modes=(KvMode.FLOAT,))
    shape = kv_shape(model_config(str(local_folder(table.model.source))))
    return CacheMenu(shape, found, target if engine == EngineVersion.installed() else f"engine {engine}", tokens)


def with_least_cache(request: PlanRequest, menu: CacheMenu | None) -> PlanRequest:
    """The request with the cache that takes least of those that it may get: what must fit at least."""
    if menu is None:
        return request
    return replace(request, cache=menu.smallest if request.kv is None else menu.cache(request.kv))


def with_cache_recounted(plan: Plan, table: SensitivityTable, engine: EngineVersion) -> Plan:
    """A plan that may have been edited by hand, with the bytes of its cache.

    Raises:
        InputError: the mode is not right on the target.
    """
    if plan.kv is None:
        return plan
    menu = menu_of(plan.kv.tokens, plan.target, Rules.of(plan).target.precision, table, engine)
    menu.check(plan.kv.mode)
    return replace(plan, kv=menu.cache(plan.kv.mode, plan.kv.loss))


def cache_notes(cache: PlannedCache) -> tuple[Note, ...]:
    """What a reader must know of it."""
    megabytes = {"megabytes": cache.bytes / 1e6, "float_megabytes": cache.float_bytes / 1e6}
    found = [note("kv-cache", tokens=cache.tokens, mode=cache.mode.value, **megabytes)]
    if cache.mode in (KvMode.K8, KvMode.KV8):
        found.append(note("kv-int8"))
    if cache.mode is KvMode.KV8:
        found.append(note("kv-values-int8"))
    if cache.mode.rotates:
        found.append(note("kv-turbo"))
    return tuple(found)


@dataclass
class CacheBench:
    """Measures caches on the engine, with a model in fp16 that is built when the first is asked for."""

    bench: BuildBench
    rows: NDArray[np.int64]
    """Tokens that built models are judged on, ``[rows, seq_len]``."""
    trial: CacheTrial

    def measure(self, mode: KvMode) -> KvLoss:
        """What a mode loses.

        Raises:
            InputError: the whole model may not be run.
            MeasurementError: logits that are not finite.
            ToolError: the engine failed.
        """
        bench, folder = self.bench, self.bench.baselines / "kv"
        formats = uniform_formats(bench.loaded.card, _WIDTH)
        if bench.layers(formats) is not None:
            msg = f"--max-memory leaves too little to measure a KV cache in {mode}; raise it, or give --kv float"
            raise InputError(msg)
        lengths = f"{len(self.trial.tokens)}, {self.trial.prompt}"
        inputs = {"model": bench.loaded.card.sha256, "text": bench.text_sha256, "engine": versions()["MNN"]}

        def measured() -> KvLoss:
            bench.say(f"FP16 on the engine with a KV cache in {mode}, {len(self.trial.tokens)} tokens")
            if not folder.is_dir():
                bench.build(formats, folder, RuntimeConfig("normal"))
            return self.trial.of(self.trial.run(folder, RuntimeConfig("normal").with_cache(mode))[0])

        return loss_once(bench.baselines / f"kv-{mode}.json", inputs | {"lengths": lengths}, measured)

    def proved(self, plan: Plan, model: Path, runtime: RuntimeConfig, verification: Verification) -> Verification:
        """The verification with the proof of a plan's KV cache; the built folder gets it.

        Args:
            plan: what was built.
            model: the built folder.
            runtime: other settings that it ships with.
            verification: of the plan with a cache of floats.

        Raises:
            MeasurementError: logits that are not finite.
            ToolError: the engine failed.
            VerificationError: `qplan check` refuses the folder with this cache.
        """
        if plan.kv is None:
            return verification
        mode = plan.kv.mode
        self.bench.say(f"plan: KV cache in {mode}, {len(self.trial.tokens)} tokens")
        proof, checks = prove_cache(plan, model, self.trial, kv_shape(self.bench.loaded.config))
        set_runtime(model, runtime.with_cache(mode))
        sound = folder_check(model, self.bench.target.engine)
        if not sound.passed:
            msg = f"{model} got a KV cache in {mode}, and {sound.promise} finds in it: {sound.found}"
            raise VerificationError(msg)
        return replace(verification, checks=(*verification.checks, *checks), kv=proof)


@contextmanager
def cache_bench(bench: BuildBench, rows: NDArray[np.int64], tokens: int | None) -> Iterator[CacheBench | None]:
    """Means to measure caches of ``tokens``; what was built for it is removed again. None without a context."""
    if tokens is None:
        yield None
        return
    with cache_trial(bench.loaded, rows, tokens) as trial:
        try:
            yield CacheBench(bench, rows, trial)
        finally:
            shutil.rmtree(bench.baselines / "kv", ignore_errors=True)


def context_of(request: PlanRequest, given: Plan | None) -> int | None:
    """Tokens that the cache is to hold, as asked for or as a given plan says."""
    if given is not None:
        return None if given.kv is None else given.kv.tokens
    return request.context
