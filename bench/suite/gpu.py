"""One command for a GPU: is every kernel right on this GPU, and how long does it take. JSON is written as it goes.

    zonos2-triton gpu [--stage STAGE,...] [--budget SECONDS] [--out DIR] [--rerun] [--names] [--smoke] [--json]

environment  the GPU, its clocks, the versions
calibration  this GPU's copy bandwidth and matrix rate
compile      every kernel compiled beforehand, on all cores: no check, but it saves the others the time
tests        the tests marked gpu
accuracy     every workload of the catalogue against plain PyTorch, as `verify` judges
invariance   a row's bits do not depend on its batch, nor a prompt's on its pieces, nor a clip's on its steps
cuda_graph   a captured step, of decoding or of the vocoder, replays to the bits of the host's launches
frames       a whole frame of the 8B model with random weights in one graph, at batches of 1 to 256 and over the context
launches     the launches of a frame one by one, beside the estimates that are made without a GPU
constants    the constants of the estimate, fitted to these times
vocoder      clips, and steps of streams, of a 44.1 kHz codec with random weights, in one graph, beside PyTorch
end_to_end   prompts, text to first audio, the host's work for a frame, memory
integrations transformers' DacModel before and after `accelerate`, and the offline front
timings      every kernel at the 8B model's shapes
baselines    PyTorch and other libraries at the same, each compared with the reference before
torch_frame  the same frames, and the longest prompt, by plain PyTorch, compiled, in one graph
sanitizer    the small workloads under compute-sanitizer, with what time is left

What is timed was verified before, on the same inputs; where a check of it failed, the time is withheld. Items that have
a result for the same GPU, commit, sources and versions are not run again. Nothing is installed, nothing is fetched.
Without a GPU it says so, and how much it would run, and fails; --names lists that. With --smoke it runs each step at
a small size in Triton's interpreter, which shows that the steps work and says nothing of speed.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import groupby
from pathlib import Path

import torch

from zonos2_triton._settings import local_path
from zonos2_triton.bench.cli_choices import chosen
from zonos2_triton.bench.proof.interpreter import checked, interpreting
from zonos2_triton.bench.suite.constants import against_estimates
from zonos2_triton.bench.suite.environment import environment
from zonos2_triton.bench.suite.presets import FULL, SMOKE
from zonos2_triton.bench.suite.recorder import Budget, Item, Recorder, perform
from zonos2_triton.bench.suite.results import RESULTS
from zonos2_triton.bench.suite.stages import ESSENTIAL, SEED, STAGES, Run, plan, reserve
from zonos2_triton.bench.timing import timer
from zonos2_triton.kernels._operator import interpreted
from zonos2_triton.model.console import unfailing
from zonos2_triton.model.tables import fitted, text_table

SMOKE_RESULTS = Path(".gpu") / "smoke"  # of a smoke run
BUDGET = 530.0  # seconds: under nine minutes, start and end included
COLUMNS = {
    "us": "median_us", "20 %": "p20_us", "80 %": "p80_us", "GB/s": "gb_per_s", "TFLOP/s": "tflop_per_s",
    "% floor": "pct_floor",
}  # fmt: skip
SHOWN = ("gpu", "arch", "driver", "torch", "triton", "commit")


def run(
    recorder: Recorder, stages: Collection[str], items: Collection[Item], budget: Budget, rerun: bool = False,
    say: Callable[[str], None] = print, alive: Callable[[], bool] = lambda: True,
) -> int:  # fmt: skip
    """Perform what has no result yet, or all of it `rerun`. Exit status: 1 where something failed or was withheld."""
    late = max(budget.left() - ESSENTIAL, 0.0)
    for stage, mine in groupby(items, lambda item: item.stage):
        for item in mine:
            if not rerun and item.name in recorder.items(stage):
                continue
            left = budget.left()
            left = max(left - late, min(left, item.seconds)) if item.essential else left - reserve(stage, stages)
            if left < item.seconds:
                recorder.leave_out(stage, item.name, "no time left")
                continue
            perform(item, recorder, left)
            if not alive():
                recorder.lose(stage, item.name)
                say("the device no longer answers; run again: what has results, this failure too, is not run again")
                return 1
        say(recorder.summary(stage))
    return 1 if any(found["status"] != "passed" for stage in stages for found in recorder.items(stage).values()) else 0


@contextmanager
def quiet_interpreter() -> Iterator[None]:
    """Inside, the interpreter is quick: it does not check each access, nor warn of a row of NaN."""
    with checked(bounds=False, undefined=False, races=False), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _alive() -> bool:
    """A fault on the device, such as a wrong address, ends every later call of this process."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def table(recorder: Recorder) -> str:
    """The timings for a person to read: ours, then the median of each other implementation."""
    timings = recorder.items("timings")
    others = list(dict.fromkeys(name.split("/")[2] for name in recorder.items("baselines")))
    lines = [["kernel", "workload", *COLUMNS, *(f"{name} us" for name in others)]]
    for name, found in timings.items():
        cells = [found["status"], *[""] * (len(lines[0]) - 3)]
        if found["status"] == "passed":
            medians = (recorder.items("baselines").get(f"{name}/{other}", {}).get("median_us") for other in others)
            numbers = *(found[key] for key in COLUMNS.values()), *medians
            cells = ["" if number is None else f"{number:.1f}" for number in numbers]
        lines.append([*name.split("/"), *cells])
    return text_table(lines, keys=2)


