"""Plots as SVG for a page: text is text, colours are the page's, nothing rests on colour alone."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from itertools import accumulate
from typing import Any, NamedTuple

from zonos2_triton.bench.report.waterfall import Waterfall
from zonos2_triton.bench.specs.roofline import Roof

# Colours that matplotlib writes, and what the page has in their place: it knows whether it is dark, or on paper.
INK, RULE, PAPER, FIRST, SECOND = "#010203", "#010204", "#010205", "#010206", "#010207"
CSS = {INK: "currentColor", RULE: "var(--rule)", PAPER: "var(--paper)", FIRST: "var(--first)", SECOND: "var(--second)"}
STYLE: Any = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "text.color": INK, "text.parse_math": False,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.grid": True,
    "grid.color": RULE, "grid.linewidth": 0.5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.axisbelow": True, "hatch.color": FIRST, "hatch.linewidth": 0.7, "axes.unicode_minus": True,
    "lines.linewidth": 1.4, "axes.titlesize": 9, "axes.titlelocation": "left", "axes.titleweight": "bold",
    }  # fmt: skip
MARKERS = "osD^vP"


class Point(NamedTuple):
    """A workload on a roofline."""

    label: str
    intensity: float  # FLOP a byte
    tflop_per_s: float


class Curve(NamedTuple):
    """Milliseconds over streams, or over context. low, high: 20 and 80 %; empty: not of samples."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    style: str = "-"


