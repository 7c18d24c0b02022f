"""Where the time of a generation goes: time by range, and a trace that Perfetto opens.

    zonos2-triton profile [--model DIR] [--cuda-graphs off|lazy] [--out FILE] [--json]

A generation is run once to warm up, then recorded by torch.profiler. Within a captured graph the host's ranges exist
only at capture, so that --cuda-graphs off shows layers and operations, and --cuda-graphs lazy the real time of each
frame.
"""

import argparse
import gzip
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zonos2_triton._settings import local_path
from zonos2_triton.bench.cli_choices import chosen
from zonos2_triton.bench.specs.roofline import Roofline
from zonos2_triton.bench.timing.range_times import Node, label, of_trace, rows, table
from zonos2_triton.model.backbone import Backbone
from zonos2_triton.model.backend import BACKENDS, resolve_device
from zonos2_triton.model.files import whole_file
from zonos2_triton.model.nvtx import recorded
from zonos2_triton.model.ops import MAX_BATCH_SIZE
from zonos2_triton.model.pipeline import Zonos2
from zonos2_triton.model.prompt import build_prompt
from zonos2_triton.model.runtime.scheduler import BatchingOptions
from zonos2_triton.model.tables import fitted
from zonos2_triton.model.vocoder import Vocoder
from zonos2_triton.model.weights.tiny import write_tiny
from zonos2_triton.reference.sampling import Sampling
from zonos2_triton.reference.vocoder import VocoderConfig

REAL = "8b"
TEXT = "A quick brown fox jumps over the lazy dog."
GRAPHS = ("off", "lazy")
ENDINGS = (".json", ".json.gz")
CPU_COPY = 64 << 20  # bytes: beyond most caches, and quick


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """Options with `device` resolved and `out` a file. ValueError: one is wrong."""
    chosen("--backend", [options.backend], BACKENDS)
    chosen("--cuda-graphs", [options.cuda_graphs], GRAPHS)
    for name, most in (("frames", 100_000), ("batch_size", MAX_BATCH_SIZE)):
        if not 1 <= (value := getattr(options, name)) <= most:
            raise ValueError(f"--{name.replace('_', '-')} must be in 1..{most}, got {value}")
    device = resolve_device(options.device)
    if options.model == REAL and device.type == "cpu":
        raise ValueError(f"--model {REAL} makes 15 GB of random weights on a GPU, and the device is a CPU")
    if options.model not in (None, REAL) and not local_path(options.model).exists():
        accepted = f"a folder with params.json and weights, its weights, or {REAL!r}"
        raise ValueError(f"--model must be {accepted}, got {options.model!r}")
    out = options.out / "profile.json.gz" if options.out.is_dir() else options.out
    if not out.name.endswith(ENDINGS):  # by which a viewer knows it
        raise ValueError(f"--out must end in {' or '.join(ENDINGS)}, or be a folder, got {out}")
    return argparse.Namespace(**vars(options) | {"device": device, "out": out})


@contextmanager
def loaded(options: argparse.Namespace) -> Iterator[Zonos2]:
    """The model to run; the tiny one lives as long as the block."""
    device, backend = options.device, options.backend
    batching = BatchingOptions(max_batch_size=options.batch_size, cuda_graphs=options.cuda_graphs)
    if options.model == REAL:
        from zonos2_triton.bench.suite.device_checks import random_codec, random_weights, whole_model

        config, codec = whole_model(), VocoderConfig()
        weights = random_weights(config, str(device), torch.bfloat16)
        vocoder = Vocoder(codec, random_codec(codec, str(device), torch.float32), backend)
        yield Zonos2(Backbone(config, weights, backend, batching), vocoder)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny(Path(folder) / "tiny") if options.model is None else options.model
        yield Zonos2.load(model, device=device, backend=backend, options=batching)


def recording(call: Callable[[], object], out: Path, device: torch.device, zipped: bool) -> Node:
    """Record `call` into `out`."""
    from torch.profiler import ProfilerActivity, profile, record_function

    on_device = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_device]
    with profile(activities=activities) as profiler, recorded(lambda *range_: record_function(label(*range_))):
        call()
        if on_device:
            torch.cuda.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(str(trace := Path(folder) / "trace.json"))
        content = trace.read_bytes()
    out.write_bytes(gzip.compress(content) if zipped else content)
    return of_trace(json.loads(content)["traceEvents"], on_device)


