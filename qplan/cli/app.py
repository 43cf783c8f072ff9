"""How commands show their help: options in panels, plain words for what they take, examples that can be copied."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from qplan.cli import panels
from qplan.cli.words import check_words


class HelpfulCommand(TyperCommand):
    """A command whose help says what an option takes only where that is informative."""

    def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401 - typer's own
        """Build it from what typer read from the function."""
        super().__init__(*args, **settings)
        _restyle(self)

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 - typer's own
        """All parameters, including those that typer adds."""
        return _shown(super().get_params(ctx))


class HelpfulGroup(TyperGroup):
    """The same for a group, which is a command too."""

    def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401 - typer's own
        """Build it from what typer read from the function."""
        super().__init__(*args, **settings)
        _restyle(self)

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 - typer's own
        """All parameters, including those that typer adds."""
        return _shown(super().get_params(ctx))


_OUTPUT = ("help", "install_completion", "show_completion")
"""Options that typer adds: shown in the panel of output options, not in a panel of their own."""


def _restyle(command: TyperCommand | TyperGroup) -> None:
    """Color the code in help texts, and have words checked."""
    command.help = _styled(command.help)
    for parameter in command.params:
        if isinstance(parameter, TyperOption | TyperArgument):
            parameter.help = _styled(parameter.help)
            check_words(parameter)
        if isinstance(parameter, TyperArgument):
            _name_as_written(parameter)


def _name_as_written(argument: TyperArgument) -> None:
    """Have usage, help and errors call an argument as everybody writes it: ``MODEL``, not ``{model}``; it is a word."""
    name = argument.metavar = argument.metavar or argument.name.upper()
    usage = name if argument.required else f"[{name}]"
    argument.display_type_rich = lambda ctx: None  # type: ignore[method-assign]  # noqa: ARG005
    argument._usage_display_name = lambda: usage  # type: ignore[method-assign]  # noqa: SLF001 - typer has no setting


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
    """Color code, including whole lines of it: Markdown would take half of the time of ``--help``.

    Lines of a paragraph become one, for the terminal to break; those of examples are indented.
    """
    if text is None:
        return None
    flowing = re.sub(r"(?<=\S)\n(?=\S)", " ", text)
    colored = re.sub(r"`([^`]+)`", r"[cyan]\1[/cyan]", escape(flowing))
    return re.sub(r"^ +(qplan .*)$", r"[not dim]  \1[/not dim]", colored, flags=re.MULTILINE)


class App(typer.Typer):
    """A group whose commands are `HelpfulCommand`."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - typer's own
        """Allow rich markup in help texts."""
        super().__init__(cls=HelpfulGroup, rich_markup_mode="rich", **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:  # noqa: ANN401
        """Register a command."""
        settings.setdefault("cls", HelpfulCommand)
        return super().command(name, **settings)
