"""Whether lm-evaluation-harness is there, and its own command."""

from __future__ import annotations

from importlib.util import find_spec

from qplan.errors import InputError


def require_harness() -> None:
    """Refuse to go on without the harness.

    Raises:
        InputError: it is not installed.
    """
    if find_spec("lm_eval") is None:
        msg = "lm-evaluation-harness is not installed; install it with: pip install 'qplan[eval]'"
        raise InputError(msg)


def harness_command() -> None:
    """Run the harness's command line, in which importing the backend has registered the model ``mnn``.

    Raises:
        InputError: the harness is not installed.
    """
    require_harness()
    from lm_eval.__main__ import cli_evaluate  # noqa: PLC0415 - optional

    import qplan.harness.backend  # noqa: F401, PLC0415 - registers itself

    cli_evaluate()
