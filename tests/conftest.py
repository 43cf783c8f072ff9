"""Settings of all tests: no time limits (the machine is shared), the same examples every time."""

from __future__ import annotations

import torch
from hypothesis import settings

settings.register_profile("qplan", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("qplan")
# small tensors: more threads only get in each other's way
torch.set_num_threads(1)
