"""One command for a GPU: is every kernel right on this card, and how long does it take. JSON is written as it goes.

    python -m zonos2_triton.bench.gpu [--only PART,...] [--budget SECONDS] [--out DIR] [--again] [--json]

environment  the card, its clocks, the versions
tests        the tests marked gpu
kernels      every workload of the catalogue against plain PyTorch, as `verify` judges
invariance   a row's bits do not depend on its batch, nor a prompt's on its pieces, nor a clip's on its steps
graph        a captured step, of decoding or of the vocoder, replays to the bits of the host's launches
calibration  this card's copy bandwidth and matrix rate
frames       a whole frame of the 8B model with random weights in one graph, at 1 to 64 streams; withheld where a check
             failed
vocoder      clips, and steps of streams, of a 44.1 kHz codec with random weights, in one graph, beside PyTorch;
             withheld where a check of the vocoder's kernels failed
timings      every kernel at the 8B model's shapes; withheld where a check of that kernel failed

Items that have a result for the same card, commit, sources and versions are not run again. Nothing is installed,
nothing is fetched. Without a GPU it says what it would run.
"""

import argparse
import json
import sys
from collections.abc import Callable, Collection, Iterator
from difflib import get_close_matches
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from zonos2_triton.bench import device_checks as checks
from zonos2_triton.bench import timing
from zonos2_triton.bench.catalogue import KERNELS, Kernel, Workload
from zonos2_triton.bench.environment import environment, run_tests
from zonos2_triton.bench.frame_timing import FrameTimer
from zonos2_triton.bench.record import Budget, Item, NotRun, Record, Withheld, perform
from zonos2_triton.bench.verify import verify
from zonos2_triton.bench.vocoder_timing import WORKS, VocoderTimer
from zonos2_triton.kernels._common import interpreted
from zonos2_triton.reference.rings import OPERATIONS
from zonos2_triton.reference.vocoder import VocoderConfig

RESULTS = Path(__file__).parent / "results"
BUDGET = 530.0  # seconds: under nine minutes, start and end included
# In this order; seconds that earlier parts leave for each.
PARTS = {
    "environment": 0.0, "tests": 0.0, "kernels": 0.0, "invariance": 40.0, "graph": 10.0, "calibration": 10.0,
    "frames": 60.0, "vocoder": 60.0, "timings": 100.0,
}  # fmt: skip
SHOWN = ("card", "arch", "driver", "torch", "triton", "commit")
SEED = 0  # of the inputs
TESTS_LIMIT = 170.0  # seconds
STREAMS, CONTEXT = (1, 4, 16, 64), 1000  # of whole frames
COMPILING = 40.0  # seconds that torch.compile may take
# Most valuable first; then other prefills, then the rest.
FIRST = ("decode-B1", "dense-B1", "decode-B16", "decode-B64", "dense-B64", "prefill-2048", "dense-prefill-2048")
# The reference is timed beside these: one of decoding, and the first of the others that a kernel has.
REFERENCE_DECODE, REFERENCE_PREFILL = "decode-B1", ("prefill-2048", "prefill-128")
VOCODER = ("vocoder", *OPERATIONS)  # the kernels of a clip, and the whole of them
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def chosen_parts(only: Collection[str] | None) -> list[str]:
    """In the order of PARTS; None: all. ValueError: an unknown one."""
    for name in only or ():
        if name not in PARTS:
            near = get_close_matches(name, PARTS, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"--only takes parts of {', '.join(PARTS)}, got {name!r}{hint}")
    return [name for name in PARTS if not only or name in only]


def plan(record: Record | None, parts: Collection[str], device: timing.Device | None) -> list[Item]:
    """Everything there is to run in `parts`, in order. record and device None: only to be listed."""
    makers = {
        "tests": _test_items, "kernels": _kernel_items, "invariance": _invariance_items, "graph": _graph_items,
        "calibration": _calibration_items, "frames": _frame_items, "vocoder": _vocoder_items,
        "timings": _timing_items,
    }  # fmt: skip
    return [item for part in parts if part in makers for item in makers[part](record, device)]


