"""The stages of a run on a device, and the items of each: first what is essential of all, then the rest.

An item is listed without a device, performed with one. Sizes are those of a `Preset`: the 8B model's, or small ones.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, cast

from zonos2_triton.bench.baselines.providers import Provider, providers_of, time_provider
from zonos2_triton.bench.baselines.torch_frame import TorchFrame
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.compiler.estimate import Rates, Step, serial_us
from zonos2_triton.bench.compiler.frame_estimate import Operation, estimated_snapshot, estimates, frame_places, frame_us
from zonos2_triton.bench.compiler.offline_compile import dependent_launch
from zonos2_triton.bench.compiler.warmup import warmup
from zonos2_triton.bench.proof.verify import verify
from zonos2_triton.bench.specs.gpus import recognised
from zonos2_triton.bench.specs.roofline import UNKNOWN, Roofline
from zonos2_triton.bench.specs.spec import Kernel, Workload
from zonos2_triton.bench.suite import constants, results, sanitizer
from zonos2_triton.bench.suite import device_checks as checks
from zonos2_triton.bench.suite.environment import run_tests
from zonos2_triton.bench.suite.presets import DTYPES, TIMED, Preset
from zonos2_triton.bench.suite.recorder import Item, NotRun, Recorder, Withheld, perform
from zonos2_triton.bench.timing import timer
from zonos2_triton.bench.timing.end_to_end import EndToEnd
from zonos2_triton.bench.timing.frame import FrameTimer
from zonos2_triton.bench.timing.integrations import time_dac_model
from zonos2_triton.bench.timing.vocoder import VocoderTimer
from zonos2_triton.kernels._launch_config import dependent_launch as pdl_arguments
from zonos2_triton.reference.ops import VOCODER_OPERATORS

SEED = 0  # of the inputs
TESTS_LIMIT = 150.0  # seconds
COMPILING = 40.0  # seconds that torch.compile may take
FIRST_COMPILED = 40.0  # seconds for the kernels of frames and of the vocoder
ESSENTIAL = 300.0  # seconds in which what is essential fits
# Most valuable first; then other decoding, then the rest.
FIRST = ("decode-B1", "dense-B1", "decode-B16", "decode-B64", "dense-B64", "prefill-2048", "dense-prefill-2048")
VOCODER = ("vocoder", *VOCODER_OPERATORS)  # the kernels of a clip, and the whole of them


@dataclass(frozen=True)
class Run:
    """The state that the items of one run share. Costly parts are made on first use."""

    recorder: Recorder
    device: timer.Device
    preset: Preset
    codecs: dict[str, VocoderTimer] = field(default_factory=dict)

    @cached_property
    def end_to_end(self) -> EndToEnd:
        """The model of random weights."""
        return EndToEnd(self.preset.config, self.preset.codec, self.preset.text, self.device.name, DTYPES[TIMED])

    @cached_property
    def frames(self) -> FrameTimer:
        return FrameTimer(self.end_to_end.model)

    @cached_property
    def torch_frame(self) -> TorchFrame:
        return TorchFrame(self.end_to_end.model, compile=self.preset.real)

    def codec(self, dtype: str) -> VocoderTimer:
        if dtype not in self.codecs:
            self.codecs[dtype] = VocoderTimer(self.preset.codec, self.device.name, DTYPES[dtype])
        return self.codecs[dtype]

    @property
    def roofline(self) -> Roofline:
        """As calibrated in this run."""
        return results.roofline(self.recorder.content)

    @property
    def datasheet(self) -> Roofline:
        """As the GPU's data sheet says."""
        gpu = recognised(str(self.recorder.content["environment"]["gpu"]))
        return gpu.roofline if gpu else UNKNOWN

    @property
    def rates(self) -> Rates | None:
        """The rates of this GPU, as calibrated. None: the counts are not of it."""
        return constants.measured_rates(self.recorder.content)

    @cached_property
    def estimates(self) -> dict[Operation, list[Step]]:
        """The launches of each workload, by the counts of the compile gate."""
        return estimates(estimated_snapshot(), self.rates) if self.rates else {}

    def prove(self, counts: Callable[[str], bool]) -> None:
        """Raises Withheld where a check failed of something that `counts`."""
        checks = ("accuracy", "invariance", "cuda_graph")
        checked = [item for stage in checks for item in self.recorder.items(stage).items()]
        failed = [name for name, found in checked if found["status"] == "failed" and counts(name.split("/")[0])]
        if failed:
            raise Withheld(f"{', '.join(failed)} failed")