def profiled(options: argparse.Namespace) -> dict[str, Any]:
    """The report, of equal prompts to their sound, each with a seed of its own."""
    on_device = options.device.type == "cuda"
    with whole_file(options.out) as part, loaded(options) as tts:
        backend = tts.backbone.backend
        settings = [Sampling(seed=i, max_frames=options.frames, ignore_eos=True) for i in range(options.batch_size)]
        call = partial(tts.speak, [TEXT] * options.batch_size, sampling=settings)
        if on_device or backend == "reference":  # the interpreter has nothing to warm up
            call()
        root = recording(call, part, options.device, options.out.suffix == ".gz")
        # Imports triton, which the model has set up by now.
        from zonos2_triton.bench.timing.range_costs import counts, placed, range_work

        prompt_rows = len(build_prompt(tts.backbone.config, TEXT))
        work = range_work(tts, options.batch_size, options.frames, prompt_rows, counts(root))
        roofline = measured_roofline(options.device)
    return {
        "trace": str(options.out),
        "model": options.model or "tiny",
        "device": torch.cuda.get_device_name(options.device) if on_device else "CPU",
        "backend": backend,
        "cuda_graphs": options.cuda_graphs if on_device else "off",
        "batch_size": options.batch_size,
        "frames": options.frames,
        "time_of": "device" if on_device else "host",
        "copy_gb_per_s": roofline.gb_per_s,
        "matmul_tflop_per_s": roofline.tflop_per_s,
        "notes": [note(options.cuda_graphs, backend, on_device)],
        "ranges": rows(root, placed(root, work), roofline),
    }


def measured_roofline(device: torch.device) -> Roofline:
    """The roofline of this machine, measured now."""
    from zonos2_triton.bench.timing import timer

    if device.type == "cpu":
        return Roofline(timer.copy_bandwidth(timer.cpu_device(), CPU_COPY)["gb_per_s"], None)
    with torch.cuda.device(device):
        gpu = timer.cuda_device()
        return Roofline(timer.copy_bandwidth(gpu)["gb_per_s"], timer.matmul_rate(gpu)["tflop_per_s"])


def note(cuda_graphs: str, backend: str, on_device: bool) -> str:
    """The meaning of the times."""
    if not on_device and backend == "triton":
        return "kernels run in Triton's interpreter: their times mean nothing"
    if not on_device:
        return "host times of a CPU, the profiler's own cost among them"
    if cuda_graphs == "lazy":
        return "frames are replays of a graph: what is in them shows with --cuda-graphs off"
    return "kernels were launched one by one: how long a frame really takes shows with --cuda-graphs lazy"


def shown(report: dict[str, Any]) -> str:
    """The report for a person to read."""
    about = "{model} model, {backend} backend on {device}: {batch_size} x {frames} frames, {time_of} time"
    measured = "copy bandwidth measured just now: {copy_gb_per_s:g} GB/s"
    head = [about.format(**report), *report["notes"], measured.format(**report)]
    return fitted("\n".join([*head, table(report["ranges"]), f"{report['trace']}: ui.perfetto.dev opens it"]))


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the options of the command to `parser`; what comes back runs it and returns its exit status."""
    parser.description = "Where the time of a generation goes: time by range, and a trace to look at."
    parser.add_argument("--model", metavar="DIR", help=f"default: a tiny one; {REAL}: random weights of the 8B shape")
    parser.add_argument("--frames", type=int, default=16, metavar="N", help="of each request; default: %(default)s")
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="requests that decode together; default: 1"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    parser.add_argument("--backend", default="auto", help=f"one of {', '.join(BACKENDS)}; default: auto")
    parser.add_argument(
        "--cuda-graphs", default="off", help="off: layers show; lazy: frames are replayed; default: off"
    )
    out = "or a folder; default: profile.json.gz"
    parser.add_argument("-o", "--out", type=local_path, default=Path("profile.json.gz"), metavar="FILE", help=out)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return _command


def _command(options: argparse.Namespace) -> int:
    report = profiled(checked(options))
    print(json.dumps(report, indent=1) if options.json else shown(report))
    return 0
