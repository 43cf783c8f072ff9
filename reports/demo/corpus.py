"""Text that every Python installation ships: the standard library's sources and docstrings.

Nothing is downloaded: the text is read from the running interpreter's own standard library, so the
result depends on the Python version only.
"""

import ast
import enum
import hashlib
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LICENSE = "PSF-2.0"

# Tests and vendored trees are left out because other Python builds may lack them.
_EXCLUDED_PARTS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "ensurepip", "pydoc_data", "__pycache__"}
)
# Build-time files hold the paths of the machine that built the interpreter.
_BUILD_FILE = re.compile(r"^(_sysconfigdata.*|config-[^/]*/.*)$")
# Tables of code points and generated parsers would only teach the model numbers.
_DATA_TABLES = frozenset({"html/entities.py", "lib2to3/pgen2/grammar.py", "stringprep.py", "locale.py"})
_TABLE_MARKERS = ("decoding_table = (", "decoding_map = codecs.make_identity_dict")
# A module with a license text of its own is left out, so that one license covers all of the text.
_OWN_LICENSE = re.compile(
    r"permission\s+to\s+use,\s+copy|permission\s+is\s+hereby\s+granted|apache\s+license|bsd\s+license"
    r"|redistribution\s+and\s+use|mit\s+license|general\s+public\s+license",
    re.IGNORECASE,
)
_COMMENT_LEAD = re.compile(r"^\s*#\s?", re.MULTILINE)

_BUCKETS = 100
_CALIBRATION_FROM = 94
_HELDOUT_FROM = 97
# Chosen by size alone: with it both small splits are large enough for the texts cut from them.
_SPLIT_SALT = "qplan-demo-34:"

# In the cut texts every third module gives its docstrings instead of its source.
_PROSE_EVERY = 3
_MIN_PROSE_CHARS = 400


class Split(enum.StrEnum):
    """What the text of a module is used for."""

    TRAIN = "train"
    CALIBRATION = "calibration"
    HELDOUT = "heldout"


@dataclass(frozen=True)
class Module:
    """One standard-library module.

    Attributes:
        path: Path relative to the standard library, with forward slashes.
        source: The source text.
        prose: All docstrings of the module, dedented, in source order; may be empty.
    """

    path: str
    source: str
    prose: str

    @property
    def split(self) -> Split:
        """The split that this module belongs to."""
        return split_of(self.path)


def split_of(path: str) -> Split:
    """Assigns a module to a split by a hash of its relative path alone.

    Args:
        path: Module path relative to the standard library, with forward slashes.
    """
    digest = hashlib.sha256((_SPLIT_SALT + path).encode()).digest()
    bucket = int.from_bytes(digest[:8], "big") % _BUCKETS
    if bucket >= _HELDOUT_FROM:
        return Split.HELDOUT
    return Split.CALIBRATION if bucket >= _CALIBRATION_FROM else Split.TRAIN


def docstrings(source: str) -> str:
    """Extracts every docstring of a module as one prose document; empty if the source does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except SyntaxError:
        return ""
    owners = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    owners.sort(key=lambda node: getattr(node, "lineno", 0))
    found = (ast.get_docstring(node) for node in owners)
    return "\n\n".join(text for text in found if text)


def is_excluded(path: str) -> bool:
    """Returns whether a path (relative to the standard library) is left out because of its name alone."""
    return (
        not _EXCLUDED_PARTS.isdisjoint(path.split("/")) or _BUILD_FILE.match(path) is not None or path in _DATA_TABLES
    )


def has_unfit_content(source: str) -> bool:
    """Returns whether a source is a code-point table or carries a license text of its own."""
    if any(marker in source for marker in _TABLE_MARKERS):
        return True
    return _OWN_LICENSE.search(_COMMENT_LEAD.sub("", source)) is not None


def _read_source(file: Path) -> str | None:
    try:
        with tokenize.open(file) as stream:
            return stream.read()
    except (SyntaxError, UnicodeDecodeError):
        return None


def collect_modules(root: Path | None = None) -> list[Module]:
    """Reads the usable modules of a standard library, sorted by path.

    Args:
        root: Folder of the standard library; the running interpreter's own if None.
    """
    folder = root or Path(sysconfig.get_path("stdlib"))
    modules = []
    for path in sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.py")):
        if is_excluded(path):
            continue
        source = _read_source(folder / path)
        if source and source.strip() and not has_unfit_content(source):
            modules.append(Module(path, source, docstrings(source)))
    return modules


def documents(modules: Iterable[Module], split: Split) -> list[str]:
    """Returns the documents of a split: each module's source, then its docstrings if there are enough."""
    result = []
    for module in modules:
        if module.split is split:
            result.append(module.source)
            if len(module.prose) >= _MIN_PROSE_CHARS:
                result.append(module.prose)
    return result


def cut_text(modules: Iterable[Module], split: Split, max_bytes: int, max_module_bytes: int = 40_000) -> str:
    """Joins parts of a split's modules into one text, a mixture of sources and docstrings.

    Each module is used once, either as source or as prose, so that no sentence occurs twice.

    Args:
        modules: All modules; those of other splits are skipped.
        split: The split to draw from.
        max_bytes: Upper limit of the text's size, in UTF-8 bytes.
        max_module_bytes: Upper limit of one module's share, in UTF-8 bytes, so that none dominates.
    """
    chosen = [module for module in modules if module.split is split]
    # By hash, not by name: a size limit would otherwise always keep the head of the alphabet.
    chosen.sort(key=lambda module: hashlib.sha256(module.path.encode()).digest())
    parts: list[str] = []
    left = max_bytes
    for index, module in enumerate(chosen):
        as_prose = index % _PROSE_EVERY == 1 and len(module.prose) >= _MIN_PROSE_CHARS
        part = _head(module.prose if as_prose else module.source, min(max_module_bytes, left - 2))
        if part:
            parts.append(part)
            left -= len(part.encode()) + 2
    return "\n\n".join(parts) + "\n"


def _head(text: str, max_bytes: int) -> str:
    """Returns the leading whole lines of a text that fit into max_bytes of UTF-8."""
    lines: list[str] = []
    for line in text.strip("\n").split("\n"):
        max_bytes -= len(line.encode()) + 1
        if max_bytes < 0:
            break
        lines.append(line)
    return "\n".join(lines).strip("\n")
