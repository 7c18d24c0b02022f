"""Capacity of a GPU for the 8B model: memory, least time of a frame, batch size in real time.

    zonos2-triton plan [--gpu NAME] [--max-batch-size N] [--kv-cache-tokens N] [--dtype D] [--vocoder-dtype D]
                       [--context N | --seconds S] [--prompt N]

Options and defaults are those of `Zonos2.load`; without --gpu it goes through all GPUs. Every time is a floor: bytes
over bandwidth, or operations over the matrix rate, whichever takes longer, at the data sheet's rates. A backbone's
bytes are weights and cache, the vocoder's all that its kernels move. Memory is that of the tensors that loading makes;
the rest is an estimate, and marked so. Estimated times come from counts of the compiled kernels
(`bench/compiler/estimate.py`), where there are any: in bf16 on NVIDIA GPUs, for batches that were counted.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from typing import Any, cast

from zonos2_triton import _settings
from zonos2_triton.bench.cli_choices import chosen
from zonos2_triton.bench.compiler.estimate import crowded, dependent_us, rates_of, serial_us
from zonos2_triton.bench.compiler.frame_estimate import (
    BATCH_SIZES,
    PROMPT,
    estimated_snapshot,
    estimates,
    frame_launches,
    prompt_us,
)
from zonos2_triton.bench.planner import footprint
from zonos2_triton.bench.planner.footprint import CODEC, MODEL, PRECISIONS, VOCODER_DTYPES, decoder, expert_share
from zonos2_triton.bench.specs.frame_cost import frame_cost, prompt_cost
from zonos2_triton.bench.specs.gpus import GPUS, Gpu, find_gpu
from zonos2_triton.bench.suite.presets import FULL
from zonos2_triton.bench.timing.vocoder import step_costs
from zonos2_triton.kernels._launch_config import FIRST_WITH_PDL
from zonos2_triton.kernels._operator import Cost
from zonos2_triton.model.backend import DTYPES
from zonos2_triton.model.ops import MAX_BATCH_SIZE, MAX_PREFILL_TOKENS, PAGE_SIZE
from zonos2_triton.model.prompt import build_prompt
from zonos2_triton.model.runtime.batch_state import cache_pages, pages_of
from zonos2_triton.model.runtime.scheduler import SYNC_INTERVAL, BatchingOptions
from zonos2_triton.model.tables import fitted, text_table
from zonos2_triton.model.vocoder import MAX_ACTIVATION_BYTES

LONGEST = MODEL.max_seqlen
FRAME_US = 1e6 * CODEC.hop / CODEC.sample_rate  # of sound
CONTEXT = 1000  # by default
DEFAULT_BATCH_SIZE = BatchingOptions().max_batch_size


class Forecast:
    """Floors of one precision and context, at the rates of a GPU's data sheet."""

    def __init__(self, gpu: Gpu, precision: str, context: int, vocoder_dtype: str = "float32") -> None:
        self.gpu, self.precision, self.context = gpu, precision, context
        self._itemsize = DTYPES[PRECISIONS[precision][0]].itemsize
        self._vocoder_itemsize = DTYPES[vocoder_dtype.replace("tf32", "float32")].itemsize

    def cost(self, batch_size: int, context: int | None = None) -> Cost:
        """Cost of a frame of the batch, sampling included."""
        # The last frame of a full context has one token less behind it.
        return self._moved(_frame(batch_size, min(context or self.context, LONGEST - 1), self._itemsize))

    def frame(self, batch_size: int, context: int | None = None) -> float:
        """Time of the backbone."""
        return self._floor(self.cost(batch_size, context))

    def vocoder(self, batch_size: int) -> float:
        """Its share of a frame of the batch."""
        return self._floor(_step(batch_size, self._vocoder_itemsize)) / SYNC_INTERVAL

    def first_audio(self, batch_size: int, prompt: int) -> dict[str, Any]:
        """From the texts of the batch, which begin together, to the first samples of each."""
        frames = frames_to_sound()
        times = {
            "prefill": self._prefill(batch_size, prompt),
            # The first is drawn from what the prompts left behind.
            "frames_time": (frames - 1) * self.frame(batch_size, prompt),
            "vocoder": frames * self.vocoder(batch_size),
        }
        times["total"] = sum(times.values())
        return {"frames": frames, **{name: {"us": us} for name, us in times.items()}}

    def in_real_time(self) -> int:
        """The largest batch in real time."""
        counts = range(1, MAX_BATCH_SIZE + 1)
        return next((n - 1 for n in counts if self.frame(n) + self.vocoder(n) > FRAME_US), MAX_BATCH_SIZE)

    def _prefill(self, batch_size: int, prompt: int) -> float:
        """Time of all prompts together, in chunks of at most MAX_PREFILL_TOKENS, each of which reads the weights."""
        rows, alone = batch_size * prompt, prompt_cost(MODEL, prompt, self._itemsize)["prefill_attention"]
        time = 0.0
        for first in range(0, rows, MAX_PREFILL_TOKENS):
            n = min(MAX_PREFILL_TOKENS, rows - first)
            # A prompt attends to no other one: a piece has so many prompts' worth of attention.
            attention = Cost(round(n / prompt * alone.bytes), round(n / prompt * alone.flops))
            time += self._floor(self._moved({**prompt_cost(MODEL, n, self._itemsize), "prefill_attention": attention}))
        return time

    def _floor(self, cost: Cost) -> float:
        return cast(float, self.gpu.roofline.floor_us(*cost))  # every GPU has a bandwidth

    def _moved(self, costs: Mapping[str, Cost]) -> Cost:
        """All together, with the experts' weights in this precision's bits."""
        moved = sum(c.bytes * (expert_share(self.precision) if op == "moe_experts" else 1) for op, c in costs.items())
        return Cost(round(moved), sum(cost.flops for cost in costs.values()))


