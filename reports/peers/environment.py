"""A virtual environment for every peer, outside the repository and apart from qplan's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from qplan.errors import ToolError

REQUIREMENTS: dict[str, tuple[str, ...]] = {
    # requests: ModelOpt imports it without requiring it
    "modelopt": ("nvidia-modelopt==0.47.0", "requests==2.34.2", "torch==2.13.0", "transformers==5.24.0"),
    "autoround": ("auto-round==0.16.1", "torch==2.13.0", "transformers==5.24.0"),
    "llm-compressor": (
        "llmcompressor==0.14.0.1",
        "compressed-tensors==0.19.0",
        "torch==2.13.0",
        "transformers==5.17.0",
    ),
    "nncf": ("nncf==3.4.0", "torch==2.13.0", "transformers==5.24.0"),
    # the first's library, build 11549, runs, by the declarations of the second, build 11548
    "llama.cpp": (
        "xllamacpp==2026.10.11549",
        "llama-cpp-py-sync==0.11548",
        "gguf==0.19.0",
        "numpy==2.4.6",
    ),
    "mlx": ("mlx[cpu]==0.32.4", "mlx-lm==0.32.2", "transformers==5.24.0"),
    # pulp: its planner needs it, its package alone does not bring it; kernels are compiled when it is first imported
    "quark": ("amd-quark==0.13", "pulp==3.3.2", "torch==2.13.0", "transformers==5.15.0"),
}
"""Packages to install for each peer."""

INSTALL_TIMEOUT_S = 3600


def prepare(peer: str, parent: Path) -> Path:
    """Make or find a peer's environment.

    Args:
        peer: one of `REQUIREMENTS`.
        parent: folder that holds the environments.

    Returns:
        its Python.

    Raises:
        ToolError: it cannot be installed.
    """
    home, wanted = parent / peer, "\n".join(REQUIREMENTS[peer]) + "\n"
    python, stamp = home / "bin" / "python", home / "installed.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing {', '.join(REQUIREMENTS[peer])} into {home}")
    _run([sys.executable, "-m", "venv", str(home)])
    _run([str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS[peer]])
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    if done.returncode:
        msg = "a peer cannot be installed; leave it out of --scorers"
        raise ToolError(
            msg,
            command=" ".join(command),
            code=done.returncode,
            tail="\n".join((done.stdout + done.stderr).splitlines()[-15:]),
        )
