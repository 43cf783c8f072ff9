"""Times and weighs `qplan analyze` and `qplan emit` on a model with the shape of Qwen2.5-0.5B and random weights.

Run with ``python -m reports.scale.run --work FOLDER``, which takes an hour and a half on two cores and 12 GB of disk.
What the model says is meaningless, and so are the losses; shapes, files, seconds and memory are those of the real one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import psutil
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import qplan.demo
from qplan.artifact import versions
from qplan.model.load import load_model

HOME = Path(__file__).parent
EMBEDDED = Path(qplan.demo.__file__).parent / "stdlib-3m"
ROWS, SEQ_LEN = 16, 256
"""Shape of the calibration, as `qplan analyze` has it by default."""

ANALYZE = ("--mode", "gradient", "--formats", "fp16,int8,int6,int4", "--fit-tokens", "8192")
EMIT = ("--budget", "int4", "--tokens", "512")


def make_model(folder: Path) -> None:
    """Qwen2.5-0.5B's configuration, as its model card gives it, with random weights in bfloat16."""
    if (folder / "model.safetensors").is_file():
        return
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
    )
    model: Any = Qwen2ForCausalLM(config)
    model.to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.5)
        elif "embed" in name:  # logits as far apart as a trained model's
            parameter.data.mul_(2.5)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / name, folder)


def passes(folder: Path) -> dict[str, float]:
    """Wall-clock seconds of a forward pass over the calibration, and of a forward and backward pass."""
    loaded = load_model(str(folder))
    tokens = torch.randint(0, 8192, (1, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    loaded.logits(tokens)
    start = time.monotonic()
    loaded.logits(tokens)
    forward = time.monotonic() - start
    embedded = loaded.embedding(tokens).requires_grad_()
    with torch.enable_grad():
        start = time.monotonic()
        loaded.model(inputs_embeds=embedded, use_cache=False).logits.logsumexp(-1).sum().backward()
        both = time.monotonic() - start
    return {"forward_s": ROWS * forward, "forward_and_backward_s": ROWS * both}


@dataclass
class Stage:
    """A part of a command, between two of the lines it prints."""

    name: str
    seconds: float = 0.0
    peak_bytes: int = 0
    """Peak resident bytes of the command and its children."""


@dataclass
class Watch:
    """Follows a command: the lines that it prints, and its memory."""

    stages: list[Stage] = field(default_factory=lambda: [Stage("starting")])
    ended: bool = False

    def follow(self, process: subprocess.Popen[str]) -> None:
        """Sample the memory until the command ends."""
        root = psutil.Process(process.pid)
        while not self.ended:
            held = 0
            for one in [root, *_children(root)]:
                try:
                    held += one.memory_info().rss
                except psutil.Error:
                    continue
            self.stages[-1].peak_bytes = max(self.stages[-1].peak_bytes, held)
            time.sleep(0.5)


def _children(root: psutil.Process) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = root.children(recursive=True)
    except psutil.Error:
        return []
    return found


def follow(command: list[str], folder: Path) -> list[Stage]:
    """Run a command, which must succeed; returns its stages."""
    print("$", " ".join(command), flush=True)
    watch = Watch()
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        sampler = threading.Thread(target=watch.follow, args=(process,))
        sampler.start()
        began = time.monotonic()
        for line in process.stderr or ():
            print(line, end="", flush=True)
            if line.startswith("· "):
                now = time.monotonic()
                watch.stages[-1].seconds = now - began
                began = now
                watch.stages.append(Stage(re.sub(r"\s+", " ", line[2:].strip())))
        process.wait()
        watch.stages[-1].seconds = time.monotonic() - began
        watch.ended = True
        sampler.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return [stage for stage in watch.stages if stage.seconds >= 0.5]


def disk(folder: Path) -> dict[str, int]:
    """Bytes of every file or folder in a run folder."""
    parts = {path.name: [path] if path.is_file() else [*path.rglob("*")] for path in sorted(folder.iterdir())}
    return {name: sum(part.stat().st_size for part in held if part.is_file()) for name, held in parts.items()}


def main() -> None:
    """Measure, write ``results.json`` and ``README.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the model and the run")
    options = parser.parse_args()
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    make_model(work / "random-0.5B")
    results: dict[str, Any] = {
        "python": platform.python_version(),
        "versions": versions(),
        "processors": len(os.sched_getaffinity(0)),
        "passes": passes(work / "random-0.5B"),
        "commands": {},
    }
    program = str(Path(sys.executable).with_name("qplan"))
    for name, arguments in (
        ("analyze", ("random-0.5B", "--calib", "python-stdlib", "--run", "run", *ANALYZE)),
        ("emit", ("--run", "run", *EMIT)),
    ):
        stages = follow([program, name, *arguments], work)
        results["commands"]["qplan " + " ".join((name, *arguments))] = [vars(stage) for stage in stages]
        results["disk_bytes"] = disk(work / "run")
        (HOME / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (HOME / "README.md").write_text(page(results), encoding="utf-8")


def page(results: dict[str, Any]) -> str:
    """The benchmark's page."""
    forward, both = (results["passes"][name] for name in ("forward_s", "forward_and_backward_s"))
    lines = [
        "# What a model of half a billion weights takes",
        "",
        "Written by `python -m reports.scale.run --work FOLDER`, from `results.json`: Qwen2.5-0.5B's shape (494",
        "million weights, 24 layers, a vocabulary of 151,936, tied) with random weights. Wall time in seconds on a",
        f"shared machine with {results['processors']} processors and in multiples of a forward and backward pass over",
        f"the {ROWS * SEQ_LEN:,} calibration tokens, {both:.0f} s in the same run (forward alone: {forward:.0f} s).",
        "Memory is the peak of the command and its children, including the FP32 weights (1.98 GB). Each stage is named",
        "after the line that is printed when it begins.",
    ]
    for command, stages in results["commands"].items():
        total, peak = sum(stage["seconds"] for stage in stages), max(stage["peak_bytes"] for stage in stages)
        lines += ["", f"## {command.split()[1]}", "", "```sh", command, "```", ""]
        lines += ["| stage | seconds | passes | peak, GB |", "|---|---:|---:|---:|"]
        rows = [
            (shorten(s["name"].replace("|", "/"), 72, placeholder=" ..."), s["seconds"], s["peak_bytes"])
            for s in stages
        ] + [("**all**", total, peak)]
        lines += [
            f"| {name} | {seconds:.0f} | {seconds / both:.1f} | {held / 1e9:.1f} |" for name, seconds, held in rows
        ]
    lines += ["", "## On disk", "", "| in the run folder | GB |", "|---|---:|"]
    lines += [f"| `{name}` | {size / 1e9:.2f} |" for name, size in results["disk_bytes"].items() if size >= 5e6]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
