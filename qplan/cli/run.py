"""``qplan run``: a prompt through an MNN model, on the engine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qplan.cli import completion, panels
from qplan.cli.console import answer, err, out
from qplan.cli.modes import with_modes
from qplan.errors import InputError

if TYPE_CHECKING:
    from qplan.mnn.engine.engine import Engine, Timing

MAX_TOKENS = 256
"""Of an answer, where the context has room for so many."""

STDIN = "-"
"""Prompt that stands for standard input."""

FolderArgument = Annotated[
    Path,
    typer.Argument(help="Folder of an MNN model, whoever made it.", autocompletion=completion.mnn_folders),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Threads of the engine.",
        show_default="the folder's, but no more than processors",
        rich_help_panel=panels.ENGINE,
    ),
]


@with_modes("run")
def command(
    folder: FolderArgument,
    prompt: Annotated[str, typer.Argument(help="A message, or - to read it from standard input.")],
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="Continue the prompt as it is, without the chat template.", rich_help_panel=panels.TEXT
        ),
    ] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="At most this many tokens.",
            show_default=f"{MAX_TOKENS}, if the context has room",
            rich_help_panel=panels.TEXT,
        ),
    ] = None,
    threads: ThreadsOption = None,
) -> None:
    """Run an MNN model on a prompt: its text as it comes, then the speed of prefill and decode.

    The likeliest token is taken each time. The folder is checked first, and the engine runs in a process of its own.

    Examples:
        qplan run qplan-runs/my-model/int4/model "What is a prime number?"
        qplan run my-export "def fibonacci(n):" --raw --max-tokens 64
        qplan run my-export - --max-tokens 512
    """
    if max_tokens is not None and max_tokens < 1:
        msg = f"--max-tokens {max_tokens}: must be at least 1"
        raise InputError(msg)
    from qplan.mnn.engine.engine import Engine, checked_folder  # noqa: PLC0415 - NumPy: not for --help
    from qplan.mnn.runtime import RuntimeConfig  # noqa: PLC0415

    runtime = RuntimeConfig.of_settings(checked_folder(folder).settings, threads)
    message = _read_prompt(prompt)
    with Engine(folder, runtime) as engine:
        text = message if raw else engine.chat(message)
        template = "off" if raw else "none" if text == message else "chat"
        ids = engine.encode(text)
        most = max_tokens or max(1, min(MAX_TOKENS, engine.context - len(ids)))
        pieces = []
        for piece in engine.generate(ids, most):
            pieces.append(piece)
            out.print(piece, end="", soft_wrap=True)
            if not out.quiet:
                out.file.flush()
        timing = _timing(engine)
        out.print()
        written = len(timing.decode_s) + 1
        answer(
            folder=str(folder),
            engine=engine.version,
            threads=runtime.threads,
            template=template,
            text="".join(pieces),
            tokens=written,
            prompt_tokens=timing.prompt_tokens,
            prefill_tokens_per_s=timing.prompt_tokens / timing.prefill_s,
            decode_tokens_per_s=timing.decode_tokens_per_s if timing.decode_s else None,
        )
    err.print(_speeds(timing, template, runtime.threads), style="dim")


_TEMPLATES = {"chat": "chat template", "none": "no chat template in the folder", "off": "no chat template (--raw)"}
"""How the prompt was given, for people."""


def _speeds(timing: Timing, template: str, threads: int) -> str:
    from qplan.report import notation  # noqa: PLC0415 - not for --help

    prompt, written = timing.prompt_tokens, len(timing.decode_s) + 1
    prefill = f"prefill {prompt:,} tokens at {notation.speed(prompt / timing.prefill_s)}/s"
    decode = f"decode {written:,}" + (f" at {notation.speed(timing.decode_tokens_per_s)}/s" if timing.decode_s else "")
    return f"{prefill}, {decode}, {notation.threads(threads)}; {_TEMPLATES[template]}"


def _read_prompt(prompt: str) -> str:
    """The prompt, or what standard input holds.

    Raises:
        InputError: nothing is there, or no UTF-8.
    """
    if prompt != STDIN:
        return prompt
    try:
        found = sys.stdin.read() if sys.stdin is not None else ""
    except UnicodeDecodeError as error:
        msg = f"standard input is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}; convert it"
        raise InputError(msg) from None
    if not found.strip():
        msg = "standard input holds no prompt; pipe a text into it, or write the prompt in place of -"
        raise InputError(msg)
    return found.rstrip("\n")


def _timing(engine: Engine) -> Timing:
    """Of the generation that is over.

    Raises:
        InputError: there was none.
    """
    if engine.timing is None:
        msg = "the engine generated nothing; give a longer prompt"
        raise InputError(msg)
    return engine.timing
