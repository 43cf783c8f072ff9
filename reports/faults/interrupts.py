"""Requests of ``qplan.Engine`` that are interrupted, and engines that are dropped, forked, closed or orphaned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reports.faults.bench import ROOT, calm
from reports.faults.processes import left_alive

LIMIT_S = 300

_HEAD = """
import gc, json, os, random, signal, sys, threading, time, warnings
import numpy as np
import qplan
from qplan.errors import QplanError, ToolError
folder, tries = sys.argv[1], int(sys.argv[2])
chance = random.Random(0)
long, short = [chance.randrange(4000) for _ in range(400)], [5, 6, 7]
def say(**values):
    print(json.dumps(values), flush=True)
def open_engine():
    return qplan.Engine(folder, timeout_s=60)
"""

_ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

CASES = {
    "interrupt of a request": """
with open_engine() as engine:
    expected, took = engine.logits(short), []
    for _ in range(3):
        started = time.perf_counter(); engine.logits(long); took.append(time.perf_counter() - started)
    hit = wrong = slow = 0
    for number in range(tries):
        timer = threading.Timer(0.005 + chance.random() * min(took), os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            engine.logits(long)
            timer.join(); time.sleep(0.02)
        except KeyboardInterrupt:
            hit += 1
        started = time.perf_counter()
        wrong += not np.array_equal(engine.logits(short), expected)
        slow = max(slow, time.perf_counter() - started)
    say(tries=tries, hit=hit, wrong=wrong, slowest_s=round(slow, 2))
""",
    "interrupt while text is generated": """
with open_engine() as engine:
    expected = list(engine.generate(short, 12))
    hit = wrong = 0
    for number in range(tries):
        timer = threading.Timer(0.005 + chance.random() * 0.05, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            list(engine.generate(long[:64], 60)); time.sleep(0.1)
        except KeyboardInterrupt:
            hit += 1
        wrong += list(engine.generate(short, 12)) != expected
    say(tries=tries, hit=hit, wrong=wrong)
""",
    "engine dropped without close": """
for number in range(tries):
    engine = open_engine(); engine.logits(short); del engine; gc.collect()
time.sleep(0.5)
children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
say(tries=tries, hit=tries, wrong=len(children))
""",
    "forked while it is open": """
with open_engine() as engine:
    expected, wrong, refused = engine.logits(short), 0, 0
    for number in range(tries):
        child = os.fork()
        if child == 0:
            try:
                engine.logits(short); code = 1
            except ToolError:
                code = 0
            engine.close(); del engine; gc.collect()
            os._exit(code)
        refused += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        wrong += not np.array_equal(engine.logits(short), expected)
    say(tries=tries, hit=refused, wrong=wrong)
""",
    "close() from another thread": """
hit = wrong = 0
for number in range(tries):
    engine = open_engine(); expected = engine.logits(short)
    threading.Timer(chance.random() * 0.02, engine.close).start()
    try:
        while True:
            wrong += not np.array_equal(engine.logits(short), expected)
    except ToolError:
        hit += 1
say(tries=tries, hit=hit, wrong=wrong)
""",
    "the engine's process is killed during a request": """
with open_engine() as engine:
    expected = engine.logits(short); hit = wrong = 0
    for number in range(tries):
        process = engine._open()._running()._process
        threading.Timer(chance.random() * 0.03, process.kill).start()
        try:
            engine.logits(long); time.sleep(0.05)
        except ToolError:
            hit += 1
        wrong += not np.array_equal(engine.logits(short), expected)
    say(tries=tries, hit=hit, wrong=wrong)
""",
}

_ORPHAN = "engine = open_engine(); engine.logits(short); say(ready=1); engine.generate(long, 100); time.sleep(60)"


def interrupts(home: Path, done: Callable[[dict[str, Any]], None], *, quick: bool) -> None:
    """Run every case in a process of its own, with Python's own handler of SIGINT.

    Args:
        home: folder for it all.
        done: called with every row.
        quick: a fifth of the tries.
    """
    model, tries = calm(home)[0]["report"] / "int8" / "model", 5 if quick else 25
    for name, code in CASES.items():
        ran = subprocess.run(
            [sys.executable, "-c", _HEAD + code, str(model), str(tries)],
            env=_ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        row = json.loads(ran.stdout) if ran.returncode == 0 else {"failed": ran.stderr[-400:]}
        done({"part": "interrupts", "case": name} | row | {"alive": left_alive()})
    done(_killed_parents(model, tries))


def _killed_parents(model: Path, tries: int) -> dict[str, Any]:
    """Kill -9 of the process that holds an engine."""
    alive: list[str] = []
    for _ in range(tries):
        parent = subprocess.Popen(
            [sys.executable, "-c", _HEAD + _ORPHAN, str(model), "1"], env=_ENVIRONMENT, stdout=subprocess.PIPE
        )
        if parent.stdout is not None:
            parent.stdout.readline()
        parent.kill()
        parent.wait()
        alive += left_alive()
    return {"part": "interrupts", "case": "the parent is killed (-9)", "tries": tries, "hit": tries, "alive": alive}
