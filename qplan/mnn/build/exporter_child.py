"""Run in a child process: llmexport, from its own folder.

Arguments: modules whose matrices are read, and a file to make as soon as a matrix is left out or that is seen to be
impossible, both empty to read all; path of llmexport.py; its arguments.

Without all matrices, llmexport gets those of linears without their values: tensors of torch's
``meta`` device have shapes and types, take no memory, and whatever asks for a value fails. Where it writes them, the
weight file gets a hole of their size. So graph, sizes, norms, biases and embedding are those of a plain export, and a
model larger than memory can be exported.
"""

import os
import sys
import types
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, Self

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


class Shape:
    """A matrix of a checkpoint as transformers' loader sees it, which gets its shape and type alone."""

    def __init__(self, of: Any, mark: Path) -> None:  # noqa: ANN401
        """Stand in for a tensor of safetensors that is not read yet; makes the file ``mark`` once it is left out."""
        self._of, self._mark = of, mark

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """What safetensors says of it."""
        return getattr(self._of, name)

    def __getitem__(self, _where: object) -> Self:
        """Read nothing."""
        return self

    def to(self, *, device: object = None, dtype: Any = None) -> Any:  # noqa: ANN401, ARG002 - as of a tensor
        """The matrix on no device, whatever device is asked for."""
        import torch  # noqa: PLC0415

        self._mark.touch()
        return torch.empty(self._of.get_shape(), dtype=dtype, device="meta")


class Checkpoint:
    """An open safetensors file without the values of its matrices, but for those of some modules."""

    def __init__(self, opened: Any, keep: frozenset[str], mark: Path) -> None:  # noqa: ANN401
        """Stand in for a file that safetensors has opened; ``keep`` names modules, without the path to them."""
        self._opened, self._keep, self._mark = opened, keep, mark

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """What safetensors says of it."""
        return getattr(self._opened, name)

    def __enter__(self) -> Self:
        """Stay."""
        self._opened.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self._opened.__exit__(*error)

    def get_slice(self, name: str) -> Any:  # noqa: ANN401
        """A tensor that is not read yet."""
        found = self._opened.get_slice(name)
        module = name.rpartition(".")[0].rpartition(".")[2]
        return found if len(found.get_shape()) == 1 or module in self._keep else Shape(found, self._mark)


def leave_out(keep: frozenset[str], mark: Path) -> None:
    """Load no matrices but those of modules with these names, and write none.

    Args:
        keep: names of modules, without the path to them.
        mark: file to make as soon as a matrix is left out, or that is seen to be impossible.

    Raises:
        SystemExit: this exporter or this transformers works otherwise. One whose difference is not seen here fails
            where it asks for a value.
    """
    import torch  # noqa: PLC0415
    from transformers import modeling_utils  # noqa: PLC0415
    from utils import mnn_converter  # type: ignore[import-not-found] # noqa: PLC0415 - llmexport's

    converter = mnn_converter.MNNConverter
    tensor: Any = torch.Tensor
    parameter: Any = torch.nn.Parameter
    data = tensor.data
    opened, to_cpu, equal = getattr(modeling_utils, "safe_open", None), tensor.cpu, tensor.equal
    build, write = getattr(converter, "build_weight", None), getattr(converter, "write_weight", None)
    if opened is None or build is None or write is None:
        mark.touch()
        sys.exit("this llmexport cannot do without weights")

    def without_values(function: Callable[..., Any]) -> Callable[..., Any]:
        """The head as well, which the exporter compares with the embedding before."""

        @wraps(function)
        def built(self: Any, linear: Any, *rest: Any, **named: Any) -> Any:  # noqa: ANN401
            linear.weight = torch.nn.Parameter(linear.weight.detach().to("meta"), requires_grad=False)
            return function(self, linear, *rest, **named)

        return built

    def with_holes(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def written(self: Any, data: Any) -> Any:  # noqa: ANN401
            # biases are written as floats: one without values would fail below, as it must
            if not (torch.is_tensor(data) and data.is_meta and data.dtype == torch.float16):
                return function(self, data)
            mark.touch()
            size: int = data.numel() * data.element_size()
            self.mnn_weight.seek(size, os.SEEK_CUR)
            self.mnn_weight.truncate()
            return size

        return written

    def give(self: Any, values: Any) -> None:  # noqa: ANN401
        """Fused matrices are split, and experts taken apart, by giving parts of theirs to new parameters."""
        if values.is_meta and not self.is_meta:
            torch.utils.swap_tensors(self, parameter(values, requires_grad=self.requires_grad))
        else:
            data.__set__(self, values)

    vars(modeling_utils)["safe_open"] = lambda *rest, **named: Checkpoint(opened(*rest, **named), keep, mark)
    tensor.cpu = lambda self, *rest, **named: self if self.is_meta else to_cpu(self, *rest, **named)
    parameter.data = property(data.__get__, give)
    # a head is left out only where it is known to differ from the embedding
    tensor.equal = lambda self, other: not (self.is_meta or other.is_meta) and equal(self, other)
    converter.build_weight, converter.write_weight = without_values(build), with_holes(write)


def main() -> None:
    """Run llmexport as a main program.

    Not with runpy: llmexport empties ``sys.argv``, and runpy raises IndexError when it restores it.
    """
    keep, mark, exporter, *arguments = sys.argv[1:]
    script = Path(exporter)
    refuse_foreign_code()
    offer_converter(os.environ.get("QPLAN_CONVERTER_ARGUMENTS", "").split())
    sys.path.insert(0, str(script.parent))
    if mark:
        leave_out(frozenset(keep.split(",")), Path(mark))
    sys.argv = [exporter, *arguments]
    code = compile(script.read_bytes(), str(script), "exec")
    exec(code, {"__name__": "__main__", "__file__": str(script)})  # noqa: S102 - the user's own exporter


if __name__ == "__main__":
    main()
