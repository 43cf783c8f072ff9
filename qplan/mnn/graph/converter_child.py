"""Run in a child process: MNN's converter. Arguments: ``to-json`` or ``to-mnn``, input, output."""

import importlib
import sys

import _tools


def main() -> None:
    """Convert between ``llm.mnn`` and its JSON; with ``to-mnn``, let the engine read the result.

    Calls ``_tools`` directly: the wrapper ``MNN.tools.mnnconvert`` installs packages and sends a machine id.
    """
    direction, source, target = sys.argv[1:]
    if direction == "to-json":
        _tools.mnnconvert(["mnnconvert", "-f", "MNN", "--modelFile", source, "--JsonFile", target])
        return
    _tools.mnnconvert(["mnnconvert", "-f", "JSON", "--modelFile", source, "--MNNModel", target])
    # raises on a graph that the engine cannot read; the converter prints "Success" whatever happened
    importlib.import_module("MNN.nn").load_module_from_file(target, [], []).get_info()


if __name__ == "__main__":
    main()