def available() -> None:
    """ImportError: no matplotlib, and where it comes from."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("the report's plots need matplotlib: pip install 'zonos2-triton[report]'") from error


def rooflines(panels: Mapping[str, Sequence[Point]], roof: Roof, sheet: Roof, name: str, title: str, text: str) -> str:
    """A panel for each kernel, its workloads numbered, with the list of them beside; axes are the same in all."""
    points = [point for panel in panels.values() for point in panel]
    x = [point.intensity for point in points] + [ridge for ridge in (_ridge(roof), _ridge(sheet)) if ridge]
    y = [point.tflop_per_s for point in points] + [rate for rate in (roof.tflop_per_s, sheet.tflop_per_s) if rate]
    x_ends, y_ends = (min(x) / 2, max(x) * 3), (min(y) / 3, max(y) * 3)
    columns = 3
    rows = -(-len(panels) // columns)
    height = 0.3 + 2.1 * rows
    with _figure(11.4, height, name, title, text) as (figure, done):
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        for number, (kernel, mine) in enumerate(panels.items()):
            row, column = divmod(number, columns)
            axes = figure.add_axes((
                (0.85 + 3.75 * column) / 11.4, (height - 0.3 - 1.6 - 2.1 * row) / height, 1.85 / 11.4, 1.6 / height
            ))  # fmt: skip
            axes.set(xscale="log", yscale="log", xlim=x_ends, ylim=y_ends)
            axes.set_title(kernel)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(LogLocator(numticks=5))
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
                axis.set_minor_locator(NullLocator())
            for one, style in ((roof, "-"), (sheet, "--")):
                _roof(axes, one, x_ends, style)
            for point in mine:
                axes.plot(point.intensity, point.tflop_per_s, marker=_marker(point.label), color=FIRST, markersize=4.5,
                          markerfacecolor=PAPER, linestyle="")  # fmt: skip
            _numbered(axes, mine)
            key = "\n".join(f"{n} {point.label}" for n, point in enumerate(mine, 1))
            axes.text(1.04, 1, key, va="top", size=6.5 if len(mine) < 13 else 5.5, linespacing=1.25,
                      transform=axes.transAxes)  # fmt: skip
            if column == 0:
                axes.set_ylabel("TFLOP/s")
            if number + columns >= len(panels):
                axes.set_xlabel("FLOP per byte")
    return done()


def curves(lines: Sequence[Curve], name: str, title: str, text: str, xlabel: str, log: bool = False) -> str:
    """Milliseconds of a frame; each curve named at its end."""
    with _figure(8.8, 4.4, name, title, text) as (figure, done):
        axes = figure.add_axes((0.07, 0.12, 0.75, 0.84))
        if log:
            axes.set(xscale="log", yscale="log")
        for index, curve in enumerate(lines):
            floor = curve.style == ":"
            colour = INK if floor else FIRST if curve.style == "-" else SECOND
            marker = "" if floor else MARKERS[index % len(MARKERS)]
            axes.plot(curve.x, curve.y, curve.style, color=colour, marker=marker, markersize=5,
                      markerfacecolor=PAPER if curve.style == "--" else colour, label=curve.label)  # fmt: skip
            if curve.low:
                axes.vlines(curve.x, curve.low, curve.high, color=colour, linewidth=3, alpha=0.5)
        ticks = sorted({x for curve in lines for x in curve.x})
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], minor=False)
        axes.minorticks_off()
        axes.set(xlabel=xlabel, ylabel="ms per frame")
        if log:
            low, high = axes.get_ylim()
            marks = [a * 10**k for k in range(-4, 6) for a in (1, 2, 5) if low <= a * 10**k <= high]
            axes.set_yticks(marks, [f"{mark:g}" for mark in marks])
        else:
            axes.set_ylim(bottom=0)
        _end_labels(axes, lines)
    return done()


def stages(fall: Waterfall, name: str, title: str, text: str) -> str:
    """Each stage begins where the one before it ends; its floor is the solid bar in it."""
    rows = [(f"{stage.name} × {stage.launches}", stage.microseconds, stage.floor_us) for stage in fall.stages]
    rows.append(("launches and gaps", fall.rest_us, None))
    starts = [0.0, *accumulate(time for _, time, _ in rows)][: len(rows)]
    rows.append((f"frame, {fall.streams} streams" if fall.streams > 1 else "frame, 1 stream", fall.frame_us,
                 fall.floor_us))  # fmt: skip
    starts.append(0.0)
    with _figure(8.8, 4.6, name, title, text) as (figure, done):
        axes = figure.add_axes((0.18, 0.1, 0.8, 0.88))
        for y, (start, (_, time, floor)) in enumerate(zip(starts, rows, strict=True)):
            axes.barh(y, time, left=start, height=0.72, facecolor=PAPER, edgecolor=FIRST, hatch="////")
            if floor is not None:
                axes.barh(y, floor, left=start, height=0.34, facecolor=INK)
            beside = "" if floor is None else f", floor {floor:,.1f}"
            axes.annotate(f"{time:,.1f}{beside}", (max(start, start + time), y), (4, 0), textcoords="offset points",
                          va="center", size=8)  # fmt: skip
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, max(s + max(t, 0) for s, (_, t, _) in zip(starts, rows, strict=True)) * 1.28)
        axes.set_xlabel("µs; hatched: measured, solid: floor")
    return done()


@contextmanager
def _figure(width: float, height: float, name: str, title: str, text: str) -> Iterator[tuple[Any, Any]]:
    """A figure in inches, and what makes it SVG after the block; name: of this plot alone on the page."""
    available()
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), dpi=72)  # a point is a pixel, as in SVG
        canvas = FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        made: list[str] = []
        yield figure, lambda: made[0]
        for axes in figure.axes:
            axes.patch.set_visible(False)
        out = io.StringIO()
        canvas.print_svg(out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        made.append(_inline(out.getvalue(), name, title, text))


def _inline(svg: str, name: str, title: str, text: str) -> str:
    """The drawing as an element of a page: no head, no metadata, ids of its own, colours of the page, a name."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg, flags=re.S)
    svg = _own_ids(svg, name)
    svg = re.sub(r"font(-family)?:([^;\"]*?)'?(DejaVu Sans|sans-serif)'?[^;\"]*", r"font\1:\2inherit", svg)
    for sentinel, colour in CSS.items():
        svg = svg.replace(sentinel, colour)
    view = re.search(r'viewBox="([^"]+)"', svg)
    assert view is not None
    width = view[1].split()[2]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{view[1]}" '
        'preserveAspectRatio="xMinYMin" '
        f'style="max-width:{float(width) * 4 / 3:.0f}px" role="img" aria-labelledby="{name}-title {name}-desc">\n'
        f'<title id="{name}-title">{escape(title)}</title>\n<desc id="{name}-desc">{escape(text)}</desc>\n'
    )
    return re.sub(r"<svg[^>]*>\n?", lambda _: head, svg, count=1)


