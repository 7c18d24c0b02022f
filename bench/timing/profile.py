"""Where the time of a generation goes: time by range, and a trace that Perfetto or Nsight Systems opens.

    python -m zonos2_triton.bench.timing.profile [--model DIR] [--tool torch|nsys|proton] [--out FILE] [--json]

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
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from zonos2_triton.bench.cli_choices import chosen
from zonos2_triton.bench.specs.roofline import Roof
from zonos2_triton.bench.timing import nsys
from zonos2_triton.bench.timing.profiled import REAL, generation, loaded, measured_roof, speaking
from zonos2_triton.bench.timing.range_times import Node, label, of_hatchet, of_trace, rows, table
from zonos2_triton.kernels._settings import nvtx
from zonos2_triton.model.audio import whole_file
from zonos2_triton.model.backend import BACKENDS, resolve_device
from zonos2_triton.model.nvtx import Range, Sink, recorded, sink_of
from zonos2_triton.model.ops import SEQUENCES_AT_ONCE
from zonos2_triton.model.pipeline import Zonos2

TOOLS = {"torch": (".json", ".json.gz"), "nsys": (".nsys-rep",), "proton": (".hatchet",)}  # endings of their files
GRAPHS = ("off", "lazy")
OUTERMOST = ("model/generate", "codec/decode")


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


def by_torch(call: Callable[[], object], out: Path, device: torch.device, packed: bool) -> Node:
    """Record `call` into `out`, gzipped or not."""
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
        profiler.export_chrome_trace(str(plain := Path(folder) / "trace.json"))
        with plain.open("rb") as source, gzip.open(out, "wb") if packed else out.open("wb") as target:
            shutil.copyfileobj(source, target)
        return of_trace(json.loads(plain.read_text(encoding="utf-8"))["traceEvents"], on_device)


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
        written = Path(folder) / "profile.hatchet"
        shutil.copyfile(written, out)
        return of_hatchet(json.loads(written.read_text(encoding="utf-8"))[0])


def here(options: argparse.Namespace) -> dict[str, Any]:
    """A report, recorded in this process."""
    with whole_file(options.out) as part, loaded(options) as tts:
        call = speaking(tts, options)
        if not _interpreted(options, tts):
            call()
        if options.tool == "proton":
            root = by_proton(call, part)
        else:
            root = by_torch(call, part, options.device, packed=options.out.suffix == ".gz")
        from zonos2_triton.bench.timing.range_costs import counts, placed

        roof = measured_roof(options.device)
        work = placed(root, generation(tts, options).work(counts(root)))
        return _report(options, tts.backbone.backend, roof) | {"ranges": rows(root, work, roof)}


def _interpreted(options: argparse.Namespace, tts: Zonos2) -> bool:
    """There is nothing to warm up, and all of it is slow."""
    return options.device.type == "cpu" and tts.backbone.backend == "triton"


def by_nsys(options: argparse.Namespace) -> dict[str, Any]:
    """A report, recorded in another process under nsys."""
    tool, on_device = nsys.executable(), options.device.type == "cuda"
    with whole_file(options.out) as part, tempfile.TemporaryDirectory() as folder:
        report, told = Path(folder) / "profile.nsys-rep", Path(folder) / "told.json"
        program = [
            sys.executable, "-m", "zonos2_triton.bench.timing.profile", "--inside", str(told), "--out", folder,
            "--device", str(options.device),
            *(f"--{name}={getattr(options, name)}" for name in ("backend", "graphs", "frames", "streams")),
            *(["--model", options.model] if options.model else []),
        ]  # fmt: skip
        nsys.record(tool, program, report, on_device)
        root, kernels = nsys.ranges(tool, report), nsys.kernels(tool, report)
        shutil.copyfile(report, part)
        about = json.loads(told.read_text(encoding="utf-8"))
    roof = Roof(*about["roof"])
    found = rows(root, {(name,): (moved, flops) for name, (moved, flops) in about["work"].items()}, roof, OUTERMOST)
    return _report(options, about["backend"], roof) | {"ranges": found, "kernels": kernels}


def inside(options: argparse.Namespace) -> int:
    """Under nsys: run, and leave what the ranges' costs are in the file `options.inside`.

    On a CPU nsys records the whole process, so that nothing runs before.
    """
    from zonos2_triton.bench.timing.range_costs import flat

    sink, seen = sink_of(nvtx()), Counter[str]()
    on_device = options.device.type == "cuda"
    with loaded(options) as tts:
        call = speaking(tts, options)
        if on_device:
            with recorded(None):
                call()
            torch.cuda.synchronize(options.device)
            torch.cuda.profiler.start()
        with recorded(sink and _counting(sink, seen)):
            call()
        if on_device:
            torch.cuda.synchronize(options.device)
            torch.cuda.profiler.stop()
        work = flat(generation(tts, options).work(seen))
        told = {"backend": tts.backbone.backend, "roof": measured_roof(options.device), "work": work}
    options.inside.write_text(json.dumps(told), encoding="utf-8")
    return 0


def _counting(sink: Sink, seen: Counter[str]) -> Sink:
    def counted(name: str, payload: int | None) -> Range:
        seen[name] += 1
        return sink(name, payload)

    return counted


def _report(options: argparse.Namespace, backend: str, roof: Roof) -> dict[str, Any]:
    on_device = options.device.type == "cuda"
    name = torch.cuda.get_device_name(options.device) if on_device else "CPU"
    return {
        "trace": str(options.out), "tool": options.tool, "model": options.model or "tiny", "device": name,
        "backend": backend, "graphs": options.graphs if on_device else "off", "streams": options.streams,
        "frames": options.frames, "time_of": "device" if on_device else "host", "copy_gb_per_s": roof.gb_per_s,
        "matmul_tflop_per_s": roof.tflop_per_s, "notes": _notes(options, backend, on_device),
    }  # fmt: skip


def _notes(options: argparse.Namespace, backend: str, on_device: bool) -> list[str]:
    if not on_device:
        times = "kernels run in Triton's interpreter: their times mean nothing"
        return [times if backend == "triton" else "host times of a CPU, the profiler's own cost among them"]
    if options.graphs == "lazy":
        return ["frames are replays of a graph: what is in them shows with --graphs off"]
    return ["kernels were launched one by one: how long a frame really takes shows with --graphs lazy"]


def shown(report: dict[str, Any]) -> str:
    """The report for a person to read."""
    lines = [
        "{model} model, {backend} backend on {device}: {streams} x {frames} frames, {time_of} time".format(**report),
        f"copy bandwidth measured just now: {report['copy_gb_per_s']:g} GB/s",
        *report["notes"],
        table(report["ranges"]),
    ]
    for kernel in report.get("kernels", [])[:10]:
        lines.append("{kernel}: {count} calls, {total_us:.1f} us".format(**kernel))
    opens = "Nsight Systems" if report["tool"] == "nsys" else "proton-viewer"
    return "\n".join(
        [*lines, f"{report['trace']}: {'ui.perfetto.dev' if report['tool'] == 'torch' else opens} opens it"]
    )


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
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="or a folder; default: profile.json.gz, or as the tool"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return _command


def _command(options: argparse.Namespace) -> int:
    options = checked(options)
    report = by_nsys(options) if options.tool == "nsys" else here(options)
    print(json.dumps(report, indent=1) if options.json else shown(report))
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command by itself. Exit status: 0 done, 2 bad input or a tool that failed."""
    parser = argparse.ArgumentParser(prog="python -m zonos2_triton.bench.timing.profile")
    execute = command(parser)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    try:
        if options.inside is not None:
            return inside(checked(options))
        return execute(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"profile: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