Does = Callable[[Run, float], dict[str, Any]]  # of an item, given the seconds left
Listed = Iterator[tuple[str, float, Does]]  # items: name, seconds without which it is not begun


def plan(run: Run | None, stages: Collection[str], preset: Preset) -> list[Item]:
    """Everything there is to run in `stages`, in order: first what is essential. run None: only to be listed."""
    items = [
        Item(stage, name, seconds, partial(does, cast(Run, run)), preset.essential(stage, name))
        for stage in stages
        for name, seconds, does in STAGES[stage][1](preset)
    ]
    return sorted(items, key=lambda item: not item.essential)


def reserve(stage: str, stages: Collection[str]) -> float:
    """Seconds of the budget that the rest of `stage` leaves for that of the later ones of `stages`."""
    names = list(STAGES)
    return sum(STAGES[later][0] for later in names[names.index(stage) + 1 :] if later in stages)


def _calibration(preset: Preset) -> Listed:
    sizes = (1 << 30, 8192) if preset.real else (1 << 20, 256)
    yield "copy", 3, lambda run, left: timer.copy_bandwidth(run.device, sizes[0])
    yield "matmul", 3, lambda run, left: timer.matmul_rate(run.device, sizes[1])


def _compile(preset: Preset) -> Listed:
    """Not a check: it saves the later stages the time."""

    def compiled(run: Run, left: float) -> dict[str, Any]:
        arch = run.recorder.content["environment"]["arch"]
        return warmup(arch, left) if preset.real else warmup("sm_90", left, ("rotary",), jobs=1)

    def for_frames(run: Run, left: float) -> dict[str, Any]:
        return warmup(run.recorder.content["environment"]["arch"], min(FIRST_COMPILED, left), first=True)

    if preset.real:
        yield "frames", FIRST_COMPILED, for_frames
    yield "all", 20, compiled


def _tests(preset: Preset) -> Listed:
    yield "pytest -m gpu", 30, lambda run, left: run_tests(min(TESTS_LIMIT, left))


def _accuracy(preset: Preset) -> Listed:
    """First what is timed."""
    checked: list[tuple[str, Callable[[Kernel], list[Workload]]]] = [(TIMED, preset.timed)] if preset.real else []
    checked += [(dtype, partial(preset.verified, dtype=dtype)) for dtype in DTYPES]
    for dtype, workloads in checked:
        for kernel in preset.kernels.values():
            for workload in workloads(kernel):
                name = f"{kernel.name}/{workload.name}/{dtype}"
                yield name, 2 if preset.essential("accuracy", name) else 4, partial(_verified, kernel, workload, dtype)


def _verified(kernel: Kernel, workload: Workload, dtype: str, run: Run, left: float) -> dict[str, Any]:
    report = verify(kernel, workload, run.device.name, DTYPES[dtype], seed=SEED)
    rms, torch_rms = ({error.output: getattr(error, of) for error in report.errors} for of in ("rms", "torch_rms"))
    return {"ratio": round(report.ratio, 3), "rms": rms, "torch_rms": torch_rms}