def reserve(part: str, parts: Collection[str]) -> float:
    """Seconds of the budget that `part` leaves for the later ones of `parts`."""
    names = list(PARTS)
    return sum(PARTS[later] for later in names[names.index(part) + 1 :] if later in parts)


def by_value(workload: Workload) -> tuple[int, int]:
    """The order of timings."""
    rank = FIRST.index(workload.name) if workload.name in FIRST else len(FIRST)
    return rank, "prefill" not in workload.name and "chunk" not in workload.name


def _test_items(record: Record | None, device: timing.Device | None) -> Iterator[Item]:
    yield Item("tests", "pytest -m gpu", 30, lambda left: run_tests(min(TESTS_LIMIT, left)))


def _kernel_items(record: Record | None, device: timing.Device | None) -> Iterator[Item]:
    """Real shapes first: those are what is timed."""
    kinds = [("bfloat16", True), ("bfloat16", False), ("float16", False), ("float32", False)]
    for dtype, real in kinds:
        for kernel in KERNELS.values():
            for workload in kernel.workloads:
                if workload.real == real:
                    run = partial(_verified, kernel, workload, device, dtype)
                    yield Item("kernels", f"{kernel.name}/{workload.name}/{dtype}", 4, run)


def _verified(
    kernel: Kernel, workload: Workload, device: timing.Device | None, dtype: str, left: float
) -> dict[str, Any]:  # fmt: skip
    assert device is not None
    report = verify(kernel, workload, device.name, DTYPES[dtype], seed=SEED)
    return {"ratio": round(report.ratio, 3), "rms": {error.output: error.rms for error in report.errors}}


def _invariance_items(record: Record | None, device: timing.Device | None) -> Iterator[Item]:
    def item(name: str, check: Callable[..., None], *arguments: Any, **more: Any) -> Item:
        def run(left: float) -> dict[str, Any]:
            assert device is not None
            check(*arguments, device.name, **more)
            return {}

        return Item("invariance", name, 5, run)

    for name in checks.BATCHED:
        yield item(f"{name}/batches", checks.batch_invariance, name, checks.workload_sizes(name, "decode-B256"))
    for label, workload in (("top2", "decode-B64-top2"), ("dense", "dense-B64")):
        sizes = checks.workload_sizes("experts", workload) | {"M": max(checks.BATCHES)}
        yield item(f"experts/batches-{label}", checks.batch_invariance, "experts", sizes)
    sizes = checks.workload_sizes("prefill_attention", "prefill-2048") | {"T": 300}
    yield item("prefill_attention/pieces", checks.prefill_in_chunks, sizes)
    for name in ("qkv_projection", "output_projection", "router", "experts", "head"):
        sizes = checks.workload_sizes(name, "prefill-128" if name == "head" else "prefill-2048")
        yield item(f"{name}/pieces", checks.prefill_rows, name, sizes)
    for dtype in ("bfloat16", "float16"):
        yield item(f"vocoder/steps-{dtype}", checks.vocoder_steps, VocoderConfig(), dtype=DTYPES[dtype])


def _graph_items(record: Record | None, device: timing.Device | None) -> Iterator[Item]:
    def run(check: Callable[..., None], config: Any, left: float) -> dict[str, Any]:
        assert device is not None
        check(config, device.name)
        return {}

    yield Item("graph", "decode step", 10, partial(run, checks.graph_capture, checks.layer_chain()))
    yield Item("graph", "vocoder/step", 10, partial(run, checks.vocoder_graph, VocoderConfig()))


def _calibration_items(record: Record | None, device: timing.Device | None) -> Iterator[Item]:
    yield Item("calibration", "copy", 3, lambda left: timing.copy_bandwidth(device))  # type: ignore[arg-type]
    yield Item("calibration", "matmul", 3, lambda left: timing.matmul_rate(device))  # type: ignore[arg-type]


