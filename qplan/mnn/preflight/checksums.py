"""The files against the checksums that qplan left beside them when it built the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qplan.artifact import sha256_file
from qplan.errors import InputError, StaleArtifactError
from qplan.mnn.checksums import Checksum, read_checksums
from qplan.mnn.files import CHECKSUMS_FILE, CONFIG_FILE, LLM_CONFIG_FILE
from qplan.mnn.graph.tie import TIE_KEY
from qplan.mnn.preflight.finding import COPY_AGAIN, GARBAGE, Finding, error, warning
from qplan.mnn.preflight.model import ModelFolder

_REMEDY = f"{COPY_AGAIN}; remove {CHECKSUMS_FILE} if the file was changed on purpose"
_NOT_HASHED = frozenset({"weights-unclaimed", "embedding-size"})
"""Files that are larger than the model needs; a folder made to do harm can make them as large as it likes."""


def check_checksums(model: ModelFolder) -> Iterator[Finding]:
    """Whether the files are those that were built; whoever else makes folders leaves no checksums.

    Contents are read only where nothing else is wrong, and so no more of them than the engine reads.
    """
    if not (model.folder / CHECKSUMS_FILE).exists():
        return
    try:
        expected = read_checksums(model.folder)
    except (InputError, StaleArtifactError) as problem:
        effect = "the engine does not read it; damaged weights would not be found"
        yield warning("bad-checksums", CHECKSUMS_FILE, str(problem), effect, COPY_AGAIN)
        return
    wrong_already = any(found.severity == "error" or found.code in _NOT_HASHED for found in model.findings)
    for key in expected.settings:
        if key not in model.settings:
            what = f"{CONFIG_FILE} has no {key}, and had one when the model was built"
            yield warning("missing-setting", CONFIG_FILE, what, "its own default instead", f"add {key} again")
    if expected.knows_tie and (model.settings.get(TIE_KEY) or None) != (expected.tie or None):
        what = f"it is {model.settings.get(TIE_KEY)!r:.200}, the model was built with {expected.tie!r:.200}"
        yield error("checksum", f"{LLM_CONFIG_FILE}, {TIE_KEY}", what, GARBAGE, COPY_AGAIN)
    for name, checksum in expected.files.items():
        path = model.folder / name
        if not path.is_file():
            what = f"{CHECKSUMS_FILE} lists {name}, which is not there"
            yield warning("checksum", name, what, "none, unless the settings name it", COPY_AGAIN)
        elif what := _difference(path, checksum, read=not wrong_already):
            if name == LLM_CONFIG_FILE:  # what is wrong in it has findings of its own, and people do change it
                yield warning("checksum", name, what, "the model behaves otherwise than it was proved", _REMEDY)
                continue
            yield error("checksum", name, what, f"a crash, or {GARBAGE}", _REMEDY)


def _difference(path: Path, expected: Checksum, *, read: bool) -> str:
    size = path.stat().st_size
    if size != expected.bytes:
        return f"{size:,} bytes, it was built with {expected.bytes:,}"
    if read and (found := sha256_file(path)) != expected.sha256:
        return f"its sha256 begins with {found[:12]}, it was built with {expected.sha256[:12]}: damaged or exchanged"
    return ""
