"""How commands show their help: options in panels, plain words for what they take, examples that can be copied."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from qplan.cli import panels


class HelpfulCommand(TyperCommand):
    """A command whose options say what they take only where that says something."""

    def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401 - typer's own
        """Build it from what typer read from the function."""
        super().__init__(*args, **settings)
        _restyle(self)

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 - typer's own
        """All of them, those that typer adds by itself too."""
        return _shown(super().get_params(ctx))


class HelpfulGroup(TyperGroup):
    """The same for a group that is a command too."""

    def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401 - typer's own
        """Build it from what typer read from the function."""
        super().__init__(*args, **settings)
        _restyle(self)

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 - typer's own
        """All of them, those that typer adds by itself too."""
        return _shown(super().get_params(ctx))


_OUTPUT = ("help", "install_completion", "show_completion")
"""What typer adds by itself: last and among its like instead of first in a panel of its own."""


def _restyle(command: TyperCommand | TyperGroup) -> None:
    """Color the code in help texts."""
    command.help = _styled(command.help)
    for parameter in command.params:
        if isinstance(parameter, TyperOption | TyperArgument):
            parameter.help = _styled(parameter.help)


def _shown(parameters: list[Any]) -> list[Any]:
    """Options show their metavar, flags nothing; choices and numbers show themselves."""
    for option in parameters:
        if not isinstance(option, TyperOption):
            continue
        if option.name in _OUTPUT:
            option.rich_help_panel = panels.OUTPUT
        if option.metavar is not None or option.is_flag:
            shown = option.metavar
            option.display_type_rich = lambda ctx, shown=shown: shown  # type: ignore[method-assign, misc]  # noqa: ARG005
    return parameters


def _styled(text: str | None) -> str | None:
    """Code in color, whole lines of it too: Markdown would need half of the time that ``--help`` takes."""
    if text is None:
        return None
    colored = re.sub(r"`([^`]+)`", r"[cyan]\1[/cyan]", escape(text))
    return re.sub(r"^ +(qplan .*)$", r"[not dim]  \1[/not dim]", colored, flags=re.MULTILINE)


class App(typer.Typer):
    """A group of commands of this kind."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - typer's own
        """Rich markup in help texts."""
        super().__init__(cls=HelpfulGroup, rich_markup_mode="rich", **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:  # noqa: ANN401
        """Register a command."""
        settings.setdefault("cls", HelpfulCommand)
        return super().command(name, **settings)
