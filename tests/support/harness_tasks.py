"""Tasks in lm-evaluation-harness's own format, on small local data."""

from __future__ import annotations

import json
from pathlib import Path

import qplan.demo

CHOICE = """\
output_type: multiple_choice
doc_to_text: "{{context}}"
target_delimiter: ""
doc_to_choice: choices
doc_to_target: 0
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
LETTERS = """\
output_type: multiple_choice
doc_to_text: "{{context}} Answer:"
doc_to_choice: [A, B, C, D]
doc_to_target: 1
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
ROLLING = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
"""
UNTIL = """\
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
TASKS = {"choice": CHOICE, "letters": LETTERS, "rolling": ROLLING, "until": UNTIL}


def write_tasks(folder: Path, count: int = 6) -> Path:
    """Write task files ``qplan_choice``, ``qplan_letters``, ``qplan_rolling`` and ``qplan_until`` with their data."""
    text = (Path(qplan.demo.__file__).parent / "heldout.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if len(line) > 40][:count]
    data: dict[str, list[dict[str, object]]] = {
        "choice": [
            {"context": line[:30], "choices": [line[30:], lines[place - 1][30:], lines[place - 3][30:]]}
            for place, line in enumerate(lines)
        ],
        "letters": [{"context": line} for line in lines],
        "rolling": [{"text": text[900 * place : 900 * (place + 1)]} for place in range(2)],
        "until": [{"context": line[:30], "answer": line[30:]} for line in lines[:3]],
    }
    for name, body in TASKS.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in data[name]), encoding="utf-8")
        head = f"task: qplan_{name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {path}}}}}\n"
        (folder / f"{name}.yaml").write_text(f"{head}test_split: test\n{body}", encoding="utf-8")
    return folder
