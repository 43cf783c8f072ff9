"""Run in a child process: llmexport, from its own folder. Arguments: path of llmexport.py, then its arguments."""

import sys
from pathlib import Path


def main() -> None:
    """Run llmexport as a main program.

    Not with runpy: llmexport empties ``sys.argv``, and runpy raises IndexError when it restores it.
    """
    script = Path(sys.argv[1])
    # MNN's converter wrapper imports a telemetry logger that pip-installs packages into the user's environment
    sys.modules["MNN.tools.utils.log"] = None  # type: ignore[assignment]
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), *sys.argv[2:]]
    code = compile(script.read_bytes(), str(script), "exec")
    exec(code, {"__name__": "__main__", "__file__": str(script)})  # noqa: S102 - the user's own exporter


if __name__ == "__main__":
    main()
