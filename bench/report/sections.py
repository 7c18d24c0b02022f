"""The content of the report on one run, section by section. The template decides its looks."""

import io
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.figures import NONE, engineering, number
from zonos2_triton.bench.report.compare import HEADS, Comparison, cells
from zonos2_triton.bench.specs.gpus import recognised
from zonos2_triton.bench.specs.performance_targets import CHECKS, GOALS, GPU, REPETITIONS
from zonos2_triton.bench.specs.roofline import UNKNOWN
from zonos2_triton.bench.suite.results import Result, all_passed, baselines, items, left_out, passed, roofline
from zonos2_triton.model.tables import numeric
from zonos2_triton.reference.vocoder import VocoderConfig

FRAME_US = VocoderConfig().hop / VocoderConfig().sample_rate * 1e6  # of audio
ABOUT_GOALS = (
    f"The goals are for an {GPU} and bf16. A figure counts when it is the median of {REPETITIONS} repetitions or "
    "more, and every check of the run passed."
)
ABOUT_ROOFLINES = "A point per workload. Solid: the measured copy bandwidth and matrix rate. Dashed: the data sheet."
# Parts of a run that are figures: title and text of the section.
MEASURED = {
    "frames": ("Frames", "The 8B model with random weights in a CUDA graph. The real-time factor is of each stream."),
    "launches": ("Launches", "Those of a frame, none dependent, with the gap after each, beside estimate and floor."),
    "end_to_end": ("From text to sound", "Prompts up to logits; text to audio and the host's work on a frame; memory."),
    "vocoder": ("Vocoder", "Random weights, 44.1 kHz. Agreement is with plain PyTorch at the same precision."),
    "integrations": ("Drop-in", "Before and after accelerate(), as its users call it: no graph. Errors are relative."),
    "timings": (
        "Kernels",
        "At the 8B model's shapes, in bf16. (×): how many times as long another implementation takes.",
    ),
    "accuracy": ("Errors", "RMS error against fp64, over plain PyTorch's at the same precision."),
}
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False, "font.size": 9}
NO_FIGURES = ("status", "seconds", "calls_per_sample", "copies", "dtype", "flops")


class Table(NamedTuple):
    """Rows by head; the first column heads each row."""

    caption: str
    rows: Sequence[Mapping[str, str]]
    folded: bool = False  # shown on demand

    @property
    def heads(self) -> dict[str, bool]:
        """Those under which something stands, and whether it is numbers, which are set flush right."""
        columns = {head: [row.get(head, "") for row in self.rows] for row in self.rows for head in row}
        return {head: numeric(cells) for head, cells in columns.items() if {*cells} - {NONE, ""}}


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[str] = ()  # URIs
    problems: Sequence[str] = ()  # what has no figure, and why


def sections(result: Result) -> list[Section]:
    """The sections of one run."""
    figures = [measured(result, stage) for stage in MEASURED]
    return [conditions(result), correctness(result), goals(result), *figures, rooflines(result)]


def conditions(result: Result) -> Section:
    told = {key.replace("_", " "): value for key, value in result["environment"].items() if value is not None}
    copy, product = roofline(result)
    told |= {"copy bandwidth measured, GB/s": number(copy), "matrix rate measured in bf16, TFLOP/s": number(product)}
    rows = [{"what": what, "value": f"{v:g}" if isinstance(v, float) else str(v)} for what, v in told.items()]
    return Section("Conditions", tables=[Table("What was measured on", rows)])


def correctness(result: Result) -> Section:
    rows = []
    for stage in result["stages"]:
        found = [each["status"] for each in items(result, stage).values()]
        counts = {status: str(found.count(status)) for status in ("passed", "failed", "withheld")}
        rows.append({"stage": stage, **counts, "not run": str(len(left_out(result, stage)))})
    checks = [each["status"] for stage in CHECKS for each in items(result, stage).values()]
    skipped = sum(len(left_out(result, stage)) for stage in CHECKS)
    verdict = f"{checks.count('passed')} of {len(checks)} checks passed; {skipped} were not run."
    problems = [f"{stage}: {problem}" for stage in CHECKS for problem in _problems(result, stage)]
    return Section("Correctness", [verdict], [Table("Items by stage", rows)] if checks else (), problems=problems)


def goals(result: Result) -> Section:
    heads = ("figure", "goal", "measured", "verdict")
    rows = [dict(zip(heads, goal.row(result), strict=True)) for goal in GOALS]
    return Section("Goals", [ABOUT_GOALS], [Table("Goals", rows)])


