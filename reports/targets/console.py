"""What the scripts of this folder tell on the way: their pages go to standard output."""

from __future__ import annotations

import sys


def tell(*words: object) -> None:
    """Print a line of progress, which is no part of the page."""
    print(*words, file=sys.stderr, flush=True)
