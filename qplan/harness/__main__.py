"""The harness's own command line with the model ``mnn``: ``python -m qplan.harness --model mnn --tasks ...``."""

from qplan.harness.installed import harness_command

harness_command()
