"""Predicted against measured decode and prefill time of plans: does a device profile keep its promise of 10 %?

Run with ``python -m reports.planner.profile RUN`` after ``qplan profile --run RUN``, on a machine that is as idle as
possible; writes ``profile-<model>.json`` and ``.md`` beside this file. Plans are random mixes of the table's
formats, half of them near 4 bits, half over all widths; none of them was timed for the profile. The run of
``random-0.5B`` is the one that ``reports.scale.run`` leaves, profiled with ``--rounds 1``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from qplan.formats import QuantFormat
from qplan.jobs.options import ProfileOptions
from qplan.jobs.profile import measure_times
from qplan.mnn.build.skeleton import Skeleton
from qplan.run.folder import RunFolder
from qplan.run.profile import DeviceProfile
from qplan.run.table import SensitivityTable

PLANS = 10


def mixes(table: SensitivityTable) -> dict[str, dict[str, QuantFormat]]:
    """Random plans by name."""
    random = np.random.default_rng(1)
    found = {}
    for index in range(PLANS):
        likely = {4: 6.0, 3: 2.0, 8: 2.0, 16: 0.3} if index % 2 else {16: 0.5}
        formats = {}
        for spec in table.model.tensors:
            menu = table.formats_of(spec.name)
            weights = np.array([likely.get(fmt.bits, 1.0) for fmt in menu])
            formats[spec.name] = menu[int(random.choice(len(menu), p=weights / weights.sum()))]
        found[f"mix {index + 1}"] = formats
    return found


def main(run: RunFolder) -> None:
    """Time the mixes and write the table."""
    table, profile = SensitivityTable.read(run.sensitivity), DeviceProfile.read(run.device)
    plans, options = mixes(table), ProfileOptions(threads=profile.threads, prompt_tokens=profile.prompt_tokens)
    with tempfile.TemporaryDirectory() as scratch:
        times = measure_times(
            table.model,
            Skeleton.open(run.skeleton_for()[0]),
            plans,
            table.goal,
            scratch=Path(scratch) / "models",
            options=options,
            say=lambda text: print(text, file=sys.stderr),
        )
    rows: list[dict[str, float]] = []
    for name, formats in plans.items():
        prefill, decode = profile.predict(table.model, formats)
        bits = sum(formats[s.name].bits * s.weights for s in table.model.tensors)
        rows.append(
            {
                "mean_bits": bits / sum(s.weights for s in table.model.tensors),
                "decode_ms": min(time.decode_ms for time in times[name]),
                "decode_predicted_ms": decode,
                "prefill_ms": min(time.prefill_ms for time in times[name]),
                "prefill_predicted_ms": prefill,
            }
        )
    model = table.model.source.rstrip("/").rpartition("/")[2]
    here = Path(__file__).parent
    document = {"machine": profile.machine, "engine": profile.engine, "threads": profile.threads, "plans": rows}
    (here / f"profile-{model}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"# Predicted against measured times of {model}",
        "",
        (
            f"`python -m reports.planner.profile RUN`; {profile.machine}, MNN {profile.engine}, "
            f"{profile.threads} thread, memory {profile.memory}, prefill of {profile.prompt_tokens} tokens; "
            "minima of the thread's processor time."
        ),
        "",
        "| plan | bits | decode, ms | predicted | error | prefill, ms | predicted | error |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    errors: dict[str, list[float]] = {"decode": [], "prefill": []}
    for name, row in zip(plans, rows, strict=True):
        cells = [name, f"{row['mean_bits']:.2f}"]
        for kind, found in errors.items():
            real, said = row[f"{kind}_ms"], row[f"{kind}_predicted_ms"]
            found.append(said / real - 1)
            cells += [f"{real:.3f}", f"{said:.3f}", f"{found[-1]:+.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    worst = ", ".join(f"{kind} {max(map(abs, found)):.1%}" for kind, found in errors.items())
    lines += ["", f"Largest error: {worst}.", ""]
    (here / f"profile-{model}.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main(RunFolder(Path(sys.argv[1])))
