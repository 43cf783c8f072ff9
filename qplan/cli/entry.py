"""Where the program begins: an interrupt while it is still being imported is told like any later one."""

from __future__ import annotations

import os
import sys

SPINS = "1000"
"""Turns for which a thread of torch that has nothing to do keeps its processor, of libgomp's 300,000.

Where other programs keep one thread off its processor, all others turn until they have used up their share as well: two
threads that shared two processors with busy programs did 10 small products a second, with so few turns 340, and one
thread 530. On a machine that does nothing else, small products take 0.99 and large ones 1.01 times as long.
"""


def share_processors() -> None:
    """Have torch's threads sleep soon where they wait, unless the user said how; before torch is loaded."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def main() -> None:
    """Import the command line and run it."""
    share_processors()
    try:
        from qplan.cli.main import main as run  # noqa: PLC0415 - what takes long, and so is interrupted
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted; nothing was begun\n")
        sys.exit(130)
    run()
