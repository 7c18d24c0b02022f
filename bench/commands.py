"""The commands `verify` and `bench`: kernels by name, checked or timed, here and now.

On a GPU at the 8B model's shapes. Without one they run at small sizes in Triton's interpreter, and say so: that shows
what is right, not what is fast.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from zonos2_triton._settings import local_path
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.cli_choices import chosen
from zonos2_triton.bench.compiler.gate import DTYPES as COMPILED_DTYPES
from zonos2_triton.bench.compiler.ptx.launch import on_cpu
from zonos2_triton.bench.proof.bounds import RATIO
from zonos2_triton.bench.proof.interpreter import interpreting
from zonos2_triton.bench.proof.verify import Mismatch, verify
from zonos2_triton.bench.report.compare import compare, read
from zonos2_triton.bench.report.timings_csv import as_csv
from zonos2_triton.bench.specs.spec import Kernel, Workload
from zonos2_triton.bench.suite import gpu
from zonos2_triton.bench.suite.environment import environment
from zonos2_triton.bench.suite.presets import DTYPES, FULL, SMOKE
from zonos2_triton.bench.suite.recorder import Budget, Recorder
from zonos2_triton.bench.suite.stages import SEED, Run, plan
from zonos2_triton.bench.timing import timer
from zonos2_triton.model.files import check_writable, write_whole
from zonos2_triton.model.tables import fitted, text_row

Command = Callable[[argparse.Namespace], int]
NO_GPU = "no GPU: small workloads in Triton's interpreter, a smoke test; no figure is of speed"


def verify_command(parser: argparse.ArgumentParser) -> Command:
    """Add the options of `verify` to `parser`; what comes back runs it and returns its exit status."""
    parser.description = "Compare kernels with the reference in fp64 and with plain PyTorch, on all their workloads."
    _naming(parser)
    parser.add_argument("--dtype", nargs="+", metavar="NAME", help=f"of {', '.join(DTYPES)}; default: all")
    parser.add_argument("--seed", type=int, default=SEED, help="of the inputs; default: %(default)s")
    parser.add_argument("--compiled", metavar="TARGET",
                        help="run the PTX compiled for it, such as sm_90, on the CPU, in 16 bits")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return _verify


def bench_command(parser: argparse.ArgumentParser) -> Command:
    """Likewise of `bench`."""
    parser.description = "Time kernels next to plain PyTorch and other libraries; or compare two files of results."
    _naming(parser)
    parser.add_argument("-o", "--out", type=local_path, metavar="DIR", help="keep the results in a file there")
    parser.add_argument("--csv", type=local_path, metavar="FILE", help="also write a row for each timing, as CSV")
    parser.add_argument("--compare", nargs=2, metavar=("BEFORE", "AFTER"),
                        help="two results, or two snapshots of the compile gate: files, or REVISION:FILE")  # fmt: skip
    parser.add_argument("--threshold", type=float, default=0.02, metavar="SHARE",
                        help="of time by which a kernel must have changed to count; default: %(default)s")  # fmt: skip
    parser.add_argument("--allow-different-gpus", action="store_true", help="also compare results of different GPUs")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return _bench


def _naming(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kernel", nargs="+", metavar="NAME", help="default: all of the catalogue")
    parser.add_argument("--workload", nargs="+", metavar="NAME", help="default: all of each kernel; with --set: one")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="other sizes of the workload: M=7"
    )


def _selected(options: argparse.Namespace, offered: Callable[[Kernel], list[Workload]]) -> dict[str, Kernel]:
    """The kernels that the options name, with the workloads that they name or resize. ValueError: unknown names."""
    kernels = [KERNELS[name] for name in chosen("kernel", options.kernel, KERNELS)]
    known = sorted({workload.name for kernel in kernels for workload in offered(kernel)})
    where = "" if torch.cuda.is_available() else " (without a GPU)"
    names, found = chosen(f"workload{where}", options.workload, known), {}
    for kernel in kernels:
        workloads = [workload for workload in offered(kernel) if workload.name in names]
        if options.set:
            named = workloads if options.workload else workloads[:1]
            workloads = [kernel.resized(workload, options.set) for workload in named]
        if workloads:
            found[kernel.name] = replace(kernel, workloads=tuple(workloads))
    return found


def _verify(options: argparse.Namespace) -> int:
    """Exit status: 0 all agree, 1 one does not, or fails to run."""
    target: str | None = options.compiled
    if target is not None:
        with on_cpu(target):  # raises where it cannot be
            pass
    on_gpu = torch.cuda.is_available() and not target
    kernels = _selected(options, lambda kernel: [w for w in kernel.workloads if on_gpu or not w.real]).values()
    dtypes = chosen("dtype", options.dtype, COMPILED_DTYPES if target else DTYPES)
    if not on_gpu and not target:
        interpreting()
    where = f"compiled for {target}, on the PTX machine" if target else NO_GPU
    found: list[dict[str, Any]] = []
    say = print if not options.json else (lambda *_: None)
    say(fitted(f"on {torch.cuda.get_device_name()}" if on_gpu else where))
    cases = [(kernel, w, dtype) for kernel in kernels for w in kernel.workloads for dtype in dtypes]
    widths = [max(map(len, names)) for names in zip(*((k.name, w.name) for k, w, _ in cases), strict=True)]
    widths.append(max(map(len, DTYPES)))
    with nullcontext() if on_gpu or target else gpu.quiet_interpreter():
        for kernel, workload, dtype in cases:
            row: dict[str, Any] = {"kernel": kernel.name, "workload": workload.name, "dtype": dtype}
            try:
                op = _on_machine(kernel, target) if target else None
                report = verify(kernel, workload, "cuda" if on_gpu else "cpu", DTYPES[dtype], op, options.seed)
                worst = report.worst
                row |= {"passed": True, "ratio": round(worst.ratio, 3), "bound": round(worst.bound, 3)}
                by_floor = ", by the floor" if worst.bound > RATIO else ""
                of_plain = f"error {worst.ratio:.2f} of plain PyTorch's, at most {worst.bound:.2f}{by_floor}"
                verdict = of_plain if worst.limit else "equal"
            except Exception as error:  # of the kernel or of its reference: the other rows are checked all the same
                said = str(error) if isinstance(error, Mismatch) else f"{type(error).__name__}: {error}"
                row |= {"passed": False, "error": said}
                verdict = f"FAILED: {said}"
            say(text_row((kernel.name, workload.name, dtype, verdict), widths))
            found.append(row)
    wrong = [row for row in found if not row["passed"]]
    if options.json:
        print(json.dumps({"device": "cuda" if on_gpu else target or "interpreter", "results": found}, indent=1))
    say(f"{len(found) - len(wrong)} passed, {len(wrong)} failed")
    return 1 if wrong else 0


def _on_machine(kernel: Kernel, target: str) -> Callable[..., Any]:
    """The operator, by the code that is compiled for `target`."""

    def run(**inputs: Any) -> Any:
        with on_cpu(target):
            return kernel.op(**inputs)

    return run


def _bench(options: argparse.Namespace) -> int:
    """Exit status: 0 done; 1 times are withheld from a wrong kernel, nothing was timed, or a comparison found nothing
    to compare, or worse."""
    if options.compare:
        if options.csv or options.set:
            raise ValueError("--compare reads two files; --csv and --set are for a run")
        before, after = map(read, options.compare)
        comparison = compare(before, after, options.threshold, options.allow_different_gpus)
        print(json.dumps(comparison.as_json(), indent=1) if options.json else comparison.as_text())
        return 1 if comparison.worse or not comparison.common else 0
    on_gpu = torch.cuda.is_available()
    preset = FULL if on_gpu else SMOKE
    preset = replace(preset, kernels=_selected(options, preset.timed))
    if options.csv:
        check_writable(options.csv)
    if not on_gpu:
        interpreting()
    stages = ["calibration", "timings", "baselines"]
    with tempfile.TemporaryDirectory() as scratch, nullcontext() if on_gpu else gpu.quiet_interpreter():
        recorder = Recorder.open(options.out or Path(scratch), environment(SEED, not on_gpu))
        device = timer.cuda_device() if on_gpu else timer.cpu_device()
        items = plan(Run(recorder, device, preset), stages, preset)
        say = (lambda _: None) if options.json else print
        say(fitted(f"on {torch.cuda.get_device_name()}" if on_gpu else NO_GPU))
        status = gpu.run(recorder, stages, items, Budget(float("inf")), say=say)
        print(json.dumps(recorder.content, indent=1) if options.json else gpu.table(recorder))
    if options.csv:
        write_whole(options.csv, as_csv(recorder.content))
    if not recorder.items("timings"):
        print("bench: nothing was timed: every item was left out", file=sys.stderr)
        return 1
    return status
