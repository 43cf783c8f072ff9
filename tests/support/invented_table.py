"""A small invented model with a full sensitivity table: losses fall by 4 per bit and differ by tensor."""

from __future__ import annotations

import math
from dataclasses import replace

from qplan.card import ModelCard
from qplan.formats import FP16, QuantFormat
from qplan.run.measurement import Measurement
from qplan.run.table import Conditions, SensitivityTable
from qplan.tensors import Role, TensorSpec

FORMATS = ("fp16", "int8", "int6", "int4")


def _card(layers: int, hidden: int, inner: int, *, tied: bool) -> ModelCard:
    shapes = {
        "self_attn.q_proj": (Role.ATTENTION, hidden, hidden),
        "mlp.up_proj": (Role.MLP, inner, hidden),
        "mlp.down_proj": (Role.MLP, hidden, inner),
    }
    tensors = [
        TensorSpec(
            f"model.layers.{i}.{name}",
            f"/layers.{i}/{name.replace('.', '/')}/Linear",
            i,
            name.split(".")[1],
            *shape,
            bias=False,
        )
        for i in range(layers)
        for name, shape in shapes.items()
    ]
    tensors.append(
        TensorSpec("lm_head", "/lm/lm_head/Linear", None, "lm_head", Role.HEAD, 512, hidden, bias=False, tied=tied)
    )
    norms = (2 * layers + 1) * hidden
    embedding = 0 if tied else 512 * hidden
    parameters = sum(t.weights for t in tensors) + norms + embedding
    return ModelCard(
        "tiny", "c" * 64, "TinyForCausalLM", "tiny", parameters, 512, 128, tuple(tensors), embedding, norms
    )


def make_table(
    formats: tuple[str, ...] = FORMATS, *, layers: int = 4, hidden: int = 128, inner: int = 192, tied: bool = True
) -> SensitivityTable:
    card = _card(layers, hidden, inner, tied=tied)
    rows = []
    for index, spec in enumerate(card.tensors):
        # later tensors matter more, the head most; the ratios differ so that optima are unique
        weight = 1e-3 * math.exp(0.35 * index % 3.1) * (1 + 0.01 * index)
        for name in formats:
            fmt = QuantFormat.parse(name).resolve(spec.in_features)
            if spec.allows(fmt):
                loss = weight * 4.0 ** (4 - fmt.bits)
                rows.append(
                    Measurement(
                        *(spec.name, fmt.name, "normal", 0, 64),
                        kl_nats=loss,
                        kl_p99_nats=2 * loss,
                        top1=0.9,
                        nll_nats=3.0 + loss,
                        sqnr_db=6.0 * fmt.bits,
                    )
                )
    conditions = Conditions("normal", formats, 4, 16, 4, "invented", "d" * 64, 0)
    return SensitivityTable(card, conditions, 3.0, (), tuple(rows))


def with_parts(token: float, block: float, arm_block: float) -> SensitivityTable:
    """An invented table whose int8 activations add so many nats."""
    plain = make_table(("fp16", "int8", "int4"))
    rows = []
    for row in plain.measurements:
        if row.format == FP16.name:
            rows += [replace(row, memory=memory, half_nats=1e-6) for memory in ("low", "normal")]
            continue
        low = replace(row, memory="low", kl_nats=row.kl_nats + token)
        low = replace(low, token_nats=token, block_nats=block, arm_block_nats=arm_block)
        rows += [low, replace(row, memory="normal")]
    return replace(plain, conditions=replace(plain.conditions, memory="low"), measurements=tuple(rows))
