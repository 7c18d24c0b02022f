"""Plots of the report as pictures of their own, so that a page may hold several: SVG, in a data URI."""

import io
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from zonos2_triton.bench.specs.roofline import Roof

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,
    "font.size": 9,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
MARKERS = "osD^vPX*<>hdp"
INK = "#222"
Points = Sequence[tuple[float, float]]


class Plot(NamedTuple):
    """A picture, and what it shows."""

    uri: str
    title: str


def roofline(kernels: Mapping[str, Points], measured: Roof, sheet: Roof, title: str) -> Plot:
    """kernels: FLOP per byte and TFLOP/s of each workload; both axes are logarithmic."""
    with _figure("FLOP per byte", "TFLOP/s") as (axes, out):
        for index, (kernel, points) in enumerate(kernels.items()):
            axes.plot(*zip(*points, strict=True), MARKERS[index % len(MARKERS)], markersize=5, label=kernel)
        low, high = axes.get_xlim()
        for roof, style in ((measured, "-"), (sheet, "--")):
            if roof.gb_per_s and roof.tflop_per_s:
                ridge = roof.tflop_per_s / roof.gb_per_s * 1e3
                x = sorted([low, ridge, max(high, 2 * ridge)])
                y = [min(each * roof.gb_per_s / 1e3, roof.tflop_per_s) for each in x]
                axes.plot(x, y, style, color=INK, linewidth=1)
    return Plot(_uri(out), title)


def curves(lines: Mapping[str, Points], title: str) -> Plot:
    """Microseconds of a frame over the number of streams."""
    with _figure("streams", "µs per frame") as (axes, out):
        for index, (label, points) in enumerate(lines.items()):
            if points:
                style = ":" if label == "floor" else f"{MARKERS[index]}-"
                axes.plot(*zip(*points, strict=True), style, label=label)
        ticks = sorted({x for points in lines.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    return Plot(_uri(out), title)


@contextmanager
def _figure(xlabel: str, ylabel: str) -> Iterator[tuple[Any, io.StringIO]]:
    """Logarithmic axes to draw on, and where the picture is after the block. ImportError: no matplotlib."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the report's plots need matplotlib: pip install 'zonos2-triton[report]'") from error
    with rc_context(STYLE):
        figure, out = Figure(figsize=(8.8, 4.6), layout="constrained"), io.StringIO()
        axes = figure.add_subplot(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
        yield axes, out
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(out, format="svg", metadata={"Date": None})


def _uri(picture: io.StringIO) -> str:
    return f"data:image/svg+xml;base64,{b64encode(picture.getvalue().encode()).decode()}"
