"""The sections of the report on the whole: frames, their stages, from text to sound."""

from collections.abc import Mapping, Sequence
from typing import Any

from zonos2_triton.bench.report import plots
from zonos2_triton.bench.report.page import (
    NONE,
    Plot,
    Section,
    Table,
    factor,
    milliseconds,
    number,
    problems,
    share,
    spread,
    streams_of,
)
from zonos2_triton.bench.report.plots import Curve
from zonos2_triton.bench.report.waterfall import Waterfall, waterfall
from zonos2_triton.bench.suite.results import Result, all_passed, passed
from zonos2_triton.reference.vocoder import VocoderConfig

Measured = Mapping[str, Any]

FRAME_US = VocoderConfig().hop / VocoderConfig().sample_rate * 1e6  # of audio
ABOUT_FRAMES = (
    "A whole frame of the 8B model with random weights in one CUDA graph: forward, head, filters, draw, feedback. The "
    f"real-time factor is the frame's time over the {FRAME_US / 1e3:.2f} ms of sound that it becomes, for each stream."
)
ABOUT_STAGES = (
    "A stage's time is its kernel's, measured alone at these sizes, times its launches in a frame; its floor is what "
    "all of its layers move and compute. “Launches and gaps” is the rest of the measured frame: below zero where "
    "kernels that follow each other overlap, or find in the cache what they do not find alone."
)


def frames(result: Result, prefix: str) -> Section:
    baseline = all_passed(result, "baseline").items()
    plain = {_size(each): each for name, each in baseline if name.startswith("B")}
    found = sorted(all_passed(result, "frames").values(), key=_size)
    found = [{**each, "compiled": plain[_size(each)]} if _size(each) in plain else each for each in found]
    heads = ("streams, context", "median, ms", "20 to 80 %, ms", "floor, ms", "of floor", "frames/s",
             "real-time factor", "GB/s", "forward, ms", "draw, ms", "beyond weights and cache, MB",
             "torch.compile, ms (×)")  # fmt: skip
    rows = [
        (f"{each['streams']}, {each['context']:,}", milliseconds(each["median_us"]), spread(each, per=1e3),
         milliseconds(each["floor_us"]), share(each["percent_of_floor"]),
         number(each["streams"] * 1e6 / each["median_us"]), f"{each['median_us'] / FRAME_US:.3f}",
         number(each["gb_per_s"]), milliseconds(each["forward_us"]), milliseconds(each["draw_us"]),
         NONE if each["peak_bytes"] is None else number(each["peak_bytes"] / 1e6), factor(each.get("compiled"), 1e3))
        for each in found
    ]  # fmt: skip
    return Section(
        f"{prefix}-frames", "Frames", [ABOUT_FRAMES] if rows else (),
        [Table.of("Frames", heads, rows)] if rows else (),
        [plot for plot in (_batches(found, prefix), _contexts(found, prefix)) if plot],
        [*problems(result, "frames"), *problems(result, "baseline")], bool(rows),
    )  # fmt: skip


def _size(each: Measured) -> tuple[int, int]:
    return each["streams"], each["context"]


def _batches(found: Sequence[Measured], prefix: str) -> Plot | None:
    """At the context at which most numbers of streams were measured."""
    contexts = [each["context"] for each in found]
    context = max(contexts, key=contexts.count, default=0)
    mine = [each for each in found if each["context"] == context]
    if len(mine) < 2:
        return None
    lines = [_curve("this project", "streams", mine)]
    beside = [(each["streams"], each["compiled"]) for each in mine if "compiled" in each]
    if beside:
        lines.append(_line("torch.compile, CUDA graph", [x for x, _ in beside], [c for _, c in beside], "--"))
    lines += _floors("floor", "streams", mine)
    rows = [
        (str(each["streams"]), milliseconds(each["median_us"]), milliseconds(each.get("compiled", {}).get("median_us")),
         milliseconds(each["floor_us"]))
        for each in mine
    ]  # fmt: skip
    title = f"Time of a frame by the number of streams, {context:,} rows in the cache of each"
    table = Table.of(f"{title}, ms", ("streams", "this project", "torch.compile, CUDA graph", "floor"), rows)
    text = "Milliseconds over streams, both axes logarithmic: this project, plain PyTorch compiled, and the floor."
    svg = plots.curves(lines, f"{prefix}-batches", title, text, "streams", log=True)
    return Plot(svg, title + "; bars are 20 to 80 % of the samples.", table)


