"""Where the time of a generation goes: time by range, and a trace that Perfetto or Nsight Systems opens.

    zonos2-triton profile [--model DIR] [--tool torch|nsys|proton] [--out FILE] [--json]

torch   torch.profiler, on a CPU and on a GPU; Chrome JSON
nsys    Nsight Systems, started from here; its own report
proton  Triton's profiler, on a GPU; a hatchet tree

A generation is run once to warm up, then recorded. Within a captured graph the host's ranges exist only at capture, so
that --graphs off shows layers and operations, and --graphs lazy the real time of each frame.
"""

import argparse
import gzip
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from zonos2_triton.bench.cli_choices import chosen
from zonos2_triton.bench.specs.roofline import UNKNOWN, Roof
from zonos2_triton.bench.timing import nsys
from zonos2_triton.bench.timing.profiled import REAL, TEXT, loaded, measured_roof, speaking
from zonos2_triton.bench.timing.range_times import Node, label, of_hatchet, of_trace, rows, table
from zonos2_triton.model.audio import whole_file
from zonos2_triton.model.backend import BACKENDS, resolve_backend, resolve_device
from zonos2_triton.model.nvtx import Range, recorded
from zonos2_triton.model.ops import SEQUENCES_AT_ONCE
from zonos2_triton.model.prompt import build_prompt

TOOLS = {"torch": (".json", ".json.gz"), "nsys": (".nsys-rep",), "proton": (".hatchet",)}  # endings of their files
GRAPHS = ("off", "lazy")


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """Options with `device` resolved and `out` a file. ValueError: one is wrong."""
    for name, accepted in (("tool", TOOLS), ("backend", BACKENDS), ("graphs", GRAPHS)):
        chosen(f"--{name}", [getattr(options, name)], accepted)
    for name, most in (("frames", 100_000), ("streams", SEQUENCES_AT_ONCE)):
        if not 1 <= (value := getattr(options, name)) <= most:
            raise ValueError(f"--{name} must be in 1..{most}, got {value}")
    device = resolve_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if options.tool == "proton" and device.type == "cpu":
        raise ValueError("--tool proton times kernels on a GPU, and the device is a CPU; --tool torch works there")
    if options.tool == "nsys" and find_spec("nvtx") is None:
        raise ValueError("--tool nsys reads the ranges of the package nvtx, which is not installed: pip install nvtx")
    if options.model == REAL and device.type == "cpu":
        raise ValueError(f"--model {REAL} makes 15 GB of random weights on a GPU, and the device is a CPU")
    if options.model not in (None, REAL) and not Path(options.model).is_dir():
        raise ValueError(f"--model must be a folder with params.json and weights, or {REAL!r}, got {options.model!r}")
    return argparse.Namespace(**vars(options) | {"device": device, "out": _file(options.out, options.tool)})


def _file(out: Path | None, tool: str) -> Path:
    """ValueError: no viewer would know it by its ending."""
    endings = TOOLS[tool]
    out = Path(f"profile{endings[-1]}") if out is None else out
    if out.is_dir():
        out /= f"profile{endings[-1]}"
    if not out.name.endswith(endings):
        raise ValueError(f"--out of --tool {tool} must end in {' or '.join(endings)}, or be a folder, got {out}")
    return out


def by_torch(call: Callable[[], object], out: Path, device: torch.device, ending: str) -> Node:
    """Record `call` into `out`, gzipped where `ending` says so."""
    from torch.profiler import ProfilerActivity, profile, record_function

    def sink(name: str, payload: int | None) -> Range:
        return record_function(label(name, payload))

    on_device = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_device]
    with profile(activities=activities) as profiler, recorded(sink):
        call()
        if on_device:
            torch.cuda.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(str(trace := Path(folder) / f"trace{ending}"))
        shutil.copyfile(trace, out)
    content = out.read_bytes()
    return of_trace(json.loads(gzip.decompress(content) if ending == ".gz" else content)["traceEvents"], on_device)


def by_proton(call: Callable[[], object], out: Path) -> Node:
    """Likewise; ranges are scopes that count their calls."""
    import triton.profiler as proton

    def sink(name: str, payload: int | None) -> Range:
        return proton.scope(name, {"calls": 1})

    with tempfile.TemporaryDirectory() as folder:
        session = proton.start(str(Path(folder) / "profile"), context="shadow", data="tree")
        try:
            with recorded(sink):
                call()
                torch.cuda.synchronize()
        finally:
            proton.finalize(session)
        shutil.copyfile(Path(folder) / "profile.hatchet", out)
    return of_hatchet(json.loads(out.read_text(encoding="utf-8"))[0])


