"""The graph's ranges of the weight file against its size and against each other."""

from __future__ import annotations

from collections.abc import Iterator

from qplan.mnn.files import GRAPH_FILE
from qplan.mnn.graph.binary import LAYER_NORM, GraphNode
from qplan.mnn.preflight.finding import COPY_AGAIN, EXPORT_AGAIN, GARBAGE, Finding, error, warning
from qplan.mnn.preflight.model import ModelFolder
from qplan.mnn.preflight.tie import lookup_range


def check_ranges(model: ModelFolder) -> Iterator[Finding]:
    """Every byte that an op reads must be there, and belong to one op."""
    if model.graph is None or not model.weight_path.is_file():
        return
    size, file = model.weight_bytes, model.weight_path.name
    ranges: list[tuple[int, int, str]] = []
    beyond: list[tuple[str, int]] = []
    for node in model.graph.all_nodes:
        yield from _lengths(node)
        for external in node.externals:
            start, end = external[0], external[0] + sum(external[1:])
            if min(external) < 0:
                what = f"its range of the weight file is {list(external)}"
                yield error("bad-range", f"{GRAPH_FILE}, {node.name}", what, "a crash or " + GARBAGE, EXPORT_AGAIN)
            elif end > size:
                beyond.append((node.name, end))
            elif end > start:
                ranges.append((start, end, node.name))
    if beyond:
        last = max(end for _, end in beyond)
        what = f"{size:,} bytes, the graph reads up to byte {last:,}: {len(beyond)} ops, first {beyond[0][0]}"
        yield error("weights-cut", file, what, f"a crash, or {GARBAGE}", COPY_AGAIN)
    yield from _overlaps(sorted(set(ranges)), file)
    looked_up = lookup_range(model)
    claimed = [part[:2] for part in ranges] + ([looked_up] if looked_up is not None else [])
    unclaimed, first = _gaps(claimed, size)
    if unclaimed and not beyond:
        what = f"{unclaimed:,} of its {size:,} bytes, from byte {first:,}, belong to no op"
        effect = "nothing reads them; a bias that an op lost, or a weight file of another model, looks like this too"
        yield warning("weights-unclaimed", file, what, effect, "compare the folder with the one it was copied from")


def _gaps(claimed: list[tuple[int, int]], size: int) -> tuple[int, int]:
    """Bytes of a file that lie in none of the ranges, and where the first of them lies."""
    unclaimed, first, reached = 0, size, 0
    for start, end in [*sorted(claimed), (size, size)]:
        if start > reached:
            unclaimed, first = unclaimed + start - reached, min(first, reached)
        reached = max(reached, end)
    return unclaimed, first


def _lengths(node: GraphNode) -> Iterator[Finding]:
    """Ranges that hold nothing, or that can't be what the op needs."""
    where, crash = f"{GRAPH_FILE}, {node.name}", "a crash (SIGSEGV, SIGFPE), or " + GARBAGE
    if not node.has_weights:
        yield error("bad-range", where, "it names no weights", crash, EXPORT_AGAIN)
    for external in node.externals:
        if not any(external[1:2]):
            what = f"its range of the weight file is {list(external)}: a length of 0"
            yield error("bad-range", where, what, crash, EXPORT_AGAIN)
        elif node.type == LAYER_NORM and len(set(external[1:3])) > 1:
            what = f"its factors and offsets take {external[1]:,} and {external[2]:,} bytes; a norm has as many of both"
            yield error("bad-range", where, what, crash, EXPORT_AGAIN)


def _overlaps(ranges: list[tuple[int, int, str]], file: str) -> Iterator[Finding]:
    """Neighbors that share bytes, unless they share all of them, as ops with equal weights do."""
    furthest: tuple[int, int, str] | None = None
    found = []
    for part in ranges:
        if furthest is not None and part[0] < furthest[1] and part[:2] != furthest[:2]:
            found.append((furthest, part))
        if furthest is None or part[1] > furthest[1]:
            furthest = part
    if found:
        (_, end, name), (start, _, other) = found[0]
        what = f"{name} ends at byte {end:,}, {other} starts at {start:,}; {len(found)} pairs of ops overlap"
        yield error("weights-overlap", file, what, GARBAGE, EXPORT_AGAIN)
