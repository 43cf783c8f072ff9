"""Run in a child process: llmexport, from its own folder. Arguments: path of llmexport.py, then its arguments."""

import os
import sys
import types
from pathlib import Path
from typing import NoReturn

import _tools


def offer_converter(more: list[str]) -> None:
    """Replace MNN's converter wrapper by the bare converter, with arguments that llmexport has no option for.

    The wrapper, ``MNN.tools.mnnconvert``, imports a telemetry logger that pip-installs packages into the user's
    environment and sends a machine id. llmexport calls its ``main()``, which reads ``sys.argv``.
    """
    tools, wrapper = types.ModuleType("MNN.tools"), types.ModuleType("MNN.tools.mnnconvert")
    vars(wrapper)["main"] = lambda: _tools.mnnconvert([*sys.argv, *more])
    vars(tools)["mnnconvert"] = wrapper
    sys.modules.update({"MNN.tools": tools, "MNN.tools.mnnconvert": wrapper})


def refuse_foreign_code() -> None:
    """Make transformers fail before it runs a model folder's own Python, though llmexport asks it to.

    The folder that it is given holds none; this is for what a later exporter may fetch from elsewhere.
    """
    from transformers import dynamic_module_utils  # noqa: PLC0415 - slow, and for the exporter alone

    def refuse(*what: object, **_options: object) -> NoReturn:
        msg = f"qplan runs no code of a model's folder: {what}"
        raise ValueError(msg)

    vars(dynamic_module_utils)["get_class_in_module"] = refuse


def main() -> None:
    """Run llmexport as a main program.

    Not with runpy: llmexport empties ``sys.argv``, and runpy raises IndexError when it restores it.
    """
    script = Path(sys.argv[1])
    refuse_foreign_code()
    offer_converter(os.environ.get("QPLAN_CONVERTER_ARGUMENTS", "").split())
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), *sys.argv[2:]]
    code = compile(script.read_bytes(), str(script), "exec")
    exec(code, {"__name__": "__main__", "__file__": str(script)})  # noqa: S102 - the user's own exporter


if __name__ == "__main__":
    main()
