"""The sections of the report on kernels: the vocoder, rooflines, times beside other implementations, errors."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.report import plots
from zonos2_triton.bench.report.page import (
    NONE,
    Plot,
    Section,
    Table,
    factor,
    grouped,
    not_timed,
    number,
    problems,
    share,
    spread,
)
from zonos2_triton.bench.report.plots import Point
from zonos2_triton.bench.specs.gpus import recognised
from zonos2_triton.bench.specs.roofline import UNKNOWN, Roof
from zonos2_triton.bench.suite.results import Result, all_passed, beside, roof
from zonos2_triton.reference.vocoder_layers import OPERATIONS

DTYPES = ("bfloat16", "float16", "float32")
IMPLEMENTATIONS = ("reference", "compiled", "sdpa", "flash-attn", "flashinfer", "liger")
ABOUT_VOCODER = (
    "Clips, and steps of streams, of a 44.1 kHz codec with random weights. Agreement is signal to error against the "
    "same decoder in plain PyTorch at the same precision."
)
ABOUT_TIMES = (
    "Time of one call at the 8B model's shapes, in bf16. (×) is how many times as long another implementation takes: "
    "below 1 it is the quicker one. Shares are of the measured copy bandwidth and matrix rate, of the floor that both "
    "make, and of the floor by the card's data sheet."
)
ABOUT_ROOFS = (
    "What a kernel computes in a second over what it computes for each byte that it has to move. Circles are decoding, "
    "diamonds dense layers, squares prompts, triangles sound."
)
ABOUT_ERRORS = "RMS error against fp64, over plain PyTorch's at the same precision: 1 is as exact as PyTorch."


def vocoder(result: Result, prefix: str) -> Section:
    heads = ("work", "rows × frames", "median, µs", "20 to 80 %, µs", "seconds of audio per second", "TFLOP/s", "GB/s",
             "of floor", "agreement, dB", "activations, MB", "PyTorch eager, µs (×)",
             "torch.compile, µs (×)")  # fmt: skip
    found = all_passed(result, "vocoder")
    rows = [
        (name, f"{each['rows']} × {each['frames']}", number(each["median_us"]), spread(each),
         number(each["audio_s_per_s"]), number(each["tflop_per_s"]), number(each["gb_per_s"]),
         share(each.get("percent_of_floor")), number(each["agreement_db"]),
         NONE if each["activation_bytes"] is None else number(each["activation_bytes"] / 1e6), factor(each["eager"]),
         factor(each["compiled"]))
        for name, each in found.items()
    ]  # fmt: skip
    return Section(f"{prefix}-vocoder", "Vocoder", [ABOUT_VOCODER] if rows else (),
                   [Table.of("Vocoder", heads, rows)] if rows else (),
                   problems=[*problems(result, "vocoder"), *not_timed(found, ("eager", "compiled"))],
                   measured=bool(rows))  # fmt: skip


def rooflines(result: Result, prefix: str) -> Section:
    groups: dict[str, dict[str, list[Point]]] = {"backbone": {}, "vocoder": {}}
    for kernel, mine in _by_kernel(result).items():
        points = [
            Point(workload, each["flops"] / each["bytes"], each["flops"] / each["median_us"] / 1e6)
            for workload, each in mine.items()
            if each["flops"] and each["bytes"]
        ]
        if points:
            groups["vocoder" if kernel in OPERATIONS else "backbone"][kernel] = points
    drawn = [_roofline(result, of, panels, f"{prefix}-roofline-{of}") for of, panels in groups.items() if panels]
    return Section(f"{prefix}-roofline", "Roofline", [ABOUT_ROOFS] if drawn else (), plots=drawn, measured=bool(drawn))


def _roofline(result: Result, of: str, panels: Mapping[str, Sequence[Point]], name: str) -> Plot:
    measured, card = roof(result), recognised(result["environment"]["card"])
    sheet = card.roof if card else UNKNOWN
    rows = []
    for kernel, points in panels.items():
        for n, point in enumerate(points, 1):
            top = _under(measured, point.intensity)
            rows.append((f"{kernel} {n}", point.label, number(point.intensity), number(point.tflop_per_s), number(top),
                         share(100 * point.tflop_per_s / top if top else None)))  # fmt: skip
    drawn = {"solid: measured copy bandwidth and matrix rate": measured, "dashed: the card's data sheet": sheet}
    known = "; ".join(line for line, one in drawn.items() if one != UNKNOWN) or "none is known"
    title = f"Kernels of the {of} under the card's roofs"
    text = "TFLOP/s over FLOP per byte, both logarithmic, a panel for each kernel with its workloads by number."
    heads = ("kernel and number", "workload", "FLOP per byte", "TFLOP/s", "roof there, TFLOP/s", "of the roof")
    svg = plots.rooflines(panels, measured, sheet, name, title, text)
    return Plot(svg, f"{title}. Roofs, {known}.", Table.of(title, heads, rows))


def kernels(result: Result, prefix: str) -> Section:
    groups = _by_kernel(result)
    heads = ("workload", "median, µs", "20 to 80 %, µs", "GB/s", "TFLOP/s", "of copy", "of matmul", "of floor",
             "of data sheet", "cache, launch", *(f"{other}, µs (×)" for other in IMPLEMENTATIONS))  # fmt: skip
    tables, missing = [], []
    for kernel, mine in groups.items():
        rows = [
            (workload, number(each["median_us"]), spread(each), number(each["gb_per_s"]), number(each["tflop_per_s"]),
             *(share(each[f"percent_of_{of}"]) for of in ("copy", "matmul", "floor", "sheet")),
             f"{each['cache']}, {each['launch']}", *(factor(each["beside"].get(other)) for other in IMPLEMENTATIONS))
            for workload, each in mine.items()
        ]  # fmt: skip
        replaces = f": {KERNELS[kernel].replaces}" if kernel in KERNELS else ""
        tables.append(Table.of(f"{kernel}{replaces}", heads, rows))
        missing += [
            (f"{other}: {timed['not_timed']}", f"{kernel}/{workload}")
            for workload, each in mine.items()
            for other, timed in each["beside"].items()
            if "not_timed" in timed
        ]
    return Section(f"{prefix}-kernels", "Kernels", [ABOUT_TIMES] if tables else (), tables,
                   problems=[*problems(result, "timings"), *grouped(missing)], measured=bool(tables))  # fmt: skip


def errors(result: Result, prefix: str) -> Section:
    worst: dict[str, dict[str, tuple[float, str]]] = {}
    found = all_passed(result, "kernels")
    for name, each in found.items():
        kernel, workload, dtype = name.split("/")
        mine = worst.setdefault(kernel, {})
        mine[dtype] = max(mine.get(dtype, (-1.0, "")), (each["ratio"], workload))
    counts = [name.split("/")[0] for name in found]
    heads = ("kernel", "checks", *(head for dtype in DTYPES for head in (f"{dtype}, worst", "at")))
    rows = [
        (kernel, str(counts.count(kernel)), *(cell for dtype in DTYPES for cell in _ratio(worst[kernel].get(dtype))))
        for kernel in _in_order(worst)
    ]
    return Section(f"{prefix}-errors", "Errors", [ABOUT_ERRORS] if rows else (),
                   [Table.of("Error of each kernel, as a ratio", heads, rows)] if rows else (),
                   problems=[*problems(result, "kernels")], measured=bool(rows))  # fmt: skip


def _ratio(found: tuple[float, str] | None) -> tuple[str, str]:
    return (f"{found[0]:.3f}", found[1]) if found else (NONE, NONE)


def _by_kernel(result: Result) -> dict[str, Mapping[str, Any]]:
    """The timings, by kernel and workload, in the catalogue's order."""
    groups: dict[str, dict[str, Any]] = {}
    for name, each in all_passed(result, "timings").items():
        kernel, workload = name.split("/")
        groups.setdefault(kernel, {})[workload] = each | {"beside": beside(result, name)}
    ordered: dict[str, Mapping[str, Any]] = {}
    for kernel in _in_order(groups):
        mine, known = groups[kernel], [w.name for w in KERNELS[kernel].workloads] if kernel in KERNELS else []
        ordered[kernel] = {name: mine[name] for name in (*known, *mine) if name in mine}
    return ordered


def _in_order(names: Iterable[str]) -> list[str]:
    """Of the catalogue, then those that it does not know."""
    known = list(KERNELS)
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


def _under(card: Roof, intensity: float) -> float | None:
    """TFLOP/s that a roof allows."""
    rates = [intensity * card.gb_per_s / 1e3] if card.gb_per_s else []
    rates += [card.tflop_per_s] if card.tflop_per_s else []
    return min(rates, default=None)
