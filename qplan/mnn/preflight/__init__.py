"""Checks a model folder without loading the engine: all that is known to crash it or to make it output garbage."""

from qplan.mnn.preflight.check import Preflight, check_folder
from qplan.mnn.preflight.finding import Finding

__all__ = ["Finding", "Preflight", "check_folder"]
