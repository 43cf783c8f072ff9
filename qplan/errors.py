"""One error tree; every leaf carries the exit code that the command line returns."""

from __future__ import annotations


class QplanError(Exception):
    """Base of everything that qplan raises on purpose.

    A message gives the value, the limit and the remedy, so that the command line can print it as it is.
    """

    exit_code = 1


class InputError(QplanError):
    """Something the user gave cannot be used: a path, an option, a text, a model."""

    exit_code = 2


class DamagedArtifactError(InputError):
    """A file that qplan wrote no longer holds what was written; the message says how to make it again."""


class InfeasibleError(QplanError):
    """No plan satisfies the constraints; the message names the nearest feasible value."""

    exit_code = 3


class UnsolvedError(QplanError):
    """The solver found no plan in the time that it had, and did not prove that there is none."""

    exit_code = 3


class StaleArtifactError(QplanError):
    """An artifact was made from other inputs (model, calibration, formats) or by a newer qplan."""

    exit_code = 4


class ToolError(QplanError):
    """A child process (exporter, converter, engine) failed; carries its command line, exit code and last output."""

    exit_code = 5

    def __init__(self, what: str, *, command: str = "", code: int | None = None, tail: str = "") -> None:
        """Compose the message.

        Args:
            what: what failed and what to do about it.
            command: the command line of the child process.
            code: its exit code; negative for a signal, None if it never ended.
            tail: the end of what it printed.
        """
        parts = [what]
        if command:
            parts.append(f"command: {command}")
        if code is not None:
            parts.append(f"exit code: {code}" if code >= 0 else f"killed by signal {-code}")
        if tail:
            parts.append(f"its last output:\n{tail.rstrip()}")
        super().__init__("\n".join(parts))
        self.command, self.code, self.tail = command, code, tail


class MeasurementError(QplanError):
    """A measurement is missing, not finite or impossible; nothing is written."""

    exit_code = 6


class VerificationError(QplanError):
    """The built model does not do on the engine what the plan promised."""

    exit_code = 7


class PreflightError(QplanError):
    """A model folder would crash the engine, be refused by it, or compute garbage."""

    exit_code = 8


class StorageError(QplanError):
    """A disk is full: something could not be written, and nothing half written is left."""

    exit_code = 9


class BusyError(QplanError):
    """Another process works in the same run folder; the message names it."""

    exit_code = 10