def _invariance(preset: Preset) -> Listed:
    def item(name: str, check: Callable[..., None], *arguments: Any, **more: Any) -> tuple[str, float, Does]:
        def checked(run: Run, left: float) -> dict[str, Any]:
            check(*arguments, run.device.name, **more)
            return {}

        return name, 3 if preset.essential("invariance", name) else 5, checked

    def sizes(kernel: str, workload: str, small: str = "tiny", **more: Any) -> dict[str, Any]:
        found = checks.workload_sizes(kernel, workload if preset.real else small) | more
        return {name: value for name, value in found.items() if name not in ("contexts", "rows", "idle")}

    def batches(label: str, kernel: str, workload: str, small: str = "tiny") -> tuple[str, float, Does]:
        rows = "B" if "B" in sizes(kernel, workload, small) else "M"
        batched = sizes(kernel, workload, small, **{rows: max(preset.batches)})
        return item(f"{kernel}/{label}", checks.batch_invariant, kernel, batched, batches=preset.batches)

    for name in checks.BATCHED:
        yield batches("batch_invariant", name, "decode-B256")
    yield batches("batch_invariant-top2", "moe_experts", "decode-B64-top2", "top2")
    yield batches("batch_invariant-dense", "moe_experts", "dense-B64", "dense")
    yield batches("batch_invariant-sum", "moe_experts", "sum-B256", "sum-top2")
    rows, cuts = (300, (1, 65, 128, 200)) if preset.real else (20, (2, 10, 16))
    attention = sizes("prefill_attention", "prefill-2048", T=rows)
    yield item("prefill_attention/chunked_prefill", checks.chunked_prefill, attention, cuts=cuts)
    for name in ("qkv_projection", "output_projection", "moe_router", "moe_experts", "codebook_head"):
        workload = "prefill-128" if name == "codebook_head" else "prefill-2048"
        small = "prefill" if "prefill" in {w.name for w in KERNELS[name].workloads} else "tiny"
        yield item(f"{name}/chunked_prefill", checks.chunked_rows, name, sizes(name, workload, small))
    for dtype in preset.vocoder_dtypes:
        name = f"vocoder/steps-{dtype}"
        yield item(name, checks.vocoder_steps, preset.codec, frames=preset.clip, dtype=DTYPES[dtype])


def _cuda_graph(preset: Preset) -> Listed:
    def replayed(
        check: Callable[..., None], config: Any, sizes: dict[str, int], run: Run, left: float
    ) -> dict[str, Any]:
        # Without graphs, as in a smoke run, a replay is the call itself.
        check(config, run.device.name, capture=run.device.capture or (lambda call: call), **sizes)
        return {}

    context = {"context": 300 if preset.real else 5}
    yield "decode step", 10, partial(replayed, checks.graph_capture, preset.chain, context)
    yield "vocoder/step", 10, partial(replayed, checks.vocoder_graph, preset.codec, {"frames": preset.clip})


def _frames(preset: Preset) -> Listed:
    def timed(batch_size: int, context: int, run: Run, left: float) -> dict[str, Any]:
        run.prove(lambda kernel: kernel not in VOCODER)
        found = run.frames.time(batch_size, context, run.device, run.roofline)
        both = None
        if preset.real and context == preset.context and run.rates:
            both = frame_us(preset.config, batch_size, run.estimates, run.rates)
        return found | {"estimate_us": both and round(both[bool(pdl_arguments()["PDL"])], 1)}

    def timed_without(batch_size: int, run: Run, left: float) -> dict[str, Any]:
        if preset.real and not pdl_arguments()["PDL"]:
            raise NotRun("launches are no dependent ones here")
        with dependent_launch(False):
            return timed(batch_size, preset.context, run, left)

    for batch_size in preset.batch_sizes:
        yield f"B{batch_size}", 12 if batch_size == 1 else 8, partial(timed, batch_size, preset.context)
    for batch_size in preset.no_pdl:
        yield f"B{batch_size}/no-pdl", 8, partial(timed_without, batch_size)
    for batch_size, contexts in preset.contexts.items():
        for context in contexts:
            yield f"B{batch_size}/context-{context}", 6, partial(timed, batch_size, context)


def _launches(preset: Preset) -> Listed:
    """The launches of a frame, none a dependent one, beside their estimates, with the gap that follows each."""

    def alone(kernel: Kernel, workload: Workload, run: Run, left: float) -> dict[str, Any]:
        with dependent_launch(False):
            found = timed(kernel, workload, run, left)
        steps = run.estimates.get((kernel.name, workload.name), [])
        limit = ", ".join(dict.fromkeys(step.estimate.limit for step in steps))
        return found | {"estimate_us": round(serial_us(steps), 2) or None, "limit": limit or None}

    for name, (kernel, workload) in preset.launches.items():
        yield name, 1.5, partial(alone, kernel, workload)


