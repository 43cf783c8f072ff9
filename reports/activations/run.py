"""Losses and speeds of MNN's two settings of ``dynamic_option``: in torch's emulation and on the engine, memory low.

    python reports/activations/run.py --model ../shared/models/qwen2-8m --text ../shared/data/wikitext2/test.txt

Without arguments: the embedded model. Writes ``<model>.md`` beside this file.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import qplan.demo
from qplan.artifact import versions
from qplan.formats import QuantFormat
from qplan.mnn.build.exporter import export_skeleton
from qplan.mnn.build.skeleton import Skeleton
from qplan.mnn.build.writer import build_model
from qplan.mnn.engine.session import EngineSession
from qplan.mnn.runtime import RuntimeConfig
from qplan.model.load import LoadedModel, load_model
from qplan.rounding import EnginePath, Int8Activations
from qplan.rounding.rounder import Rounder
from qplan.sensitivity.joint import joint_losses
from qplan.sensitivity.kept_logits import KeptLogits, kept_logits
from qplan.settings import DynamicOption
from qplan.verify.measure import Trial
from qplan.verify.turns import Contestant, speeds_in_turns

HOME = Path(qplan.demo.__file__).parent
HEAD = (
    "| all linears | option | path | engine, nats | torch, nats | torch / engine | tokens/s |",
    "|---|---|---|---:|---:|---:|---:|",
)
OPTIONS: tuple[DynamicOption, ...] = (0, 2)
PATHS: tuple[EnginePath, ...] = ("prefill", "decode")


def main() -> None:
    """Measure a model and write its page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(HOME / "stdlib-3m"))
    parser.add_argument("--text", type=Path, default=HOME / "heldout.txt")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens to measure on, in rows of 128")
    parser.add_argument("--formats", default="int8,int4,int8-b32,int4-b32,int8-b0")
    options = parser.parse_args()
    loaded = load_model(options.model)
    ids = loaded.tokenizer(options.text.read_text(encoding="utf-8")[: 20 * options.tokens])["input_ids"]
    rows = np.array(ids[: options.tokens // 128 * 128], dtype=np.int64).reshape(-1, 128)
    name = Path(options.model).name
    about = (
        f"KL to FP32 over {rows.size} tokens of {options.text.name}, rounded to nearest, one thread, MNN "
        f"{versions()['MNN']}. Option 0: one scale per token; 2: one per token and block of the weights."
    )
    lines = [
        f"# int8 activations of {name}",
        "",
        about,
        "",
        *HEAD,
    ]
    with tempfile.TemporaryDirectory() as folder, kept_logits(loaded, rows) as reference:
        skeleton = export_skeleton(loaded.folder, Path(folder) / "skeleton")
        for fmt in options.formats.split(","):
            lines += rows_of(loaded, skeleton, reference, QuantFormat.parse(fmt), Path(folder) / "model")
    (Path(__file__).parent / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def rows_of(
    loaded: LoadedModel, skeleton: Skeleton, reference: KeptLogits, fmt: QuantFormat, folder: Path
) -> Iterator[str]:
    """Rows of one format: both options, prefill and decode."""
    formats = {spec.name: fmt.resolve(spec.in_features) for spec in loaded.card.tensors}
    build_model(skeleton, loaded.card.tensors, formats, Rounder(loaded).store, folder, replace=True)
    contestants = [Contestant("model", folder, formats, option) for option in OPTIONS]
    speeds = speeds_in_turns(contestants, Trial(reference), loaded.card.context)
    for option in OPTIONS:
        with EngineSession(folder, RuntimeConfig(dynamic_option=option)) as engine:
            measured = [reference.compare(logits).kl_nats for logits in (engine.logits, engine.logits_stepwise)]
        speed = speeds["model", option]
        rates = (speed.prefill_tokens_per_s, speed.decode_tokens_per_s)
        for path, found, rate in zip(PATHS, measured, rates, strict=True):
            tokens, activations = torch.from_numpy(reference.rows), Int8Activations(path, option)
            joint = joint_losses(loaded, tokens, {"": formats}, "low", activations, engine_embedding=True)
            emulated = joint[""].kl_nats
            yield f"| {fmt} | {option} | {path} | {found:.3e} | {emulated:.3e} | {emulated / found:.3f} | {rate:,.0f} |"


if __name__ == "__main__":
    main()
