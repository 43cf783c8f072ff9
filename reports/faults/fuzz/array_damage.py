"""Ways to damage tables and arrays: parquet and safetensors files that are read without complaint, and are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from reports.faults.fuzz.values import JSON
from reports.faults.fuzz.way import Way, changed, short


def columns() -> st.SearchStrategy[Way]:
    """A column of a table removed, retyped, or a value in it changed; rows removed or doubled."""

    def change(column: int, row: int, action: str, value: object) -> Way:
        def apply(path: Path) -> None:
            table = pq.read_table(path)
            name = table.column_names[column % table.numcolumns]
            at = row % max(1, table.num_rows)
            if action == "removed":
                table = table.dropcolumns([name])
            elif action == "row":
                table = pa.concat_tables([table.slice(0, at), table.slice(at + 1)])
            elif action == "twice":
                table = pa.concat_tables([table, table.slice(at, 1)])
            elif action == "null":
                table = table.set_column(table.column_names.index(name), name, pa.nulls(table.num_rows))
            elif action == "text":
                texts = [str(item) for item in table[name].to_pylist()]
                table = table.set_column(table.column_names.index(name), name, pa.array(texts))
            else:
                values = table[name].to_pylist()
                values[at] = value if isinstance(values[at], float) else values[at - 1]
                table = table.set_column(table.column_names.index(name), name, pa.array(values))
            pq.write_table(table, path)

        return f"column {column} {action} {value if action == 'value' else ''} row {row}", apply

    actions = st.sampled_from(["removed", "row", "twice", "null", "text", "value", "value"])
    return st.builds(change, st.integers(0, 20), st.integers(0, 5000), actions, st.floats())


def metadata_values() -> st.SearchStrategy[Way]:
    """What a table says about itself, changed."""

    def change(steps: list[int], action: str, value: object) -> Way:
        def apply(path: Path) -> None:
            table = pq.read_table(path)
            metadata = json.loads(table.schema.metadata[b"qplan"])
            text = json.dumps(changed(metadata, steps, action, value))
            pq.write_table(table.replace_schema_metadata({"qplan": text}), path)

        return f"metadata {steps} {action} {short(value)}", apply

    actions = st.sampled_from(["replaced", "replaced", "removed", "added"])
    return st.builds(change, st.lists(st.integers(0, 60), min_size=1, max_size=5), actions, JSON)


def arrays() -> st.SearchStrategy[Way]:
    """An array of a safetensors file removed, emptied, retyped, reshaped, or with a value that is no number."""

    def change(which: int, action: str, value: float) -> Way:
        def apply(path: Path) -> None:
            found = load_file(path)
            name = sorted(found)[which % len(found)]
            array = found[name].copy()
            if action == "removed":
                del found[name]
            elif action == "renamed":
                found[f"{name}.other"] = found.pop(name)
            elif action == "flat":
                found[name] = array.reshape(-1)
            elif action == "narrow":
                found[name] = np.ascontiguousarray(array[: max(1, len(array) // 2)])
            elif action == "float64":
                found[name] = array.astype(np.float64)
            else:
                with np.errstate(all="ignore"):
                    array.reshape(-1)[:1] = np.asarray(value).astype(array.dtype)
                found[name] = array
            save_file(found, path)

        return f"array {which} {action} {value if action == 'value' else ''}", apply

    actions = st.sampled_from(["removed", "renamed", "flat", "narrow", "float64", "value", "value"])
    return st.builds(change, st.integers(0, 40), actions, st.sampled_from([np.nan, np.inf, -1e30, 1e30, 0.0, 65504.0]))


def headers() -> st.SearchStrategy[Way]:
    """The header of a safetensors file, changed: offsets, shapes, types, names, its length."""

    def change(steps: list[int], action: str, value: object, size: int | None) -> Way:
        def apply(path: Path) -> None:
            data = path.read_bytes()
            length = int.from_bytes(data[:8], "little")
            header = json.dumps(changed(json.loads(data[8 : 8 + length]), steps, action, value)).encode()
            path.write_bytes(
                (len(header) if size is None else size).to_bytes(8, "little") + header + data[8 + length :]
            )

        return f"header {steps} {action} {short(value)} of size {size}", apply

    actions = st.sampled_from(["replaced", "replaced", "removed", "added"])
    sizes = st.sampled_from([None, None, None, 0, 1, 1 << 40, (1 << 64) - 1])
    return st.builds(change, st.lists(st.integers(0, 60), min_size=1, max_size=3), actions, JSON, sizes)