def listing(stages: Collection[str], as_json: bool, reason: str | None = None) -> str:
    """The items that would run on a GPU, by name; with a reason why nothing ran, their number."""
    items = {stage: [item.name for item in plan(None, [stage], FULL)] for stage in stages}
    if as_json:
        why = {"reason": reason} if reason else {}
        return json.dumps({"schema": Recorder.SCHEMA, "ran": False, **why, "would_run": items}, indent=1)
    if reason:
        rows = [(stage, str(len(mine)) if mine else "with every stage") for stage, mine in items.items()]
        counts = text_table([("stage", "items"), *rows])
        hint = "--names lists the items; --smoke runs every step on a CPU, at a small size"
        return fitted(f"nothing was run: {reason}. On a GPU this would run:\n{counts}\n{hint}")
    lines = []
    for stage, mine in items.items():
        lines.append(f"{stage}: {len(mine)} items" if mine else f"{stage}: with every stage")
        for kernel in dict.fromkeys(item.partition("/")[0] for item in mine):
            own = [item.removeprefix(f"{kernel}/") for item in mine if item.startswith(f"{kernel}/")]
            lines.append(f"  {kernel} {', '.join(own)}".rstrip())
    return fitted("\n".join(lines))


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the options of the command to `parser`; what comes back runs it and returns its exit status."""
    parser.description = "Check and time every kernel on this machine's GPU; without one, say what would run, and fail."
    parser.add_argument("--stage", action="append", metavar="STAGE[,STAGE]", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="default: %(default)g")
    parser.add_argument("-o", "--out", type=local_path, metavar="DIR",
                        help=f"for the JSON; default: bench/results, of a smoke run {SMOKE_RESULTS}")  # fmt: skip
    parser.add_argument(
        "--rerun", action="store_true", help="run also steps that already have a result of this GPU and commit"
    )
    parser.add_argument("--names", action="store_true", help="run nothing: list what would run on a GPU")
    parser.add_argument("--smoke", action="store_true", help="on a CPU: every step at a small size, interpreted")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return _command


def _command(options: argparse.Namespace) -> int:
    """Exit status: 0 all passed, or --names; 1 something failed or was withheld, nothing was run, or no GPU."""
    if not 0 < options.budget < float("inf"):
        raise ValueError(f"--budget must be a number of seconds above 0, got {options.budget:g}")
    budget = Budget(options.budget)
    stages = chosen("--stage", ",".join(options.stage).split(",") if options.stage else None, STAGES)
    if options.names:
        print(listing(stages, options.json))
        return 0
    if not options.smoke and not torch.cuda.is_available():
        print(listing(stages, options.json, f"torch {torch.__version__} finds no CUDA or ROCm device"))
        return 1
    if options.smoke:
        interpreting()
    elif interpreted():
        raise ValueError("kernels would be interpreted, not compiled: unset TRITON_INTERPRET")
    preset = SMOKE if options.smoke else FULL
    folder = options.out or (SMOKE_RESULTS if options.smoke else RESULTS)
    recorder = Recorder.open(folder, environment(SEED, options.smoke))
    say = partial(print, file=sys.stderr) if options.json else print
    found = recorder.content["environment"]
    say(f"{recorder.path}: " + ", ".join(f"{name} {found.get(name)}" for name in SHOWN))
    if options.smoke:
        say("a smoke run on a CPU, in Triton's interpreter, at small sizes: no figure is of speed")
        device, alive = timer.cpu_device(), lambda: True
    else:
        device, alive = timer.cuda_device(), _alive
    items = plan(Run(recorder, device, preset), stages, preset)
    with quiet_interpreter() if options.smoke else nullcontext():
        status = run(recorder, stages, items, budget, options.rerun, say, alive)
    if shown := against_estimates(recorder.content):
        say(shown)
    print(json.dumps(recorder.content, indent=1) if options.json else table(recorder))
    if items and not any(recorder.items(stage) for stage in stages):
        print("gpu: nothing was run: every item was left out", file=sys.stderr)
        return 1
    return status


def main(argv: list[str] | None = None) -> int:
    """The command by itself. Exit status: 0 and 1 as above, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m zonos2_triton.bench.suite.gpu")
    execute = command(parser)
    with unfailing():
        try:
            return execute(parser.parse_args(argv))
        except (ValueError, OSError, ImportError) as error:
            print(f"gpu: error: {error}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    raise SystemExit(main())
