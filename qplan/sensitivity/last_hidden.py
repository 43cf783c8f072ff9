"""Compares variants at the head's input: if the head is a plain linear, this needs no logits of the variant."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from qplan.errors import MeasurementError
from qplan.sensitivity.metrics import Reference, TokenStats, cache_rows, excess, wide

_PRODUCT_ELEMENTS = 1 << 24
"""Logit differences computed at a time: a bound on memory, with enough rows for a fast matrix product."""


@dataclass(frozen=True)
class LastHidden:
    """A reference's hidden states before a linear head, and what comparisons need of them.

    With ``d = h - h_ref`` the logits differ by ``u = W d``. Centered under the reference's probabilities, that is
    ``x = W d - mean(p W) d``: one matrix product, in which nothing cancels and a bias drops out. See
    `qplan.sensitivity.metrics.compare` for the rest.
    """

    reference: Reference
    hidden: Tensor
    """The reference's hidden states, float32 ``[tokens, hidden]``."""
    rows: Tensor
    """float32 ``[vocabulary, hidden + 1]``: the head's weight and a column of -1."""
    mean: Tensor
    """float32 ``[tokens, hidden]``: the head's rows averaged under the reference's probabilities."""
    margin: Tensor
    """float32 ``[tokens]``: the most likely token's logit minus the runner-up's."""
    space: Tensor
    """Buffer for logit differences, reused by every comparison: allocating it would cost as much as the product."""

    @classmethod
    def of(cls, reference: Reference, hidden: Tensor, head: nn.Linear) -> LastHidden:
        """Prepare a reference whose logits are ``head(hidden)``, ``hidden [..., hidden]``."""
        weight = head.weight.detach().to(torch.float32)
        flat = hidden.flatten(0, -2).to(torch.float32)
        best = reference.logits.topk(2, -1).values
        shape = min(len(flat), max(256, _PRODUCT_ELEMENTS // len(weight))), len(weight)
        return cls(
            reference,
            flat,
            functional.pad(weight, (0, 1), value=-1.0),
            reference.probabilities @ weight,
            best[:, 0] - best[:, 1],
            flat.new_empty(shape),
        )

    def compare(self, hidden: Tensor) -> TokenStats:
        """Compare a variant's hidden states ``[..., hidden]`` with the reference's.

        Raises:
            MeasurementError: the hidden states are not finite, or have another shape.
        """
        flat = hidden.flatten(0, -2).to(torch.float32)
        if flat.shape != self.hidden.shape:
            msg = f"hidden states of shape {tuple(flat.shape)} cannot be compared with {tuple(self.hidden.shape)}"
            raise MeasurementError(msg)
        difference = flat - self.hidden
        mean = (self.mean * difference).sum(-1)
        augmented = torch.cat([difference, mean.unsqueeze(-1)], -1)
        parts = [self._compare(start, part) for start, part in _pieces(augmented, len(self.space))]
        kl, label_shift, same_top = (torch.cat(part) for part in zip(*parts, strict=True))
        known = self.reference.labels >= 0
        # log Z grows by the mean and the KL, the label's logit by the mean and its own shift
        more = (kl - label_shift.to(kl.dtype))[known].cpu().to(torch.float64)
        return TokenStats.checked(kl, same_top, self.reference.nll + more)

    def _compare(self, start: int, augmented: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """KL, the label's centered shift, and whether the top token is unchanged, for tokens from ``start`` on."""
        shifts = torch.mm(augmented, self.rows.T, out=self.space[: len(augmented)])
        tokens = slice(start, start + len(augmented))
        top, labels = self.reference.top[tokens], self.reference.labels[tokens].clamp(min=0)
        totals, highest = [], []
        terms = shifts.new_empty(cache_rows(shifts), shifts.shape[-1])
        for first, part in _pieces(shifts, len(terms)):
            probabilities = self.reference.probabilities[start + first : start + first + len(part)]
            highest.append(part.amax(-1))
            totals.append(torch.linalg.vecdot(probabilities, excess(part, highest[-1], terms[: len(part)])))
        total = torch.cat(totals).clamp(min=0)
        own = shifts.gather(-1, top.unsqueeze(-1)).squeeze(-1)
        same_top = torch.cat(highest) - own <= self.margin[tokens]
        for doubtful in (~same_top).nonzero().flatten().split(cache_rows(shifts)):
            # some logit grew by more than the margin, but it need not be the runner-up's
            logits = self.reference.logits[start + doubtful] + shifts[doubtful]
            best = logits.gather(-1, top[doubtful].unsqueeze(-1)).squeeze(-1)
            same_top[doubtful] = best >= logits.amax(-1)
        label_shift = shifts.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        return torch.log1p(total.to(wide(total))), label_shift, same_top


def _pieces(values: Tensor, rows: int) -> list[tuple[int, Tensor]]:
    return [(start, values[start : start + rows]) for start in range(0, len(values), rows)]