def here(options: argparse.Namespace) -> dict[str, Any]:
    """A report, recorded in this process."""
    with whole_file(options.out) as part, loaded(options) as tts:
        call, backend = speaking(tts, options), tts.backbone.backend
        if options.device.type == "cuda" or backend == "reference":  # the interpreter has nothing to warm up
            call()
        if options.tool == "proton":
            root = by_proton(call, part)
        else:
            root = by_torch(call, part, options.device, options.out.suffix)
        from zonos2_triton.bench.timing.range_costs import Generation, counts, placed

        roof = measured_roof(options.device)
        prompt_rows = len(build_prompt(tts.backbone.config, TEXT))
        work = Generation(tts, options.streams, options.frames, prompt_rows).work(counts(root))
        return _report(options, backend, roof) | {"ranges": rows(root, placed(root, work), roof)}


def by_nsys(options: argparse.Namespace) -> dict[str, Any]:
    """A report, recorded in another process under nsys: sums by name, without floors."""
    tool, on_device = nsys.executable(), options.device.type == "cuda"
    backend = resolve_backend(options.backend, options.device)
    with whole_file(options.out) as part, tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "profile.nsys-rep"
        told = {name: getattr(options, name) for name in ("device", "backend", "graphs", "frames", "streams", "model")}
        arguments = [f"--{name}={value}" for name, value in told.items() if value is not None]
        program = [sys.executable, "-m", "zonos2_triton.model.cli", "profile", "--inside", *arguments]
        nsys.record(tool, program, report, on_device)
        found = {"sums": nsys.sums(tool, report)}
        shutil.copyfile(report, part)
    return _report(options, backend, UNKNOWN) | found


def inside(options: argparse.Namespace) -> int:
    """Under nsys: run. On a CPU nsys records the whole process, so that nothing runs before."""
    with loaded(options) as tts:
        call = speaking(tts, options)
        if options.device.type == "cuda":
            call()
            torch.cuda.synchronize(options.device)
            torch.cuda.profiler.start()
            call()
            torch.cuda.synchronize(options.device)
            torch.cuda.profiler.stop()
        else:
            call()
    return 0


def _report(options: argparse.Namespace, backend: str, roof: Roof) -> dict[str, Any]:
    on_device = options.device.type == "cuda"
    return {
        "trace": str(options.out),
        "tool": options.tool,
        "model": options.model or "tiny",
        "device": torch.cuda.get_device_name(options.device) if on_device else "CPU",
        "backend": backend,
        "graphs": options.graphs if on_device else "off",
        "streams": options.streams,
        "frames": options.frames,
        "time_of": "device" if on_device else "host",
        "copy_gb_per_s": roof.gb_per_s,
        "matmul_tflop_per_s": roof.tflop_per_s,
        "notes": [_note(options.graphs, backend, on_device)],
    }


def _note(graphs: str, backend: str, on_device: bool) -> str:
    if not on_device and backend == "triton":
        return "kernels run in Triton's interpreter: their times mean nothing"
    if not on_device:
        return "host times of a CPU, the profiler's own cost among them"
    if graphs == "lazy":
        return "frames are replays of a graph: what is in them shows with --graphs off"
    return "kernels were launched one by one: how long a frame really takes shows with --graphs lazy"


def shown(report: dict[str, Any]) -> str:
    """The report for a person to read."""
    about = "{model} model, {backend} backend on {device}: {streams} x {frames} frames, {time_of} time"
    lines = [about.format(**report), *report["notes"]]
    if report["copy_gb_per_s"]:
        lines.append(f"copy bandwidth measured just now: {report['copy_gb_per_s']:g} GB/s")
    lines.append(table(report["ranges"]) if "ranges" in report else report["sums"])
    viewers = {"torch": "ui.perfetto.dev", "nsys": "Nsight Systems", "proton": "proton-viewer"}
    return "\n".join([*lines, f"{report['trace']}: {viewers[report['tool']]} opens it"])


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the options of the command to `parser`; what comes back runs it and returns its exit status."""
    parser.description = "Where the time of a generation goes: time by range, and a trace to look at."
    parser.add_argument("--model", metavar="DIR", help=f"default: a tiny one; {REAL}: random weights of the 8B shape")
    parser.add_argument("--tool", default="torch", metavar="TOOL", help=f"one of {', '.join(TOOLS)}; default: torch")
    parser.add_argument("--frames", type=int, default=16, metavar="N", help="of each stream; default: %(default)s")
    parser.add_argument("--streams", type=int, default=1, metavar="N", help="that decode together; default: 1")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    parser.add_argument("--backend", default="auto", help=f"one of {', '.join(BACKENDS)}; default: auto")
    parser.add_argument("--graphs", default="off", help="off: layers show; lazy: frames are replayed; default: off")
    out = "or a folder; default: profile.json.gz, or as the tool"
    parser.add_argument("--out", type=Path, metavar="FILE", help=out)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return _command


def _command(options: argparse.Namespace) -> int:
    options = checked(options)
    if options.inside:
        return inside(options)
    report = by_nsys(options) if options.tool == "nsys" else here(options)
    print(json.dumps(report, indent=1) if options.json else shown(report))
    return 0
