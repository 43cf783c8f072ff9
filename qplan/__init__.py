"""qplan: a mixed-precision quantization planner for MNN language models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qplan.explore import open_run, quantize
    from qplan.mnn.engine.engine import Engine

__all__ = ["Engine", "open_run", "quantize"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import what there is when it is asked for: ``import qplan`` stays light."""
    if name == "Engine":
        from qplan.mnn.engine.engine import Engine  # noqa: PLC0415

        return Engine
    if name == "open_run":
        from qplan.explore import open_run  # noqa: PLC0415

        return open_run
    if name == "quantize":
        from qplan.explore import quantize  # noqa: PLC0415

        return quantize
    msg = f"module 'qplan' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