def measured(result: Result, stage: str) -> Section:
    """Every figure of a stage, under its key in the file; beside it other implementations of the same."""
    title, about = MEASURED[stage]
    groups: dict[str, list[Mapping[str, str]]] = {}
    for name, found in all_passed(result, stage).items():
        torch_frame = {"torch.compile": passed(result, "torch_frame", name)}
        others = baselines(result, name) if stage == "timings" else torch_frame
        derived = {"real_time_factor": found["median_us"] / FRAME_US} if stage == "frames" else {}
        group = title if stage in ("frames", "launches", "accuracy") else re.split(r"/|-\d", name)[0]
        groups.setdefault(group, []).append({"item": name, **_cells(found | derived | others)})
    captions = {name: f"{name}: {KERNELS[name].replaces}" if name in KERNELS else name for name in groups}
    tables = [Table(captions[name], rows, folded=stage == "accuracy") for name, rows in groups.items()]
    related = {"timings": "baselines", "launches": "constants"}.get(stage)
    problems = [*_problems(result, stage), *(_problems(result, related) if related else ())]
    if stage == "launches" and (fit := passed(result, "constants", "all")):
        off = f"{fit['rms_pct']} % RMS, by those assumed {fit['assumed_rms_pct']} %"
        about += f" By fitted constants the estimate is off by {off}."
        rows = [{"constant": name, "assumed": number(fit["assumed"][name]), "fitted": number(value)}
                for name, value in fit["fitted"].items()]  # fmt: skip
        tables.append(Table("Constants of the estimate", rows))
    return Section(title, [about], tables, problems=problems)


def _cells(found: Mapping[str, Any]) -> dict[str, str]:
    """The figures of an item, by what they are."""
    cells = {}
    for key, value in found.items():
        if key in NO_FIGURES or key.startswith(("samples", "high")):
            continue
        if key.startswith("low"):
            unit = key.removeprefix("low_")
            cells[f"20 to 80 %, {unit}"] = f"{number(value)} to {number(found[f'high_{unit}'])}"
        elif key.endswith("bytes"):
            cells[key.removesuffix("_bytes")] = NONE if value is None else engineering(value, "B")
        else:
            cells[key.replace("_", " ").replace("pct", "%")] = _cell(value)
    return cells


def _cell(value: Any) -> str:
    """For another implementation, its time and the ratio to ours; for errors, the largest."""
    if isinstance(value, dict) and "median_us" in value:
        times = "" if value.get("speed_up") is None else f" (×{value['speed_up']:.2f})"
        return f"{number(value['median_us'])}{times}"
    if isinstance(value, dict):
        return value.get("not_timed") or f"{max(value.values()):.1e}"
    return str(value) if isinstance(value, int | str) else number(value)


def rooflines(result: Result) -> Section:
    """SVG in a data URI, so that a page may hold those of several runs. ImportError: no matplotlib."""
    kernels, gpu = dict[str, list[tuple[float, float]]](), recognised(result["environment"]["gpu"])
    for name, each in all_passed(result, "timings").items():
        if each["flops"] and each["bytes"]:
            point = (each["flops"] / each["bytes"], each["flops"] / each["median_us"] / 1e6)
            kernels.setdefault(name.split("/")[0], []).append(point)
    if not kernels:
        return Section("Roofline", [ABOUT_ROOFLINES])
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the report's plots need matplotlib: pip install matplotlib") from error
    with rc_context(STYLE):
        figure, out = Figure(figsize=(8.8, 4.6), layout="constrained"), io.StringIO()
        axes = figure.add_subplot(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP/s")
        for (kernel, points), marker in zip(kernels.items(), cycle("osD^vPX*<>hdp"), strict=False):
            axes.plot(*zip(*points, strict=True), marker, markersize=5, label=kernel)
        low, high = axes.get_xlim()
        for limits, style in ((roofline(result), "-"), (gpu.roofline if gpu else UNKNOWN, "--")):
            if limits.gb_per_s and limits.tflop_per_s:
                ridge = limits.tflop_per_s / limits.gb_per_s * 1e3
                x = sorted([low, ridge, max(high, 2 * ridge)])
                y = [min(each * limits.gb_per_s / 1e3, limits.tflop_per_s) for each in x]
                axes.plot(x, y, style, color="black", linewidth=1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
        axes.grid(linewidth=0.4)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        figure.savefig(out, format="svg", metadata={"Date": None})
    uri = f"data:image/svg+xml;base64,{b64encode(out.getvalue().encode()).decode()}"
    return Section("Roofline", [ABOUT_ROOFLINES], plots=[uri])


def comparison(found: Comparison) -> Section:
    """The comparison of an earlier run with this one."""
    rows = [dict(zip(HEADS, cells(row), strict=True)) for row in found.rows]
    moved, same = ([row for row in rows if (row["verdict"] == "same") == is_same] for is_same in (False, True))
    tables = [Table("Slower or faster", moved), Table("The same", same, folded=True)]
    return Section(f"From {found.before} to {found.after}", [found.counts + "."], tables, problems=found.remarks)


def _problems(result: Result, stage: str) -> Iterator[str]:
    """The items without a figure, and the reasons."""
    for name, each in items(result, stage).items():
        if each["status"] != "passed":
            yield f"{name}: {each['status']}: {each.get('error') or each.get('reason')}"
    reasons: dict[str, list[str]] = {}
    for name, why in left_out(result, stage).items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        yield f"not run: {why} ({len(names)}): {'; '.join(names)}"
