"""Calibration text: where it comes from, and the token ids that everything is measured on."""

from qplan.calibration.door import check_text
from qplan.calibration.text import Text, load_text
from qplan.calibration.token_set import check_limits, tokenize
from qplan.calibration.tokenizer import check_chat_template, check_ids, start_of_text
from qplan.run.calibration import CalibrationSet

__all__ = [
    "CalibrationSet",
    "Text",
    "check_chat_template",
    "check_ids",
    "check_limits",
    "check_text",
    "load_text",
    "start_of_text",
    "tokenize",
]
