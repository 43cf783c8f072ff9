"""How far another model's logits are from the Hugging Face model's, token by token of a text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from qplan.sensitivity.kept_logits import KeptLogits, Logits
from qplan.sensitivity.metrics import compare, join, reference_of
from qplan.settings import Progress
from qplan.verify.folder import Agreement, Windows, perplexity_of, top_agreement


def agreement_with(
    reference: KeptLogits, judged: Windows, logits_of: Callable[[NDArray[np.int64]], Logits], progress: Progress
) -> tuple[list[NDArray[np.float64]], Agreement]:
    """Run a model over a text, and compare its logits with those of the Hugging Face model in FP32.

    Args:
        reference: what the latter says of the text's rows.
        judged: the text.
        logits_of: the model's logits of a row, such as `EngineSession.logits`.
        progress: called after each row.

    Returns:
        the model's negative log-likelihoods in nats, by row, and the comparison.

    Raises:
        ToolError: the engine failed.
        MeasurementError: logits that are not finite.
    """
    nll, theirs, parts, top = [], [], [], []
    for number, row in enumerate(judged.rows):
        part = judged.judged(number)
        expected, found = reference.of(slice(number, number + 1))[0].numpy(), logits_of(row)
        nll.append(judged.nll(found, number))
        theirs.append(judged.nll(expected, number))
        top.append(top_agreement(expected[part], found[part]))
        prepared = reference_of(torch.from_numpy(expected[part]), torch.from_numpy(row[part]))
        parts.append(compare(prepared, torch.from_numpy(found[part])))
        progress(number + 1, len(judged.rows))
    stats = join(parts)
    return nll, Agreement(
        kl_nats=stats.kl_nats,
        kl_p99_nats=stats.kl_p99_nats,
        kl_p999_nats=float(torch.quantile(stats.kl, 0.999)),
        top1=stats.top1,
        top5=float(np.concatenate(top).mean()),
        reference_perplexity=perplexity_of(theirs),
    )
