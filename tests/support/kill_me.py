"""Run by test_journal.py: analyzes a tiny model, slowly enough to be killed, with a journal."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from qplan.formats import parse_formats
from qplan.model.load import load_model
from qplan.run.calibration import CalibrationSet
from tests.support.whole_tables import measured_table


def main() -> None:
    model, calibration, journal, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    measured_table(
        load_model(model),
        CalibrationSet.read(Path(calibration)),
        parse_formats("int8,int4"),
        batch_size=4,
        journal=Path(journal),
        progress=lambda _done, _total: time.sleep(0.05),
    )


if __name__ == "__main__":
    main()
