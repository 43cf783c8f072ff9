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

    def get_help_option(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's own
        """``--help``, last and among its like instead of first in a panel of its own."""
        return _last(super().get_help_option(ctx))


class HelpfulGroup(TyperGroup):
    """The same for a group that is a command too."""

    def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401 - typer's own
        """Build it from what typer read from the function."""
        super().__init__(*args, **settings)
        _restyle(self)

    def get_help_option(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's own
        """As of a command."""
        return _last(super().get_help_option(ctx))


def _restyle(command: TyperCommand | TyperGroup) -> None:
    command.help = _styled(command.help)
    for parameter in command.params:
        if isinstance(parameter, TyperOption | TyperArgument):
            parameter.help = _styled(parameter.help)
        if isinstance(parameter, TyperOption):
            _shorten(parameter)


def _last(option: Any) -> Any:  # noqa: ANN401 - typer's own
    if isinstance(option, TyperOption):
        option.rich_help_panel = panels.OUTPUT
        _shorten(option)
    return option


def _shorten(option: TyperOption) -> None:
    """Show the metavar if there is one, nothing for a flag; choices and numbers show themselves."""
    if option.metavar is not None:
        shown = option.metavar
        option.display_type_rich = lambda ctx: shown  # type: ignore[method-assign]  # noqa: ARG005
    elif option.is_flag:
        option.display_type_rich = lambda ctx: None  # type: ignore[method-assign]  # noqa: ARG005


def _styled(text: str | None) -> str | None:
    """Code in colour, whole lines of it too: Markdown would need half of the time that ``--help`` takes."""
    if text is None:
        return None
    coloured = re.sub(r"`([^`]+)`", r"[cyan]\1[/cyan]", escape(text))
    return re.sub(r"^( +)(qplan .*)$", r"\1[not dim]\2[/not dim]", coloured, flags=re.MULTILINE)


class App(typer.Typer):
    """A group of commands of this kind."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - typer's own
        """Rich markup in help texts."""
        super().__init__(cls=HelpfulGroup, rich_markup_mode="rich", **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:  # noqa: ANN401
        """Register a command."""
        settings.setdefault("cls", HelpfulCommand)
        return super().command(name, **settings)