def _contexts(found: Sequence[Measured], prefix: str) -> Plot | None:
    lines, rows = [], []
    for streams in sorted({each["streams"] for each in found}):
        mine = [each for each in found if each["streams"] == streams]
        if len(mine) > 1:
            many = streams_of(streams)
            lines += [_curve(many, "context", mine), *_floors(f"floor, {many}", "context", mine)]
            rows += [
                (f"{streams}, {each['context']:,}", milliseconds(each["median_us"]), milliseconds(each["floor_us"]))
                for each in mine
            ]
    if not lines:
        return None
    title = "Time of a frame by the rows in the cache"
    table = Table.of(f"{title}, ms", ("streams, context", "this project", "floor"), rows)
    text = "Milliseconds over rows of context, a line for each number of streams, its floor dotted under it."
    svg = plots.curves(lines, f"{prefix}-contexts", title, text, "rows in the cache of each stream")
    return Plot(svg, title + ".", table)


def _curve(label: str, over: str, found: Sequence[Measured]) -> Curve:
    return _line(label, [each[over] for each in found], found)


def _line(label: str, x: Sequence[float], timed: Sequence[Measured], style: str = "-") -> Curve:
    middle, low, high = ([each[f"{key}_us"] / 1e3 for each in timed] for key in ("median", "low", "high"))
    return Curve(label, x, middle, low, high, style)


def _floors(label: str, over: str, found: Sequence[Measured]) -> list[Curve]:
    known = [each for each in found if each["floor_us"] is not None]
    return [Curve(label, [e[over] for e in known], [e["floor_us"] / 1e3 for e in known], style=":")] if known else []


def stages(result: Result, prefix: str) -> Section:
    counts = sorted({each["streams"] for each in all_passed(result, "frames").values()})
    falls = [fall for streams in counts if (fall := waterfall(result, streams))]
    return Section(f"{prefix}-stages", "Where the time of a frame goes", [ABOUT_STAGES] if falls else (),
                   plots=[_stages(fall, f"{prefix}-stages-{fall.streams}") for fall in falls],
                   measured=bool(falls))  # fmt: skip


def _stages(fall: Waterfall, name: str) -> Plot:
    def of_frame(microseconds: float) -> str:
        return f"{100 * microseconds / fall.frame_us:.1f} %"

    rows = [
        (stage.name, str(stage.launches), number(stage.microseconds), number(stage.floor_us),
         of_frame(stage.microseconds))
        for stage in fall.stages
    ]  # fmt: skip
    rows.append(("launches and gaps", NONE, number(fall.rest_us), NONE, of_frame(fall.rest_us)))
    rows.append(("frame", NONE, number(fall.frame_us), number(fall.floor_us), "100 %"))
    title = f"{streams_of(fall.streams).capitalize()}, {fall.context:,} rows in the cache of each"
    table = Table(title, ("stage", "launches", "time, µs", "floor, µs", "of the frame"), rows)
    text = f"Stages one after the other, from 0 to {number(fall.frame_us)} µs, each with its floor."
    return Plot(plots.stages(fall, name, title, text), title + ".", table)


def whole(result: Result, prefix: str) -> Section:
    found = all_passed(result, "whole")
    tables = [
        Table.of(
            "Prompts: ids to the logits of the last row",
            ("rows", "median, ms", "20 to 80 %, ms", "floor, ms", "of floor", "replayed as a graph, ms",
             "torch.compile in a graph, ms (×)"),
            [(str(each["rows"]), milliseconds(each["median_us"]), spread(each, per=1e3), milliseconds(each["floor_us"]),
              share(each["percent_of_floor"]), milliseconds(each.get("graph_us")),
              factor(passed(result, "baseline", name), 1e3))
             for name, each in found.items() if name.startswith("prefill-")],
        ),
        Table.of(
            "Text to first audio, by the host's clock",
            ("streams at once", "rows of the prompt", "first samples, ms", "20 to 80 %, ms", "16 frames, ms"),
            [(str(each["streams"]), str(each["prompt_rows"]), number(each["median_ms"]), spread(each, "ms"),
              number(each.get("sixteen_frames_ms")))
             for name, each in found.items() if name.startswith("first-audio/")],
        ),
        Table.of(
            "What the host's thread spends on a frame, launching and reading",
            ("streams", "median, µs", "20 to 80 %, µs"),
            [(str(each["streams"]), number(each["median_us"]), spread(each))
             for name, each in found.items() if name.startswith("host/")],
        ),
        *_memory(found.get("memory")),
    ]  # fmt: skip
    filled = [table for table in tables if table.rows]
    return Section(f"{prefix}-whole", "From text to sound", tables=filled, problems=[*problems(result, "whole")],
                   measured=bool(filled))  # fmt: skip


def _memory(found: Measured | None) -> list[Table]:
    if found is None:
        return []
    parts = {"weights": "weights_bytes", "weights of the vocoder": "vocoder_bytes", "cache": "cache_bytes",
             "most in use": "peak_bytes"}  # fmt: skip
    rows = [(label, NONE if found[key] is None else f"{found[key] / 1e9:.3f}") for label, key in parts.items()]
    return [Table(f"Memory while one stream speaks for {found['seconds_of_audio']:g} s", ("what", "GB"), rows)]