@cache
def _frame(batch_size: int, behind: int, itemsize: int) -> Mapping[str, Cost]:
    return frame_cost(MODEL, batch_size, behind, itemsize)


@cache
def _step(batch_size: int, itemsize: int) -> Cost:
    """Cost of the vocoder for the frames of a scheduler step."""
    costs = step_costs(CODEC, batch_size, SYNC_INTERVAL, itemsize)
    return Cost(sum(cost.bytes for cost in costs), sum(cost.flops for cost in costs))


def frames_to_sound() -> int:
    """Frames that a request has made when the scheduler hands out its first samples.

    The last codebook comes n_codebooks - 1 frames late, the vocoder's first sample waits for its delay, and the
    scheduler synchronises after the first frame and then every SYNC_INTERVAL.
    """
    frames = decoder().delay // CODEC.hop + 1 + MODEL.n_codebooks - 1
    return 1 + SYNC_INTERVAL * math.ceil((frames - 1) / SYNC_INTERVAL)


def plan(
    gpu: Gpu, max_batch_size: int = DEFAULT_BATCH_SIZE, precision: str = "bf16", context: int = CONTEXT,
    prompt: int | None = None, vocoder_dtype: str = "float32", kv_cache_tokens: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The plan of `Zonos2.load` with these options on one GPU, for json.dumps.

    context: tokens in the cache for each request, its prompt included. kv_cache_tokens: of the whole cache, as in
    `BatchingOptions`. ValueError: an argument is out of range.
    """
    options = BatchingOptions(max_batch_size, kv_cache_tokens)
    check_range("context", context, LONGEST)
    prompt = min(usual_prompt(), context) if prompt is None else prompt
    check_range("prompt", prompt, context, " = context, which it is part of")
    chosen("precision", [precision], PRECISIONS)
    chosen("vocoder_dtype", [vocoder_dtype], VOCODER_DTYPES)
    rows, pages = min(context + 1, LONGEST), cache_pages(MODEL, max_batch_size, kv_cache_tokens)
    components, capacity = footprint.memory(precision, vocoder_dtype, options, prompt), gpu.memory_gb * 1e9
    needed = sum(each.bytes for each in components)
    fit = footprint.most(precision, vocoder_dtype, prompt, capacity, rows)
    forecast = Forecast(gpu, precision, context, vocoder_dtype)
    frame, sound, real_time = forecast.frame(max_batch_size), forecast.vocoder(max_batch_size), forecast.in_real_time()
    most = fit.max_batch_size if fit else 0
    at_once = {"fit": most, "real_time": real_time, "both": min(most, real_time), "most": MAX_BATCH_SIZE}
    clips = f"Vocoder.decode of whole clips takes up to {_gb(MAX_ACTIVATION_BYTES)} more while it runs"
    notes = [f"{clips}; speaking does not"]
    if (held := pages // pages_of(rows)) < max_batch_size:
        held_now = f"{held} requests of this context at once, the others wait" if held else "no request of this context"
        notes.append(f"the cache holds {held_now}: raise kv_cache_tokens")
    if not (has_kernels := not precision.startswith("int")):
        notes.append(f"{precision} has no kernels in this project yet: its figures are floors of what could be")
    if "fp32" in precision or vocoder_dtype == "float32":
        notes.append("products of float32 are slower than the bf16 rate that floors are taken by")
    return {
        "gpu": asdict(gpu),
        "max_batch_size": max_batch_size,
        "kv_cache_tokens": pages * PAGE_SIZE,
        "precision": precision,
        "vocoder_dtype": vocoder_dtype,
        "has_kernels": has_kernels,
        "context": context,
        "prompt": prompt,
        "memory": {
            "fits": needed <= capacity,
            "bytes": needed,
            "capacity": {"bytes": capacity},
            "components": [each._asdict() for each in components],
            "less": None if needed <= capacity else _less(precision, vocoder_dtype, options, prompt, capacity, rows),
        },
        "frame": {
            **forecast.cost(max_batch_size)._asdict(),
            "sound_us": FRAME_US,
            "backbone": _rates(frame, max_batch_size),
            "vocoder": {"us": sound},
            "both": _rates(frame + sound, max_batch_size),
        },
        "largest_batch": at_once,
        "first_audio": forecast.first_audio(max_batch_size, prompt),
        "estimate": _estimate(forecast, max_batch_size) if precision == "bf16" else None,
        "notes": notes,
    }


def _estimate(forecast: Forecast, batch_size: int) -> dict[str, Any] | None:
    """Estimated times of the next larger batch that was counted; None: there is none, or it has no counts."""
    counted = next((n for n in BATCH_SIZES if n >= batch_size), None)
    if counted is None or not forecast.gpu.arch.startswith("sm_"):
        return None
    rates, arch = rates_of(forecast.gpu), int(forecast.gpu.arch.removeprefix("sm_"))
    found = estimates(estimated_snapshot(), rates)
    launches, prompt = frame_launches(MODEL, counted, found), prompt_us(MODEL, found)
    if launches is None or prompt is None:
        return None
    is_dependent = arch >= FIRST_WITH_PDL and _settings.dependent_launch() is not False
    serial = serial_us(launches)
    dependent = dependent_us(launches, rates) if is_dependent else None
    frames = frames_to_sound()
    first = prompt + (frames - 1) * (dependent or serial) + frames * forecast.vocoder(counted)
    return {
        "batch_size": counted,
        "context": CONTEXT,
        "prompt": PROMPT,
        "frame": {"us": serial},
        "dependent_frame": {"us": dependent} if dependent else None,
        "crowded": crowded(launches) if dependent else [],
        "first_audio": {"us": first},
    }


def _less(
    precision: str, vocoder_dtype: str, options: BatchingOptions, prompt: int, capacity: float, rows: int
) -> dict[str, Any]:
    """Options that give up least and fit; or, where none do, the smallest there are.

    First goes the batch size, then the cache beyond this context, then the vocoder's fp32, then the backbone's.
    """
    least = "bf16" if precision == "fp32" else precision
    for dtypes in dict.fromkeys([(precision, vocoder_dtype), (precision, "float16"), (least, "float16")]):
        for each in (None, rows) if options.kv_cache_tokens is None else (rows,):
            if found := footprint.most(*dtypes, prompt, capacity, each, options.max_batch_size):
                return _choice(*dtypes, found, prompt) | {"fits": True}
    return _choice(least, "float16", BatchingOptions(1, pages_of(rows) * PAGE_SIZE), prompt) | {"fits": False}


def _choice(precision: str, vocoder_dtype: str, options: BatchingOptions, prompt: int) -> dict[str, Any]:
    size = sum(each.bytes for each in footprint.memory(precision, vocoder_dtype, options, prompt))
    sizes = {"max_batch_size": options.max_batch_size, "kv_cache_tokens": options.kv_cache_tokens, "bytes": size}
    return {"precision": precision, "vocoder_dtype": vocoder_dtype, **sizes}


def overview(**asked: Any) -> dict[str, Any]:
    """The same on every GPU. asked: arguments of `plan`."""
    plans = [plan(each, **asked) for each in GPUS]
    alike = ("max_batch_size", "kv_cache_tokens", "precision", "vocoder_dtype", "has_kernels", "context", "prompt")
    first = plans[0]
    return {
        **{name: first[name] for name in alike},
        "notes": first["notes"],
        "memory": {name: first["memory"][name] for name in ("bytes", "components")},
        "gpus": [
            {"gpu": each["gpu"], "fits": each["memory"]["fits"], "less": each["memory"]["less"],
             "largest_batch": each["largest_batch"], "frame": each["frame"]["both"]} for each in plans
        ],
    }  # fmt: skip


def _rates(us: float, batch_size: int) -> dict[str, float]:
    """Real-time factor of each stream, seconds of sound a second of all together, frames a second of each."""
    rtf = us / FRAME_US
    return {"us": us, "rtf": rtf, "times_real_time": batch_size / rtf, "frames_per_s": 1e6 / us}


def as_text(found: dict[str, Any]) -> str:
    """A plan, or an overview, for a terminal."""
    asked = (
        "batch size {max_batch_size}, {precision}, vocoder {vocoder_dtype}; cache of {kv_cache_tokens} tokens\n"
        "tokens behind each request: {context}, a prompt of {prompt} included"
    ).format(**found)
    memory, notes = found["memory"], "\n".join(found["notes"])
    lines: list[tuple[str, ...]] = [("memory", "GB", "")]
    lines += [(p["name"], f"{p['bytes'] / 1e9:.3f}", p["kind"]) for p in memory["components"]]
    if "gpus" in found:
        together = text_table([*lines, ("together", f"{memory['bytes'] / 1e9:.3f}", "")])
        return fitted("\n\n".join([asked, together, text_table([HEADS, *map(_line, found["gpus"])]), notes]))
    about = "{name} ({arch}): {memory_gb:g} GB, {gb_per_s:g} GB/s, {tflop_per_s:g} TFLOP/s in bf16\nsource: {source}"
    first, most = found["first_audio"], MAX_BATCH_SIZE
    head = "\n".join([about.format(**found["gpu"]), asked])
    verdict = "fits" if memory["fits"] else "DOES NOT FIT"
    lines.append((f"of {_gb(memory['capacity']['bytes'])}", f"{memory['bytes'] / 1e9:.3f}", verdict))
    frames = [
        (name, f"{r['us'] / 1e3:.3f}", f"{r['rtf']:.3f}", f"{r['times_real_time']:.0f}", f"{r['frames_per_s']:.0f}")
        for name, r in (("backbone", found["frame"]["backbone"]), ("with its sound", found["frame"]["both"]))
    ]
    counts = {"fit, at this context": "fit", "in real time": "real_time", "both": "both"}
    times = {"prompts into the cache": "prefill", f"{first['frames']} frames": "frames_time",
             "their sound": "vocoder", "text to first audio": "total"}  # fmt: skip
    tables: list[list[tuple[str, ...]]] = [
        lines,
        [("frame, " + _gb(found["frame"]["bytes"]), "ms at least", "RTF", "x real time", "frames/s"), *frames],
        [(f"batch size, of {most}", ""), *((name, str(found["largest_batch"][key])) for name, key in counts.items())],
        [("first audio", "ms at least"), *((name, f"{first[key]['us'] / 1e3:.2f}") for name, key in times.items())],
    ]
    if estimate := found["estimate"]:
        about = "estimate, batch size {batch_size}, {context} tokens behind, prompt of {prompt}".format(**estimate)
        rows = {
            "frame": "frame",
            "frame of dependent launches": "dependent_frame",
            "text to first audio": "first_audio",
        }
        us = {name: estimate[key]["us"] for name, key in rows.items() if estimate[key]}
        tables.append([(about, "ms"), *((name, f"{each / 1e3:.2f}") for name, each in us.items())])
        notes = "\n".join([notes, *(f"no room to overlap: {pair}" for pair in estimate["crowded"])])
    advice = [] if memory["fits"] else [_advice(found)]
    return fitted("\n\n".join([head, text_table(tables[0]), *advice, *map(text_table, tables[1:]), notes]))


HEADS = ("gpu", "arch", "GB", "GB/s", "fits", "batch size that fits", "in real time", "ms a frame, at least", "RTF")


def _line(of: dict[str, Any]) -> tuple[str, ...]:
    gpu, at_once, frame = of["gpu"], of["largest_batch"], of["frame"]
    fits = "yes" if of["fits"] else "with less" if of["less"]["fits"] else "no"
    return (
        gpu["name"], gpu["arch"], f"{gpu['memory_gb']:g}", f"{gpu['gb_per_s']:g}", fits, str(at_once["fit"]),
        str(at_once["real_time"]), f"{frame['us'] / 1e3:.3f}", f"{frame['rtf']:.3f}",
    )  # fmt: skip


def _advice(found: dict[str, Any]) -> str:
    less = found["memory"]["less"]
    dtype = "" if less["precision"] == found["precision"] else f'dtype="{PRECISIONS[less["precision"]][0]}", '
    cache = f", kv_cache_tokens={less['kv_cache_tokens']}" if less["kv_cache_tokens"] else ""
    call = f"""Zonos2.load(..., {dtype}vocoder_dtype="{less["vocoder_dtype"]}", """
    call += f"options=BatchingOptions(max_batch_size={less['max_batch_size']}{cache}))"
    if not found["has_kernels"]:  # nor does load take it
        call = f"plan --vocoder-dtype {less['vocoder_dtype']} --max-batch-size {less['max_batch_size']}"
        call += f" --kv-cache-tokens {less['kv_cache_tokens']}" if less["kv_cache_tokens"] else ""
    if less["fits"]:
        return f"{_gb(less['bytes'])}, which fit: {call}"
    return f"No options make it fit; the least at this context is {_gb(less['bytes'])}: {call}"


def usual_prompt() -> int:
    """Tokens of the text that first audio is measured with."""
    return len(build_prompt(MODEL, FULL.text))


def check_range(name: str, value: int, high: int, why: str = "") -> None:
    if not 1 <= value <= high:
        raise ValueError(f"{name} must be an integer in 1..{high}{why}, got {value!r}")


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the options of the command to `parser`; what comes back runs it and returns its exit status."""
    parser.description = "Memory, floors and batch size of the 8B model on a GPU that need not be installed."
    names, codecs = ", ".join(gpu.name for gpu in GPUS), ", ".join(VOCODER_DTYPES)
    parser.add_argument("--gpu", metavar="NAME", help=f"{names}; default: all of them")
    parser.add_argument("--max-batch-size", type=int, default=DEFAULT_BATCH_SIZE, metavar="N",
                        help="requests that run at the same time; default: %(default)s")  # fmt: skip
    parser.add_argument("--kv-cache-tokens", type=int, metavar="N",
                        help="tokens of the cache for all requests; default: 4 contexts, or one a request")  # fmt: skip
    parser.add_argument("--dtype", dest="precision", default="bf16", metavar="D", type=_precision,
                        help=f"of the backbone: {', '.join(PRECISIONS)}; the last two are of the experts' weights "
                        "alone; default: %(default)s")  # fmt: skip
    parser.add_argument("--vocoder-dtype", default="float32", metavar="D", help=f"{codecs}; default: %(default)s")
    length, rows = parser.add_mutually_exclusive_group(), "cached tokens of each request; default: %(default)s"
    length.add_argument("--context", type=int, default=CONTEXT, metavar="N", help=rows)
    length.add_argument("--seconds", type=float, metavar="S", help="of audio instead: the context at its end")
    parser.add_argument("--prompt", type=int, metavar="N", help="tokens of each prompt; default: a sentence's")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    return _command


def _precision(name: str) -> str:
    """Also by the name of its dtype, as `Zonos2.load` takes it."""
    return next((short for short, (dtype, _) in PRECISIONS.items() if dtype == name), name)


def _command(options: argparse.Namespace) -> int:
    """Exit status: 0 it fits, or no GPU is named; 1 it does not."""
    names = "max_batch_size", "precision", "context", "prompt", "kv_cache_tokens", "vocoder_dtype"
    asked = {name: getattr(options, name) for name in names}
    chosen("--dtype", [options.precision], PRECISIONS)
    if options.seconds is not None:
        asked["context"] = context_of(options.seconds, usual_prompt() if options.prompt is None else options.prompt)
    found = plan(find_gpu(options.gpu), **asked) if options.gpu is not None else overview(**asked)
    print(json.dumps(found, indent=1) if options.json else as_text(found))
    return 0 if found["memory"].get("fits", True) else 1


def context_of(seconds: float, prompt: int) -> int:
    """Tokens of a request that has spoken so long. ValueError: more than the model knows."""
    check_range("prompt", prompt, LONGEST - 1)
    most = (LONGEST - prompt) * FRAME_US / 1e6
    if not 0 < seconds <= most:
        raise ValueError(f"seconds must be above 0, behind a prompt of {prompt} at most {most:.1f}, got {seconds:g}")
    return prompt + math.ceil(seconds * 1e6 / FRAME_US)
