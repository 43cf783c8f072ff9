"""Command lines: every command and every option, as typer knows them, with values at the edges."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any, get_args

from hypothesis import strategies as st

from reports.faults.fuzz.bench import ANALYSIS, PLANNING
from reports.faults.fuzz.values import FORMATS, PATHS, PATTERNS, REAL, SIZES, TEXTS, WHOLE
from tests.support.commands import commands

BASES: dict[str, tuple[tuple[str, ...], ...]] = {
    "analyze": (("hf", *ANALYSIS, "--run", "small"), ("hf", *ANALYSIS, "--run", "new")),
    "bench": (("mnn", "--text", "short.txt"), ("absent",)),
    "check": (("mnn",),),
    "compat": ((),),
    "compat measure": ((),),
    "demo": ((),),
    "emit": (("--run", "golden"), ("--run", "golden"), (*PLANNING, "--run", "small")),
    "engines": ((),),
    "engines add": (("absent",),),  # never one that would fetch packages
    "engines list": ((),),
    "engines remove": (("absent",),),
    "eval": (("absent", "--tasks", "absent"), ("mnn", "--tasks", "absent", "--include-path", ".")),
    "explain": (("int8", "--run", "golden"), ("int4", "0.mlp.down_proj", "--run", "small")),
    "frontier": (("--run", "golden", "--points", "3"), ("--run", "small", "--points", "3")),
    "ladder": (("absent",), ("hf", "--text", "short.txt"), ("hf", "--text", "short.txt", "--run", "golden")),
    "plan": (("--run", "golden"), ("--run", "small")),
    "plan diff": (("int4", "int8", "--run", "golden"), ("int4", "int4", "--run", "small")),
    "profile": (("--run", "golden"),),
    "quantize": (("absent",), ("hf", "made", *ANALYSIS, "--run", "small")),
    "report": (("int8", "--run", "golden"), ("--run", "small")),
    "run": (("absent", "words"), ("mnn", "words", "--max-tokens", "2")),
}
"""Lines that work, or are refused late, to which options are added: a word given later counts."""

_VALUES: dict[str, st.SearchStrategy[str]] = {
    "--budget": st.one_of(SIZES, FORMATS, st.lists(SIZES, max_size=3).map(",".join)),
    "--engine": st.sampled_from(
        ["3.5.0", "3.6.1", "1", "3", "3.5", "3.5.0.0", "99.0.0", "-1.0.0", "3.x", "", "\u0969.5.0"]
    ),
    "--fold": st.sampled_from(["off", "on", "AUTO", ""]),
    "--formats": st.one_of(FORMATS, st.lists(FORMATS, max_size=4).map(",".join)),
    "--group": PATTERNS,
    "--max-ppl-increase": SIZES,
    "--max-ram": SIZES,
    "--min-bits": st.builds("{}={}".format, PATTERNS, REAL) | TEXTS,
    "--pin": st.builds("{}={}".format, PATTERNS, FORMATS) | TEXTS,
    "--points": st.sampled_from(["-1", "0", "1", "2", "4", "1001", "1e3", "", str(10**30)]),
    "--repair": st.sampled_from(["-1", "0", "1", str(10**30), "x", "1.5"]),
    "--rounding": st.sampled_from(["rtn", "hqq", "gptq", "", "GPTQ", "best"]),
    "--tolerance": st.builds("{}={}".format, TEXTS | st.sampled_from(["int8", "fp16", "plan"]), REAL) | TEXTS,
}
"""Words for options whose values have a grammar, and for those of which some values take minutes."""

_NEVER = frozenset({"--install-completion", "--show-completion"})
"""Options that write into a user's own files."""


def lines() -> st.SearchStrategy[tuple[str, ...]]:
    """Lines of all commands, and some that are no command at all."""
    each = [_line(name, command) for name, command in sorted(commands().items())]
    return st.one_of(*each, st.lists(TEXTS.filter(lambda word: word not in _NEVER), max_size=3).map(tuple))


def _line(name: str, command: Any) -> st.SearchStrategy[tuple[str, ...]]:  # noqa: ANN401 - typer's own
    """Lines of a command: a base, its options with values, or its arguments replaced."""
    options = [p for p in command.params if p.param_type_name == "option" and not _NEVER & set(p.opts)]
    added = st.lists(st.sampled_from(options).flatmap(_option), min_size=1, max_size=4)
    arguments = sum(p.param_type_name == "argument" for p in command.params)

    def compose(base: tuple[str, ...], options: list[tuple[str, ...]], first: str | None) -> tuple[str, ...]:
        given = (first, *base[1:]) if first is not None and arguments and base else base
        return (*name.split(), *given, *(word for option in options for word in option))

    replaced = st.none() | st.none() | PATHS | PATTERNS
    return st.builds(compose, st.sampled_from(BASES[name]), added, replaced)


def _option(option: Any) -> st.SearchStrategy[tuple[str, ...]]:  # noqa: ANN401 - typer's own
    """An option with a value, or one without where a value belongs."""
    name = max(option.opts, key=len)
    if option.is_flag:
        return st.just((name,))
    kind = option.type_descriptor.annotation
    choices = _choices(kind)
    if name in _VALUES:
        values = _VALUES[name]
    elif choices:
        values = st.sampled_from([*choices, "", "x", choices[0].upper()])
    elif kind is int:
        values = WHOLE
    elif kind is float:
        values = REAL
    elif kind is Path:
        values = PATHS
    else:
        values = st.one_of(PATHS, TEXTS, PATTERNS)
    return values.map(lambda value: (name, value)) | values.map(lambda value: (f"{name}={value}",))


def _choices(kind: Any) -> list[str]:  # noqa: ANN401 - typer's own
    """Values of a literal or an enumeration; none of other types."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(member.value) for member in kind]
    return [str(value) for value in get_args(kind) if not isinstance(value, type)]