def _constants(preset: Preset) -> Listed:
    """The constants of the estimate as these times have them."""

    def fitted(run: Run, left: float) -> dict[str, Any]:
        def of_frame(batch_size: int) -> list[Step]:
            return [step for place in frame_places(preset.config, batch_size) for step in run.estimates.get(place, [])]

        launches = {name: run.estimates.get((k.name, w.name), []) for name, (k, w) in preset.launches.items()}
        frames = {batch_size: of_frame(batch_size) for batch_size in preset.no_pdl}
        return constants.fitted(run.recorder.content, launches, frames, run.rates)

    yield "all", 1, fitted


def _vocoder(preset: Preset) -> Listed:
    def timed(name: str, dtype: str, run: Run, left: float) -> dict[str, Any]:
        run.prove(lambda kernel: kernel in VOCODER)
        compiled = preset.real and left > COMPILING
        return run.codec(dtype).time(preset.vocoder[name], run.device, run.roofline, compiled=compiled)

    for dtype in preset.vocoder_dtypes:
        for name in preset.vocoder:
            yield f"{name}/{dtype}", 12, partial(timed, name, dtype)


def _end_to_end(preset: Preset) -> Listed:
    def item(name: str, seconds: float, does: Callable[..., dict[str, Any]], *sizes: int) -> tuple[str, float, Does]:
        def proven(run: Run, left: float) -> dict[str, Any]:
            run.prove(lambda kernel: True)
            return does(run, *sizes)

        return name, seconds, proven

    for n in preset.together:
        yield item(f"first-audio/{n}", 5, lambda run, n: run.end_to_end.first_audio(n, preset.rounds), n)
        yield item(f"host/B{n}", 5, lambda run, n: run.end_to_end.host(n, preset.scheduler_steps), n)
    for n in preset.prefills:
        yield item(f"prefill-{n}", 4, lambda run, rows: run.frames.time_prompt(rows, run.device, run.roofline), n)
    yield item("memory", 10, lambda run: run.end_to_end.memory(preset.seconds_of_audio))


def _integrations(preset: Preset) -> Listed:
    """Before and after, as their users call them."""

    def codec(name: str, dtype: str, run: Run, left: float) -> dict[str, Any]:
        run.prove(lambda kernel: kernel in VOCODER)
        return time_dac_model(preset.codec, preset.vocoder[name], run.device, DTYPES[dtype])

    def offline(batch_size: int, run: Run, left: float) -> dict[str, Any]:
        run.prove(lambda kernel: True)
        return run.end_to_end.offline(batch_size, preset.rounds)

    for name in (name for name, work in preset.vocoder.items() if work.clips):
        for dtype in preset.integration_dtypes:
            yield f"DacModel/{name}/{dtype}", 8, partial(codec, name, dtype)
    for batch_size in preset.together:
        yield f"TTSLLM/{batch_size}", 8, partial(offline, batch_size)


def by_value(workload: Workload) -> tuple[int, bool]:
    """The order of timings."""
    rank = FIRST.index(workload.name) if workload.name in FIRST else len(FIRST)
    return rank, "prefill" not in workload.name and "chunk" not in workload.name


def _timings(preset: Preset) -> Listed:
    pairs = [(kernel, workload) for kernel in preset.kernels.values() for workload in preset.timed(kernel)]
    for kernel, workload in sorted(pairs, key=lambda pair: by_value(pair[1])):
        yield f"{kernel.name}/{workload.name}", 3, partial(timed, kernel, workload)


def timed(kernel: Kernel, workload: Workload, run: Run, left: float) -> dict[str, Any]:
    """A kernel's time at one workload."""
    prove(kernel, workload, run, left)
    rates: dict[str, Any] = {"roofline": run.roofline, "datasheet": run.datasheet}
    return timer.time_kernel(kernel, workload, run.device, DTYPES[TIMED], **rates) | {"dtype": TIMED}


