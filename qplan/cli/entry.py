"""Where the program begins: an interrupt while it is still being imported is told like any later one."""

from __future__ import annotations

import sys


def main() -> None:
    """Import the command line and run it."""
    try:
        from qplan.cli.main import main as run  # noqa: PLC0415 - what takes long, and so is interrupted
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted; nothing was begun\n")
        sys.exit(130)
    run()
