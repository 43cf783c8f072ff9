"""Every Python that starts with this folder on its path writes down what it must not do: sockets, pip, MNN.tools."""

import os
import sys
from typing import Any

_LOG = os.environ.get("QPLAN_WATCH_LOG", "")


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    told = ""
    if event.startswith("socket."):
        told = f"{event} {arguments[1:]!r}"
    elif event == "import" and str(arguments[0]).startswith("MNN.tools"):
        told = f"import {arguments[0]}"
    elif event in {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"} and "pip" in repr(arguments):
        told = f"{event} {arguments!r}"
    if told:
        with open(_LOG, "a", encoding="utf-8") as log:  # noqa: PTH123 - this early, and within a hook
            log.write(f"{sys.argv!r}: {told}\n")


if _LOG:
    sys.addaudithook(_watch)
    with open(_LOG + ".seen", "a", encoding="utf-8") as seen:  # noqa: PTH123
        seen.write(f"{os.getpid()}\n")
