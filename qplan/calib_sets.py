"""The calibration sets that come with qplan; listing them imports nothing that reads them."""

from __future__ import annotations

from pathlib import Path

MANIFEST = "manifest.json"
"""File in every set's folder that lists its files, their hashes and their license."""


def calib_sets() -> dict[str, Path]:
    """Folders by name, sorted: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    # the package's own win
    found = {path.parent.name: path.parent for root in (package.parent, package) for path in _manifests(root)}
    return dict(sorted(found.items()))


def _manifests(root: Path) -> list[Path]:
    return sorted(root.glob(f"calib/*/{MANIFEST}"))
