"""Whether a chat template comes to an end: tried in a process with limits, before transformers renders it in this one.

The sandbox that transformers renders templates in keeps them from files and code, not from looping for ever.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys

from qplan.errors import InputError, ToolError

_SECONDS = 10
"""Of a processor."""
_WAITED_S = 300
"""On the clock, for systems that don't limit the former: a busy machine may leave the process next to none of it."""
_BYTES = 1 << 30
_TAIL = 2000
_TOO_MUCH = 3
"""Exit code of a template that took more memory."""

_CHILD = """
import json, resource, sys

given = json.load(sys.stdin)
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

for what, limit in ((resource.RLIMIT_CPU, given["seconds"]), (resource.RLIMIT_AS, given["bytes"])):
    try:
        resource.setrlimit(what, (limit, limit))
    except (OSError, ValueError):  # not on this system, or less is allowed already
        pass

class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)

def raise_exception(message):
    raise ValueError(message)

environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
environment.globals |= {"raise_exception": raise_exception, "strftime_now": lambda form: form}
environment.filters["tojson"] = lambda value, **_: json.dumps(value)
try:
    environment.from_string(given["template"]).render(messages=given["messages"], add_generation_prompt=True)
except MemoryError:
    sys.exit(given["too_much"])
except Exception:
    pass
"""
"""Renders as transformers does, without loading it. What else a template raises is for transformers to tell."""


def check_ends(template: str, messages: list[dict[str, str]]) -> None:
    """Refuse a template that takes more than 10 seconds or 1 GiB for a conversation.

    Raises:
        InputError: with the limit that it passed.
        ToolError: the process failed otherwise.
    """
    given = {"template": template, "messages": messages, "too_much": _TOO_MUCH, "seconds": _SECONDS, "bytes": _BYTES}
    code: int | None
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD],
            input=json.dumps(given),
            text=True,
            capture_output=True,
            check=False,
            timeout=_WAITED_S,
        )
        code, said = done.returncode, done.stderr[-_TAIL:]
    except subprocess.TimeoutExpired:
        code, said = None, ""
    if code == 0:
        return
    if code is not None and code not in (_TOO_MUCH, -signal.SIGXCPU, -signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV):
        what = "the process that tries the chat template failed"
        raise ToolError(what, command=f"{sys.executable} -c ...", code=code, tail=said)
    slow = f"does not end within {_WAITED_S if code is None else _SECONDS} s"
    passed = f"takes more than {_BYTES >> 30} GiB" if code == _TOO_MUCH else slow
    msg = (
        f"the model's chat template {passed} on a greeting; mend it (chat_template.jinja, or chat_template in "
        "tokenizer_config.json), or take it out for a model that only continues text"
    )
    raise InputError(msg)