def _frame_items(record: Record | None, device: timing.Device | None) -> Iterator[Item]:
    """The model is made once, when the first of them runs."""
    timer = cache(lambda: FrameTimer(checks.whole_model(), "cuda"))

    def run(streams: int, left: float) -> dict[str, Any]:
        assert record is not None
        assert device is not None
        _proven(record, lambda kernel: kernel not in VOCODER)
        return timer().time(streams, CONTEXT, device)

    for streams in STREAMS:
        yield Item("frames", f"B{streams}", 12, partial(run, streams))


def _vocoder_items(record: Record | None, device: timing.Device | None) -> Iterator[Item]:
    """A codec is made once for each precision, when the first of its items runs."""
    timer = cache(lambda dtype: VocoderTimer(VocoderConfig(), "cuda", DTYPES[dtype]))

    def run(name: str, dtype: str, left: float) -> dict[str, Any]:
        assert record is not None
        assert device is not None
        _proven(record, lambda kernel: kernel in VOCODER)
        return timer(dtype).time(WORKS[name], device, mode="default" if left > COMPILING else None)

    for dtype in ("bfloat16", "float16"):
        for name in WORKS:
            yield Item("vocoder", f"{name}/{dtype}", 15, partial(run, name, dtype))


def _proven(record: Record, counts: Callable[[str], bool]) -> None:
    """Raises Withheld where a check failed of something that `counts`."""
    checked = [item for part in ("kernels", "invariance", "graph") for item in record.items(part).items()]
    failed = [name for name, found in checked if found["status"] == "failed" and counts(name.split("/")[0])]
    if failed:
        raise Withheld(f"{', '.join(failed)} failed")


def _timing_items(record: Record | None, device: timing.Device | None) -> Iterator[Item]:
    pairs = [(kernel, w) for kernel in KERNELS.values() for w in kernel.workloads if w.real]
    for kernel, workload in sorted(pairs, key=lambda pair: by_value(pair[1])):
        yield Item("timings", f"{kernel.name}/{workload.name}", 3, partial(_timed, kernel, workload, record, device))


def _timed(
    kernel: Kernel, workload: Workload, record: Record | None, device: timing.Device | None, left: float
) -> dict[str, Any]:  # fmt: skip
    assert record is not None
    assert device is not None
    prove(kernel, workload, record, device, left)
    copied = record.items("calibration").get("copy", {}).get("gb_per_s")
    result = timing.time_kernel(kernel, workload, device, bandwidth=copied)
    names = {w.name for w in kernel.workloads}
    beside = {REFERENCE_DECODE, *[name for name in REFERENCE_PREFILL if name in names][:1]}
    if workload.name in beside:
        result["reference"] = timing.time_reference(kernel, workload, device)
    return result


def prove(kernel: Kernel, workload: Workload, record: Record, device: timing.Device, left: float) -> None:
    """Raises Withheld unless no check of the kernel failed and this workload passed; it is checked now if need be."""
    checked = [(name, found) for part in ("kernels", "invariance") for name, found in record.items(part).items()]
    failed = [name for name, found in checked if found["status"] == "failed" and name.split("/")[0] == kernel.name]
    if failed:
        raise Withheld(f"{', '.join(failed)} failed")
    item = Item("kernels", name := f"{kernel.name}/{workload.name}/bfloat16", 0,
                partial(_verified, kernel, workload, device, "bfloat16"))  # fmt: skip
    if name not in record.items("kernels"):
        status = perform(item, record, left)
        if status == "not run":
            raise NotRun(f"{name}: {record.left_out('kernels')[name]}")
        if status != "passed":
            raise Withheld(f"{name} failed")


