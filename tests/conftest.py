"""Settings of all tests, and the marks that tell `make check` what to leave out.

No time limits (the machine is shared), the same examples every time. What starts MNN's engine, exporter or converter
is marked ``engine`` by where it stands, what starts Chromium ``browser`` by the fixture that it asks for; a test
without the mark that starts one of MNN's child processes fails and says so.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("qplan", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("qplan")
# small tensors: more threads only get in each other's way
torch.set_num_threads(1)

# nohup and a shell's background jobs have them ignored, which the commands that tests interrupt would inherit
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

TESTS = Path(__file__).parent
NATIVE = frozenset(path.name for path in (TESTS.parent / "qplan" / "mnn").rglob("*_child.py"))
"""The scripts that load MNN, each in a process of its own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs an engine or a browser."""
    for item in items:
        if TESTS / "integration" in item.path.parents:
            item.add_marker("engine")
        if isinstance(item, pytest.Function) and "browser" in item.fixturenames:
            item.add_marker("browser")


class Guard:
    """Refuses MNN's child processes while a test runs that is not marked for them."""

    def __init__(self) -> None:
        """Allow everything until a test begins; an audit hook cannot be taken away again."""
        self.allowed = True
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[object, ...]) -> None:
        """Called by Python before everything that it audits."""
        if event == "subprocess.Popen" and not self.allowed:
            command = str(arguments[1])
            if any(script in command for script in NATIVE):
                msg = f"a test without the mark 'engine' starts {command}: move it to tests/integration"
                raise AssertionError(msg)


GUARD = Guard()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test start MNN only if it is marked."""
    GUARD.allowed = item.get_closest_marker("engine") is not None
    try:
        return (yield)
    finally:
        GUARD.allowed = True
