"""What a notebook uses: a model quantized, a saved run as tidy frames, figures, and plans solved again in an instant.

Nothing here imports torch, transformers or MNN except in calls that need the model itself; their docstrings say so.
"""

from qplan.explore.explained import Explained
from qplan.explore.plan import PlanView
from qplan.explore.quantized import Quantized, quantize
from qplan.explore.run import Run, open_run
from qplan.explore.table import SensitivityView
from qplan.report.notation import number

__all__ = ["Explained", "PlanView", "Quantized", "Run", "SensitivityView", "number", "open_run", "quantize"]
