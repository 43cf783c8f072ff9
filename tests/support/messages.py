"""Every message of the report, found in its templates and code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from jinja2 import nodes

import qplan.report
from qplan.report.page import environment

HOME = Path(qplan.report.__file__).parent


def template_messages() -> Iterator[str]:
    """First arguments of ``t(...)``, both of a choice."""
    for path in sorted((HOME / "templates").glob("*.j2")):
        tree = environment().parse(path.read_text(encoding="utf-8"))
        for call in tree.find_all(nodes.Call):
            if isinstance(call.node, nodes.Name) and call.node.name == "t":
                first = call.args[0]
                chosen = [first.expr1, first.expr2] if isinstance(first, nodes.CondExpr) else [first]
                for message in chosen:
                    assert isinstance(message, nodes.Const), f"{path.name}: t() of something else than a message"
                    yield message.value


def code_messages() -> Iterator[str]:
    """First arguments of ``words(...)`` and ``words.pattern(...)``."""
    for path in sorted(HOME.glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and _is_words(call.func):
                message = call.args[0]
                if isinstance(message, ast.Constant) and isinstance(message.value, str):
                    yield message.value
                else:
                    assert path.name in ("words.py", "page.py"), (
                        f"{path.name}: words() of something else than a message"
                    )


def _is_words(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute):
        named = function.attr == "pattern"
        function = function.value
        if isinstance(function, ast.Attribute):
            return function.attr == "words" and named
        return named and isinstance(function, ast.Name) and function.id == "words"
    if isinstance(function, ast.Attribute):
        return function.attr == "words"
    return isinstance(function, ast.Name) and function.id == "words"


def every_message() -> set[str]:
    return {*template_messages(), *code_messages()}