def run(
    record: Record, parts: Collection[str], items: Collection[Item], budget: Budget, again: bool = False,
    say: Callable[[str], None] = print, alive: Callable[[], bool] = lambda: True,
) -> int:  # fmt: skip
    """Perform what has no result yet, or all of it `again`. Exit status: 1 where something failed or was withheld."""
    for part, mine in groupby(items, lambda item: item.part):
        for item in mine:
            if not again and item.name in record.items(part):
                continue
            left = budget.left() - reserve(part, parts)
            if left < item.seconds:
                record.leave_out(part, item.name, "no time left")
                continue
            perform(item, record, left)
            if not alive():
                record.lose(part, item.name)
                say("the device no longer answers; run again: what has results, this failure too, is not run again")
                return 1
        say(record.summary(part))
    return 1 if any(found["status"] != "passed" for part in parts for found in record.items(part).values()) else 0


def _alive() -> bool:
    """A fault on the device, such as a wrong address, ends every later call of this process."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def table(record: Record) -> str:
    """The timings for a person to read."""
    lines = [("kernel", "workload", "us", "20 %", "80 %", "GB/s", "% copy", "TFLOP/s", "PyTorch us", "cache")]
    for name, found in record.items("timings").items():
        kernel, workload = name.split("/")
        if found["status"] != "passed":
            lines.append((kernel, workload, found["status"], "", "", "", "", "", "", ""))
            continue
        beside = found.get("reference", {}).get("median_us")
        numbers = (found["median_us"], found["low_us"], found["high_us"], found["gb_per_s"], found["percent_of_copy"],
                   found["tflop_per_s"], beside)  # fmt: skip
        lines.append((kernel, workload, *("" if n is None else f"{n:.1f}" for n in numbers), found["cache"]))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def listing(parts: Collection[str], as_json: bool) -> str:
    """What would run where a GPU is."""
    names = {part: [item.name for item in plan(None, [part], None)] for part in parts}
    reason = f"torch {torch.__version__} finds no CUDA or ROCm device"
    if as_json:
        return json.dumps({"schema": Record.SCHEMA, "ran": False, "reason": reason, "would_run": names}, indent=1)
    lines = [f"nothing was run: {reason}. On a GPU this would run:"]
    for part, items in names.items():
        lines.append(f"{part}: {len(items)} items" if items else f"{part}: with every part")
        groups: dict[str, list[str]] = {}
        for item in items:
            kernel, _, rest = item.partition("/")
            groups.setdefault(kernel, []).append(rest)
        lines += [f"  {kernel} {', '.join(filter(None, rest))}".rstrip() for kernel, rest in groups.items()]
    return "\n".join(lines)


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the options of the command to `parser`; what comes back runs it and returns its exit status."""
    parser.description = "Check and time every kernel on this machine's GPU; without one, say what would run."
    parser.add_argument("--only", action="append", metavar="PART[,PART]", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="default: %(default)g")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="for the JSON; default: bench/results")
    parser.add_argument("--again", action="store_true", help="also what has a result of this card and commit")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return _command


def _command(options: argparse.Namespace) -> int:
    """Exit status: 0 all passed, or no GPU; 1 something failed or was withheld."""
    if not 0 < options.budget < float("inf"):
        raise ValueError(f"--budget must be a number of seconds above 0, got {options.budget:g}")
    budget = Budget(options.budget)
    parts = chosen_parts(",".join(options.only).split(",") if options.only else None)
    if not torch.cuda.is_available():
        print(listing(parts, options.json))
        return 0
    if interpreted():
        raise ValueError("kernels would be interpreted, not compiled: unset TRITON_INTERPRET")
    record = Record.open(options.out, environment(SEED))
    say = partial(print, file=sys.stderr) if options.json else print
    found = record.content["environment"]
    say(f"{record.path}: " + ", ".join(f"{name} {found[name]}" for name in SHOWN))
    device = timing.cuda_device()
    status = run(record, parts, plan(record, parts, device), budget, options.again, say, _alive)
    if options.json:
        print(json.dumps(record.content, indent=1))
    else:
        print(table(record))
    return status


def main(argv: list[str] | None = None) -> int:
    """The command by itself. Exit status: 0 and 1 as above, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m zonos2_triton.bench.gpu")
    execute = command(parser)
    try:
        return execute(parser.parse_args(argv))
    except (ValueError, OSError, ImportError) as error:
        print(f"gpu: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
