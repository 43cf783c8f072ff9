"""Ways to damage JSON: values of other types and ranges, keys removed and added, numbers that nobody can read."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import strategies as st

from reports.faults.fuzz.values import JSON, LONG_NUMBER
from reports.faults.fuzz.way import Way, changed, short


def raw_json() -> st.SearchStrategy[Way]:
    """Texts that take the place of a whole file, or of a number in it."""

    def number(path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        at = next((i for i, c in enumerate(text) if c.isdigit() and text[i - 1] in " :["), None)
        if at is not None:
            path.write_text(text[:at] + LONG_NUMBER + text[at:])

    whole = st.one_of(JSON, st.just([]), st.just({})).map(
        lambda value: (f"all of it {short(value)}", lambda path: path.write_text(json.dumps(value)))
    )
    return st.one_of(whole, st.just(("a number of 5,000 digits", number)))


def values() -> st.SearchStrategy[Way]:
    """A value somewhere in the file replaced, removed, or added; in a jsonl, in one of its lines."""

    def change(steps: list[int], action: str, value: object) -> Way:
        def apply(path: Path) -> None:
            try:
                lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text()]
                at = steps[-1] % len(lines)
                document = json.loads(lines[at])
                lines[at] = json.dumps(changed(document, steps, action, value), ensure_ascii=False)
                path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")
            except (OSError, ValueError, ZeroDivisionError):  # damaged before
                return

        return f"value {steps} {action} {short(value) if action != 'removed' else ''}", apply

    actions = st.sampled_from(["replaced", "replaced", "replaced", "removed", "added"])
    return st.builds(change, st.lists(st.integers(0, 60), min_size=1, max_size=6), actions, JSON)
