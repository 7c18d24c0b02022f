"""Time by range: the tree of nested ranges that a profiler saw, as rows to read.

Ranges of one name in one place count together, whatever their payload. On a GPU the time of a range is that of the
kernels and copies which were launched inside it; on a CPU it is the host's.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from zonos2_triton.bench.specs.roofline import Roof

CATEGORIES = ("model/", "kernel/", "codec/")
LAUNCHES, DEVICE = ("cuda_runtime", "cuda_driver"), ("kernel", "gpu_memcpy", "gpu_memset")  # categories of Kineto

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
    """What a trace calls a range."""
    return name if payload is None else f"{name} {payload}"


def bare(text: str) -> str | None:
    """The name in a label; None: it is no range of ours."""
    return text.partition(" ")[0] if text.startswith(CATEGORIES) else None


def of_trace(events: Iterable[Mapping[str, Any]], on_device: bool) -> Node:
    """Of the traceEvents of torch.profiler's Chrome trace. The ranges must be of one thread."""
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


def of_hatchet(tree: Mapping[str, Any]) -> Node:
    """Of the tree that Proton writes, whose ranges were given a metric `calls`."""
    node = Node(int(tree["metrics"].get("calls", 0)), tree["metrics"].get("time (ns)", 0) / 1e3)
    for child in tree["children"]:
        below, name = of_hatchet(child), bare(child["frame"]["name"])
        node.us += below.us
        if name is not None:
            node.children[name] = below
    return node


def rows(
    root: Node, work: Mapping[Path, Work], roof: Roof, outermost: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """A dictionary for each range; bytes and floor are those of one call, null where nobody has counted them.

    work: by path, of all calls of a range together; a range that is not there has the sum of those in it.
    outermost: ranges that make the whole, where the tree does not tell.
    """
    whole = sum(node.us for name, node in root.children.items() if outermost is None or name in outermost)
    found = []
    for path, node in root.walk():
        calls, total = max(node.count, 1), _work(node, path, work)
        mean = node.us / calls
        moved, flops = (None, None) if total is None else (part / calls for part in total)
        floor = None if moved is None or flops is None else roof.floor_us(moved, flops)
        found.append(
            {
                "range": path[-1], "path": list(path), "count": node.count, "total_us": round(node.us, 3),
                "mean_us": round(mean, 3), "share": round(100 * node.us / whole, 2) if whole else None,
                "bytes": _rounded(moved), "floor_us": _rounded(floor, 3),
                "percent_of_floor": _rounded(100 * floor / mean, 3) if floor is not None and mean else None,
            }
        )  # fmt: skip
    return found


def _rounded(value: float | None, digits: int | None = None) -> float | None:
    return None if value is None else round(value, digits)


def _work(node: Node, path: Path, work: Mapping[Path, Work]) -> Work | None:
    if path in work:
        return work[path]
    parts = [_work(child, (*path, name), work) for name, child in node.children.items()]
    known = [part for part in parts if part is not None]
    return (sum(moved for moved, _ in known), sum(flops for _, flops in known)) if known else None


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "range": lambda row: "  " * (len(row["path"]) - 1) + row["range"],
    "count": lambda row: str(row["count"]),
    "total ms": lambda row: f"{row['total_us'] / 1e3:.3f}",
    "mean us": lambda row: f"{row['mean_us']:.1f}",
    "share %": lambda row: _number(row["share"]),
    "bytes": lambda row: _bytes(row["bytes"]),
    "floor us": lambda row: _number(row["floor_us"]),
    "% of floor": lambda row: _number(row["percent_of_floor"]),
}


def table(found: list[dict[str, Any]]) -> str:
    """The rows for a person to read."""
    lines = [tuple(COLUMNS), *(tuple(show(row) for show in COLUMNS.values()) for row in found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _bytes(value: int | None) -> str:
    if value is None:
        return ""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value} B"
