"""Whether whole models are measured by products of bfloat16 while a plan is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qplan.formats import Formats
from qplan.model.half_products import half_products_pay
from qplan.model.load import LoadedModel
from qplan.planner.uniform import uniform_loss
from qplan.run.table import SensitivityTable
from qplan.sensitivity.joint import Variant, variant_losses
from qplan.sensitivity.kept_logits import KeptLogits

MOST_SHARE = 0.01
"""Most that the model itself may lose in such products, of what a plan loses: the two add up, and this is far below
what a few thousand tokens leave open."""


@dataclass
class Halves:
    """Decided for the first plan, and the same for all that are compared with it."""

    taken: bool | None = None
    """None until something is measured."""

    def suffice(
        self, loaded: LoadedModel, table: SensitivityTable, formats: Formats, reference: KeptLogits | None
    ) -> bool:
        """Whether products of bfloat16 are fast on this machine, and precise enough for such losses.

        Args:
            loaded: the model.
            table: losses of single tensors, which predict the plan's.
            formats: of the plan.
            reference: the model in FP32, on whose first row the products are tried.
        """
        if self.taken is None:
            self.taken = self._decided(loaded, table, formats, reference)
        return self.taken

    @staticmethod
    def _decided(loaded: LoadedModel, table: SensitivityTable, formats: Formats, reference: KeptLogits | None) -> bool:
        if reference is None or not half_products_pay(loaded.device):
            return False
        sums = [(uniform_loss(formats, table.ordered_kl(memory)), memory) for memory in table.memories]
        least = min(0.0 if nats is None else table.predict_joint(nats, memory) for nats, memory in sums)
        if least <= 0:
            return False
        first = reference.take(slice(1))
        own = variant_losses(
            loaded, torch.from_numpy(first.rows), {"": Variant({}, half=True)}, batch_size=1, reference=first
        )
        return own[""].kl_nats <= MOST_SHARE * least
