"""Time by range: the tree of nested ranges that a profiler saw, as rows to read.

Ranges of one name in one place count together, whatever their payload. On a GPU the time of a range is that of the
kernels and copies which were launched inside it; on a CPU it is the host's.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from zonos2_triton.bench.figures import engineering
from zonos2_triton.bench.specs.roofline import Roofline
from zonos2_triton.model.tables import text_table

CATEGORIES = ("model/", "kernel/", "codec/")
LAUNCHES, DEVICE = ("cuda_runtime", "cuda_driver"), ("kernel", "gpu_memcpy", "gpu_memset")  # categories of Kineto

HEADS = ("range", "count", "total ms", "mean us", "share %", "bytes", "floor us", "% of floor")

Path = tuple[str, ...]  # names, the outermost first
Work = tuple[float, float]  # bytes and floating-point operations of all calls of a range together


@dataclass
class Node:
    """A range in its place."""

    count: int = 0
    us: float = 0.0  # of all calls together
    children: dict[str, "Node"] = field(default_factory=dict)

    def child(self, name: str) -> "Node":
        return self.children.setdefault(name, Node())

    def walk(self, path: Path = ()) -> Iterator[tuple[Path, "Node"]]:
        """Every range below, in the order they first came."""
        for name, node in self.children.items():
            yield (*path, name), node
            yield from node.walk((*path, name))


def label(name: str, payload: int | None) -> str:
    """The name of a range in a trace."""
    return name if payload is None else f"{name} {payload}"


def bare(text: str) -> str | None:
    """The name in a label; None: it is no range of ours."""
    return text.partition(" ")[0] if text.startswith(CATEGORIES) else None


def of_trace(events: Iterable[Mapping[str, Any]], on_device: bool) -> Node:
    """The times of ranges, from the traceEvents of torch.profiler's Chrome trace. The ranges must be of one thread."""
    ranges = list[tuple[float, float, str | float]]()
    launches, busy = dict[Any, float](), dict[Any, float]()
    for event in events:
        kind, correlation = event.get("cat"), event.get("args", {}).get("correlation")
        if event.get("ph") != "X":
            continue
        if kind == "user_annotation" and (name := bare(event["name"])):
            ranges.append((event["ts"], -event["dur"], name))
        elif kind in LAUNCHES:
            launches[correlation] = event["ts"]
        elif kind in DEVICE:
            busy[correlation] = busy.get(correlation, 0.0) + event["dur"]
    # A launch goes behind the ranges that begin when it does.
    launched = [(launches[key], math.inf, us) for key, us in busy.items() if key in launches and on_device]
    root, open_ = Node(), list[tuple[float, Node]]()
    for start, order, what in sorted([*ranges, *launched], key=lambda entry: entry[:2]):
        while open_ and open_[-1][0] <= start:
            open_.pop()
        if isinstance(what, float):
            for _, node in open_:
                node.us += what
            continue
        node = (open_[-1][1] if open_ else root).child(what)
        node.count += 1
        node.us += 0.0 if on_device else -order
        open_.append((start - order, node))
    return root


def rows(root: Node, work: Mapping[Path, Work], roofline: Roofline) -> list[dict[str, Any]]:
    """A dictionary for each range; bytes and floor are those of one call, null where they are not known.

    work: by path, of all calls of a range together.
    """
    whole, found = sum(node.us for node in root.children.values()), []
    for path, node in root.walk():
        calls, total = max(node.count, 1), work.get(path)
        mean = node.us / calls
        floor = None if total is None else roofline.floor_us(*(part / calls for part in total))
        row: dict[str, Any] = {"range": path[-1], "path": list(path), "count": node.count}
        row |= {"total_us": round(node.us, 3), "mean_us": round(mean, 3)}
        row["share"] = round(100 * node.us / whole, 2) if whole else None
        row["bytes"] = None if total is None else round(total[0] / calls)
        row["floor_us"] = None if floor is None else round(floor, 3)
        row["pct_floor"] = None if floor is None or not mean else round(100 * floor / mean, 3)
        found.append(row)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """The rows for a person to read."""
    lines = [HEADS]
    for row in found:
        name, moved = "  " * (len(row["path"]) - 1) + row["range"], row["bytes"]
        times = f"{row['total_us'] / 1e3:.3f}", f"{row['mean_us']:.1f}", _number(row["share"])
        floors = _number(row["floor_us"]), _number(row["pct_floor"])
        lines.append((name, str(row["count"]), *times, "" if moved is None else engineering(moved, "B"), *floors))
    return text_table(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