def prove(kernel: Kernel, workload: Workload, run: Run, left: float) -> None:
    """Raises Withheld unless no check of the kernel failed and this workload passed; it is checked now if need be."""
    run.prove(lambda name: name == kernel.name)
    name = f"{kernel.name}/{workload.name}/{TIMED}"
    if name not in run.recorder.items("accuracy"):
        does = partial(_verified, kernel, workload, TIMED, run)
        status = perform(Item("accuracy", name, 0, does), run.recorder, left)
        if status == "not run":
            raise NotRun(f"{name}: {results.left_out(run.recorder.content, 'accuracy')[name]}")
        if status != "passed":
            raise Withheld(f"{name} failed")


def _baselines(preset: Preset) -> Listed:
    """Other implementations, at the first workloads; those that must be compiled last."""

    def timed(one: Provider, kernel: Kernel, workload: Workload, run: Run, left: float) -> dict[str, Any]:
        ours = run.recorder.items("timings").get(f"{kernel.name}/{workload.name}", {}).get("median_us")
        return time_provider(one, kernel, workload, run.device, DTYPES[TIMED], ours)

    items = [
        (one, kernel, workload)
        for kernel in preset.kernels.values()
        for workload in preset.timed(kernel)
        if workload.name in FIRST or not preset.real or preset.kernels is not KERNELS
        for one in providers_of(kernel)
    ]
    for one, kernel, workload in sorted(items, key=lambda item: (item[0].seconds, by_value(item[2]))):
        yield f"{kernel.name}/{workload.name}/{one.name}", one.seconds, partial(timed, one, kernel, workload)


def _torch_frame(preset: Preset) -> Listed:
    """Frames and a prompt by plain PyTorch. A compiler takes its time, so they come late."""

    def timed(stage: str, name: str, call: Callable[[Run], dict[str, Any]], run: Run, left: float) -> dict[str, Any]:
        """stage: of ours, by the same name."""
        try:
            found = call(run)
        except Withheld as reason:
            raise NotRun(str(reason)) from reason
        ours = run.recorder.items(stage).get(name, {}).get("median_us")
        return found | {"speed_up": ours and timer.ratio(found["median_us"], ours)}

    def frame(batch_size: int, run: Run) -> dict[str, Any]:
        found = run.torch_frame.time(batch_size, preset.context, run.device)
        return found | {"batch_size": batch_size, "context": preset.context}

    def prompt(rows: int, run: Run) -> dict[str, Any]:
        return run.torch_frame.time_prefill(rows, run.device) | {"rows": rows}

    for batch_size in preset.torch_frames:
        name = f"B{batch_size}"
        yield name, 80 if batch_size == 1 else 45, partial(timed, "frames", name, partial(frame, batch_size))
    name = f"prefill-{preset.prefills[-1]}"
    yield name, 45, partial(timed, "end_to_end", name, partial(prompt, preset.prefills[-1]))


def _sanitizer(preset: Preset) -> Listed:
    for tool in sanitizer.TOOLS:
        yield tool, 20, partial(lambda tool, run, left: sanitizer.run(tool, left), tool)


# In this order. Seconds that the rest of earlier stages leaves for the rest of each, and its items.
STAGES: dict[str, tuple[float, Callable[[Preset], Listed]]] = {
    "environment": (0.0, lambda preset: iter(())), "calibration": (0.0, _calibration), "compile": (20.0, _compile),
    "tests": (30.0, _tests), "accuracy": (35.0, _accuracy), "invariance": (25.0, _invariance),
    "cuda_graph": (0.0, _cuda_graph), "frames": (15.0, _frames), "launches": (0.0, _launches),
    "constants": (0.0, _constants), "vocoder": (15.0, _vocoder), "end_to_end": (25.0, _end_to_end),
    "integrations": (10.0, _integrations), "timings": (40.0, _timings), "baselines": (15.0, _baselines),
    "torch_frame": (0.0, _torch_frame), "sanitizer": (0.0, _sanitizer),
}  # fmt: skip
