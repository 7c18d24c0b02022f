"""The whole as a user has it: text to sound by the host's clock, the host's work for a frame, and the memory of it all.

Weights are random, made on the device: no figure here depends on their values.
"""

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from zonos2_triton.bench.suite.device_checks import random_codec, random_weights
from zonos2_triton.bench.timing.timer import quantiles, ratio
from zonos2_triton.model.backbone import Backbone
from zonos2_triton.model.integrations.zonos2_engine.offline import TTSLLM, TTSSamplingParams
from zonos2_triton.model.nvtx import recorded
from zonos2_triton.model.pipeline import Zonos2
from zonos2_triton.model.prompt import build_prompt
from zonos2_triton.model.runtime.scheduler import BatchingOptions
from zonos2_triton.model.vocoder import Vocoder
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.sampling import Sampling
from zonos2_triton.reference.vocoder import VocoderConfig

SIXTEEN = 16  # frames: what the official engine sends first
SETTLED = 3  # scheduler steps after which graphs are captured and prompts in the cache


class EndToEnd:
    """A model and a codec; what is made of them shares their weights."""

    def __init__(self, config: Zonos2Config, codec: VocoderConfig, text: str, device: str, dtype: torch.dtype) -> None:
        self.config, self.codec, self.text, self.device = config, codec, text, device
        self.prompt = build_prompt(config, text)
        self.weights = random_weights(config, device, dtype)
        self.model = reference.bind(config, self.weights)
        self.longest = 2 * SIXTEEN + config.n_codebooks + 8  # frames of a text whose first samples are waited for

    def speaking(self, batch_size: int, frames: int) -> Zonos2:
        """With room for a batch of requests of so many frames, on the kernels where they are compiled."""
        rows = batch_size * -(-(frames + len(self.prompt)) // 64) * 64
        options = BatchingOptions(max_batch_size=batch_size, kv_cache_tokens=rows)
        backbone = Backbone(self.config, self.weights, options=options)
        dtype = torch.float16 if backbone.backend == "triton" else torch.float32
        return Zonos2(backbone, Vocoder(self.codec, random_codec(self.codec, self.device, dtype), "auto"))

    def first_audio(self, batch_size: int, rounds: int) -> dict[str, Any]:
        """Milliseconds from the texts, all at once, to the last one's first samples; and to its first 16 frames."""
        tts = self.speaking(batch_size, self.longest)
        first, sixteen = zip(*(self._first(tts, batch_size, n) for n in range(rounds + 1)), strict=True)
        return {
            "batch_size": batch_size, "prompt_rows": len(self.prompt), "frames": SIXTEEN,
            **_spread(first[1:], "ms"), "sixteen_frames_ms": quantiles(sixteen[1:])[1],
        }  # fmt: skip

    def _first(self, tts: Zonos2, batch_size: int, seed: int) -> tuple[float, float]:
        started = time.perf_counter()
        seeds = range(seed * batch_size, (seed + 1) * batch_size)
        chunks = [tts.stream(self.text, sampling=_sampling(seed, self.longest)) for seed in seeds]
        came = [len(next(each)) for each in chunks]
        first = (time.perf_counter() - started) * 1e3
        for each, samples in zip(chunks, came, strict=True):
            while samples < SIXTEEN * self.codec.hop:
                samples += len(next(each))
        sixteen = (time.perf_counter() - started) * 1e3
        for each in chunks:
            each.close()
        return first, sixteen

    def offline(self, batch_size: int, rounds: int) -> dict[str, Any]:
        """Milliseconds of `TTSLLM.generate` for so many texts at once, from the call to all of their sound."""
        frames = self.longest
        tts, samples = TTSLLM.of(self.speaking(batch_size, frames)), []
        for n in range(rounds + 1):
            seeds = range(n * batch_size, (n + 1) * batch_size)
            params = [TTSSamplingParams(seed=seed, max_tokens=frames, ignore_eos=True) for seed in seeds]
            started = time.perf_counter()
            results = tts.generate([self.text] * batch_size, params)
            samples.append((time.perf_counter() - started) * 1e3)
        found = _spread(samples[1:], "ms")
        seconds = sum(len(result["audio"]) for result in results) / 4 / self.codec.sample_rate
        speed = ratio(1e3 * seconds, found["median_ms"])
        return {"prompts": batch_size, "frames": frames, **found, "audio_s_per_s": speed}

    def host(self, batch_size: int, steps: int) -> dict[str, Any]:
        """Microseconds that the host's thread is busy for a frame of the batch: launching, reading, handing out.

        Not counted is the time for which it waits for the device.
        """
        frames = (steps + SETTLED + 1) * 8
        tts, samples = self.speaking(batch_size, frames), list[float]()
        spent: defaultdict[str, float] = defaultdict(float)  # seconds of the host in ranges, by name

        @contextmanager
        def watch(name: str, payload: int | None) -> Iterator[None]:
            begin = time.perf_counter()
            yield
            spent[name] += time.perf_counter() - begin

        with ExitStack() as stack:
            started = (tts.backbone.stream(self.prompt, _sampling(i, frames)) for i in range(batch_size))
            running = list(map(stack.enter_context, started))
            stack.enter_context(recorded(watch))
            for n in range(steps + SETTLED):
                spent.clear()
                running[0].wait()
                for stream in running:
                    deque(stream.ready(), maxlen=0)
                if n >= SETTLED:
                    seconds = spent["model/step"] - spent["model/wait"]
                    samples.append(seconds * 1e6 / tts.backbone.scheduler.sync_interval)
        return {"batch_size": batch_size, **_spread(samples, "us")}

    def memory(self, seconds: float) -> dict[str, Any]:
        """Bytes of weights and cache, and at most in use, while one stream speaks so long. None: not told on a CPU."""
        frames = max(int(seconds * self.codec.sample_rate / self.codec.hop), 1)
        on_gpu = self.device == "cuda"
        weights = sum(tensor.nbytes for tensor in self.weights.values())
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if on_gpu else 0
        tts = self.speaking(1, frames)
        audio = tts.speak(self.text, sampling=_sampling(0, frames))
        cache = tts.backbone.scheduler.state.cache
        return {
            "weights_bytes": weights,
            "vocoder_bytes": sum(tensor.nbytes for tensor in tts.vocoder.state.values()),
            "cache_bytes": sum(part.nbytes for part in (*cache.k, *cache.v)),
            "peak_bytes": weights + torch.cuda.max_memory_allocated() - before if on_gpu else None,
            "seconds_of_audio": round(audio.seconds, 3),
        }


def _sampling(seed: int, frames: int) -> Sampling:
    return Sampling(seed=seed, max_frames=frames, ignore_eos=True)


def _spread(samples: Iterable[float], unit: str) -> dict[str, Any]:
    kept = [round(sample, 3) for sample in samples]
    low, middle, high = (round(value, 3) for value in quantiles(kept))
    return {f"median_{unit}": middle, f"p20_{unit}": low, f"p80_{unit}": high, f"samples_{unit}": kept}
