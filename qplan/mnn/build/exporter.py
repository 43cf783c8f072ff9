"""Exports of a Hugging Face folder by llmexport, in a child process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qplan.artifact import free_bytes, new_folder, no_space
from qplan.errors import InputError, ToolError
from qplan.mnn.build.export_view import export_view
from qplan.mnn.build.exporter_source import Exporter, ExportOptions, find_exporter
from qplan.mnn.build.left_out import LEFT_OUT_FILE, Kept, check_fits, kept_of, whole_bytes
from qplan.mnn.build.skeleton import REQUIRED_FILES, Skeleton, write_marker
from qplan.mnn.build.tokenizer_ids import settle_ids
from qplan.mnn.child import run_child
from qplan.mnn.files import EXPORT_ARGS_FILE
from qplan.mnn.graph.input_scale import scale_input
from qplan.model.source import weight_files
from qplan.settings import Say

_SPINNER = "".join(map(chr, range(0x2800, 0x2900)))
_WITHOUT_C4 = {"QPLAN_CONVERTER_ARGUMENTS": "--transformerFuseC4=0"}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def export_skeleton(
    model_dir: Path,
    out: Path,
    *,
    llmexport: Path | None = None,
    progress: Say | None = None,
    timeout_s: float = 7200,
    replace: bool = False,
    c4: bool = True,
    input_scale: NDArray[np.float32] | None = None,
    max_memory_bytes: int | None = None,
) -> Skeleton:
    """Export a model at fp16: the graph, norms, biases and embedding that every build starts from.

    The weight file has holes where matrices of linears belong, which every build fills: they are neither read nor
    written. An exporter that qplan cannot keep from it writes them all.

    Args:
        model_dir: Hugging Face folder; nothing is downloaded.
        out: folder to make.
        llmexport: another exporter than the installed package: an MNN checkout, its export folder or ``llmexport.py``.
        progress: called with every line that the exporter prints.
        timeout_s: seconds until it is killed.
        replace: replace an existing folder, at the last moment.
        c4: whether attention is fused for packed channels, which engines before 3.6.1 crash on.
        input_scale: ``[hidden]``, factors that the graph multiplies the looked-up embedding by; None for none.
        max_memory_bytes: most memory that the export may take; None for any.

    Raises:
        InputError: no model in ``model_dir``, ``out`` exists, no exporter, or not enough memory allowed.
        StorageError: the disk has no space for the export.
        ToolError: the exporter failed.
    """
    export(
        model_dir,
        out,
        ExportOptions(c4=c4),
        llmexport=llmexport,
        progress=progress,
        timeout_s=timeout_s,
        replace=replace,
        input_scale=input_scale,
        max_memory_bytes=max_memory_bytes,
        whole=False,
    )
    return Skeleton.open(out)


def export(
    model_dir: Path,
    out: Path,
    options: ExportOptions,
    *,
    llmexport: Path | None = None,
    progress: Say | None = None,
    timeout_s: float = 7200,
    replace: bool = False,
    converter: Path | None = None,
    input_scale: NDArray[np.float32] | None = None,
    max_memory_bytes: int | None = None,
    whole: bool = True,
) -> Path:
    """Run llmexport with any options; the folder appears whole or not at all and holds no paths of this machine.

    Args:
        model_dir: Hugging Face folder; nothing is downloaded.
        out: folder to make.
        options: llmexport's options.
        llmexport: another exporter than the installed package.
        progress: called with every line that the exporter prints.
        timeout_s: seconds until it is killed.
        replace: replace an existing folder, at the last moment.
        converter: folder of another MNN package, whose converter the exporter then uses; None for the installed one.
        input_scale: ``[hidden]``, factors that the graph multiplies the looked-up embedding by; None for none.
        max_memory_bytes: most memory that the export may take; None for any.
        whole: whether the matrices of linears are written, and not holes in their place where that can be.

    Raises:
        InputError: no model in ``model_dir``, ``out`` exists, no exporter, or not enough memory allowed.
        ToolError: the exporter failed, or reported success without writing every file.
        StorageError: the disk has no space for the export.
    """
    if not (model_dir / "config.json").is_file():
        msg = f"{model_dir} holds no config.json; give a local Hugging Face model folder"
        raise InputError(msg)
    exporter = find_exporter(llmexport)
    kept = None if whole else kept_of(model_dir)
    need = whole_bytes(model_dir) if kept is None else kept.peak_bytes
    check_fits(f"the export of {model_dir}", need, max_memory_bytes, "or export on a machine with more")
    with new_folder(out, replace=replace) as draft:
        work = draft.with_name("work")
        work.mkdir()
        environment = _OFFLINE | ({} if options.c4 else _WITHOUT_C4)
        if converter is not None:
            environment["PYTHONPATH"] = str(converter.resolve())
        run = _Run(exporter, options, model_dir, draft, work, environment, timeout_s, progress)
        # llmexport picks another exporter for paths that contain "bge" or "gte": the view has a name that is ours
        with export_view(model_dir, work / "model") as view, _enough_space(out, draft, model_dir):
            left_out = kept is not None and run.without_weights(kept)
            if not left_out:
                what = f"{exporter.version} cannot do without the weights of {model_dir}: an export with them"
                remedy = "or use the llmexport that qplan was installed with"
                check_fits(what, whole_bytes(model_dir), max_memory_bytes, remedy)
                run.with_weights()
            settle_ids(draft, view)
        (draft / EXPORT_ARGS_FILE).unlink(missing_ok=True)
        if input_scale is not None:
            scale_input(draft, input_scale)
        write_marker(draft, exporter.version, whole=not left_out)
    return out


@dataclass(frozen=True)
class _Run:
    """One exporter on one model, in its own process."""

    exporter: Exporter
    options: ExportOptions
    model_dir: Path
    draft: Path
    work: Path
    environment: Mapping[str, str]
    timeout_s: float
    progress: Say | None

    def with_weights(self) -> None:
        """Write every weight.

        Raises:
            ToolError: the exporter failed.
        """
        self._run("", "")

    def without_weights(self, kept: Kept) -> bool:
        """Write holes in place of matrices; False, and nothing written, if this exporter cannot do without values.

        Raises:
            ToolError: the exporter failed for another reason.
        """
        try:
            self._run(",".join(kept.modules), LEFT_OUT_FILE)
        except ToolError as error:
            # killed, out of time, or failed before it met a matrix: it would be so with all weights as well
            if error.code is None or error.code < 0 or not (self.work / LEFT_OUT_FILE).is_file():
                raise
            shutil.rmtree(self.draft)
            self.draft.mkdir()
            return False
        return True

    def _run(self, keep: str, mark: str) -> None:
        # the default converter is a path relative to the working folder; an empty one selects the installed MNN
        arguments = [*self.options.arguments(self.exporter, Path("model"), Path("../draft")), "--mnnconvert="]
        what = f"{self.exporter.version} failed to export {self.model_dir}"
        output = run_child(
            "build/exporter_child.py",
            [keep, mark, str(self.exporter.script), *arguments],
            what=what,
            cwd=self.work,
            timeout_s=self.timeout_s,
            environment=self.environment,
            progress=None if self.progress is None else _without_frames(self.progress),
        )
        missing = [name for name in REQUIRED_FILES if not (self.draft / name).is_file()]
        if missing:
            msg = f"{what}: it reported success but did not write {', '.join(missing)}"
            raise ToolError(msg, tail=output[-2000:])


@contextmanager
def _enough_space(out: Path, draft: Path, model_dir: Path) -> Iterator[None]:
    """Put a failure down to a disk that cannot hold the model: a converter that can't write crashes, or is silent.

    Raises:
        StorageError: the block failed, and there is less space than the model's weights take.
    """
    try:
        yield
    except ToolError as error:
        need = sum(path.stat().st_size for path in weight_files(model_dir))
        if free_bytes(draft) < need:
            raise no_space(out, need) from error
        raise


def _without_frames(progress: Say) -> Say:
    """Pass a line on when it says something new: llmexport animates every step with a spinner."""
    last = ""

    def once(line: str) -> None:
        nonlocal last
        text = line.lstrip(_SPINNER).strip()
        if text and text != last:
            last = text
            progress(text)

    return once