def _own_ids(svg: str, name: str) -> str:
    """Those that are referred to, counted: matplotlib's are not the same in every run, nor unique on a page."""
    used = dict.fromkeys(re.findall(r'(?:xlink:href="#|url\(#)([^)"]+)', svg))
    own = {old: f"{name}-{n}" for n, old in enumerate(used)}
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{own[found[1]]}"' if found[1] in own else "", svg)
    return re.sub(r'(xlink:href="#|url\(#)([^)"]+)', lambda found: found[1] + own[found[2]], svg)


def _ridge(roof: Roof) -> float | None:
    """FLOP a byte at which both rates are reached."""
    return roof.tflop_per_s / roof.gb_per_s * 1e3 if roof.gb_per_s and roof.tflop_per_s else None


def _roof(axes: Any, roof: Roof, ends: tuple[float, float], style: str) -> None:
    ridge = _ridge(roof)
    if ridge and roof.gb_per_s and roof.tflop_per_s:
        x = [ends[0], ridge, ends[1]]
        axes.plot(x, [min(each * roof.gb_per_s / 1e3, roof.tflop_per_s) for each in x], style, color=INK, linewidth=1)


def _numbered(axes: Any, points: Sequence[Point]) -> None:
    """Near each point its number, where it covers no other."""
    taken: list[tuple[float, float]] = []
    for number, point in enumerate(points, 1):
        at = axes.transData.transform((point.intensity, point.tflop_per_s))
        places = [(7, -6), (-7, -6), (7, 5), (-7, 5), (0, -10), (0, 9), *((0, -10 - 8 * n) for n in range(1, 14))]
        best = max(places, key=lambda place, at=at: min(_room(at, place, taken), 8))  # type: ignore[misc]
        taken.append((at[0] + best[0], at[1] + best[1]))
        axes.annotate(str(number), (point.intensity, point.tflop_per_s), best, textcoords="offset points", size=6.5,
                      ha="center", va="center")  # fmt: skip


def _room(at: Sequence[float], place: tuple[int, int], taken: Sequence[tuple[float, float]]) -> float:
    """Points to the nearest number that has its place."""
    x, y = at[0] + place[0], at[1] + place[1]
    return min((max(abs(x - a), abs(y - b)) for a, b in taken), default=1e9)


def _marker(workload: str) -> str:
    """○ decoding, ◇ dense layers, □ prompts, △ pieces of sound."""
    if workload.startswith("dense"):
        return "D"
    return "o" if "decode" in workload else "s" if "prefill" in workload else "^"


def _end_labels(axes: Any, lines: Sequence[Curve]) -> None:
    """Beside the ends, above each other where they are close; a curve that ends early has its label above its end."""
    most, last = max(curve.x[-1] for curve in lines), float("-inf")
    for y, curve in sorted((axes.transData.transform((c.x[-1], c.y[-1]))[1], c) for c in lines):
        end, early = (curve.x[-1], curve.y[-1]), curve.x[-1] < most
        last = last if early else max(y, last + 11)
        axes.annotate(curve.label, end, (0, 10) if early else (8, last - y), textcoords="offset points", size=8,
                      ha="center" if early else "left", va="center", annotation_clip=False)  # fmt: skip
