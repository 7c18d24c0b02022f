"""The roofline of the report: SVG, in a data URI, so that a page may hold those of several runs."""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from zonos2_triton.bench.specs.roofline import Roof

STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False, "font.size": 9}
MARKERS = "osD^vPX*<>hdp"


def roofline(kernels: Mapping[str, Sequence[tuple[float, float]]], measured: Roof, sheet: Roof) -> str:
    """kernels: FLOP per byte and TFLOP/s of each workload; both axes are logarithmic. ImportError: no matplotlib."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the report's plots need matplotlib: pip install 'zonos2-triton[report]'") from error
    with rc_context(STYLE):
        figure, out = Figure(figsize=(8.8, 4.6), layout="constrained"), io.StringIO()
        axes = figure.add_subplot(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP/s")
        for index, (kernel, points) in enumerate(kernels.items()):
            axes.plot(*zip(*points, strict=True), MARKERS[index % len(MARKERS)], markersize=5, label=kernel)
        low, high = axes.get_xlim()
        for roof, style in ((measured, "-"), (sheet, "--")):
            if roof.gb_per_s and roof.tflop_per_s:
                ridge = roof.tflop_per_s / roof.gb_per_s * 1e3
                x = sorted([low, ridge, max(high, 2 * ridge)])
                y = [min(each * roof.gb_per_s / 1e3, roof.tflop_per_s) for each in x]
                axes.plot(x, y, style, color="black", linewidth=1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
        axes.grid(linewidth=0.4)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        figure.savefig(out, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{b64encode(out.getvalue().encode()).decode()}"
