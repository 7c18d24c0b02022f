"""How long clips and steps of streams take on the vocoder's kernels, beside the same decoder in plain PyTorch.

Weights and codes are random; the time does not depend on their values. What is timed has been compared with the plain
decoder before, sample by sample.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.specs.roofline import UNKNOWN, Roofline
from zonos2_triton.bench.suite.device_checks import as_delayed, clip_step_meta, random_codec, random_codes
from zonos2_triton.bench.suite.recorder import Withheld, lacking
from zonos2_triton.bench.timing import timer
from zonos2_triton.kernels._operator import Cost
from zonos2_triton.kernels.residual_unit import MAX_CHANNELS
from zonos2_triton.model.vocoder import Vocoder
from zonos2_triton.reference import vocoder as reference
from zonos2_triton.reference.numeric import exact_numerics
from zonos2_triton.reference.vocoder import DILATIONS, KERNEL, VocoderConfig

# Signal to error, in dB, of the kernels' samples against the plain decoder's in the same precision, at least. By the
# kernels' reference on a CPU, over 6 frames, measured in half precision: 38 and 56.
AGREE_DB = {torch.bfloat16: 30.0, torch.float16: 47.0, torch.float32: 90.0}


class Work(NamedTuple):
    """The timed work: whole clips, or a step of streams that are under way."""

    rows: int
    frames: int  # of a clip, or of the step
    clips: bool  # whole ones; otherwise a step


WORKS = {
    "clips-1": Work(1, 861, True),  # 10 seconds
    "clips-8": Work(8, 861, True),
    "streams-64": Work(64, 16, False),
    "stream-1-chunk-16": Work(1, 16, False),
}


class VocoderTimer:
    """A codec of random weights, on its kernels and plain."""

    def __init__(self, config: VocoderConfig, device: str, dtype: torch.dtype = torch.bfloat16) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.state = random_codec(config, device, dtype)
        self.vocoder = Vocoder(config, self.state, "triton")

    @torch.inference_mode()
    def time(
        self, work: Work, device: timer.Device, roofline: Roofline = UNKNOWN, seconds: float = 0.5,
        compiled: bool = True, **more: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Microseconds by the kernels in one graph; by PyTorch as its host launches it; and compiled, in a graph too.

        PyTorch decodes the frames of a step as clips of their own, which is less than their samples depend on, and
        keeps every stage unless it is compiled. compiled: whether there is time for that. more: arguments of
        `timing.measure`. Withheld: kernels and plain decoder do not agree.
        """
        decoder = self.vocoder.decoder
        rows, length = work.rows, work.frames if work.clips else 3 * work.frames
        together = work.frames + decoder.right_context
        frames = min(self.vocoder._frames_per_step(rows), together) if work.clips else work.frames
        aligned = random_codes(self.config, rows, length, self.device)
        codes = aligned if work.clips else as_delayed(aligned)
        rings = decoder.rings(rows, frames)
        step_meta = clip_step_meta(decoder, [length] * rows, frames, self.device, delayed=not work.clips)

        def step(at: Tensor) -> Tensor:
            return decoder.step(rings, codes, at, frames, not work.clips)

        def clips() -> Tensor:
            made = torch.cat([step(at) for at in step_meta], 1)
            return made[:, decoder.delay :][:, : self.config.samples(length)]

        ids = aligned.mT.long().contiguous()  # [B, C, T]
        agreement = self._agreement(clips(), ids)
        busy = step_meta[1] if len(step_meta) > 1 else step_meta[0]  # all of its positions lie in the clip
        call: timer.Call = clips if work.clips else lambda: step(busy)
        found = timer.measure([call], device, seconds, "flushed", **more)
        microseconds = found["median_us"]
        audio = rows * work.frames * self.config.hop / self.config.sample_rate
        costs = step_costs(self.config, rows, work.frames, self.dtype.itemsize)
        moved = timer.rates(sum(c.bytes for c in costs), sum(c.flops for c in costs), microseconds, roofline)
        result = found | {
            "rows": rows, "frames": work.frames, "frames_of_a_step": frames, "agreement_db": agreement,
            "audio_s_per_s": timer.ratio(1e6 * audio, microseconds), **moved,
        }  # fmt: skip
        part = ids[..., : work.frames].contiguous()
        result["eager"] = self._time_torch(self._torch, part, device, seconds, more, graph=False)
        result["compiled"] = {"not_timed": "no time left"}
        if compiled:
            result["compiled"] = self._time_torch(self._compiled(), part, device, seconds, more) | {"mode": "default"}
        for name in ("eager", "compiled"):
            other = result[name]
            if "median_us" in other:
                other["speed_up"] = timer.ratio(other["median_us"], microseconds)
            elif "crashed" in other:  # our own time is kept beside the failure
                result |= {"status": "failed", "error": f"{name}: {other['crashed']}"}
        return result

    def _agreement(self, samples: Tensor, ids: Tensor) -> float:
        """dB; clip by clip, so that the plain decoder holds the activations of one."""
        with exact_numerics():
            want = torch.cat([self._torch(clip[None]) for clip in ids])
        if not bool(samples.isfinite().all() & want.isfinite().all()):
            raise Withheld("samples are not finite")
        signal, error = want.double().square().sum(), (samples.double() - want.double()).square().sum()
        found = float((10 * torch.log10(signal / error)).clamp(max=200))  # JSON has no infinity
        if not found >= AGREE_DB[self.dtype]:
            least = f"which is less than {AGREE_DB[self.dtype]:g} in {self.dtype}"
            raise Withheld(f"the kernels' samples are {found:.1f} dB from the plain decoder's, {least}")
        return round(found, 2)

    def _torch(self, ids: Tensor) -> Tensor:
        return reference.decode(self.config, self.state, ids)["audio"]

    def _compiled(self) -> Callable[[Tensor], Tensor]:
        return torch.compile(self._torch, dynamic=False)

    def _time_torch(
        self, run: Callable[[Tensor], Tensor], ids: Tensor, device: timer.Device, seconds: float,
        more: dict[str, Any], graph: bool = True,
    ) -> dict[str, Any]:  # fmt: skip
        """Its time, or why there is none: a compiler that is not there, or memory; or how it crashed."""
        cudnn: Any = torch.backends.cudnn
        before, cudnn.benchmark = cudnn.benchmark, True  # it tries its ways when a shape first comes
        try:
            options = {"least": 5} | more | {"graph": graph and more.get("graph", True)}
            return timer.measure([lambda: run(ids)], device, seconds, "flushed", **options)
        except Exception as error:
            absent = lacking(error) or isinstance(error, torch.OutOfMemoryError)
            return {"not_timed" if absent else "crashed": timer.first_line(error)}
        finally:
            cudnn.benchmark = before
            torch.compiler.reset()


def step_costs(config: VocoderConfig, rows: int, frames: int, itemsize: int) -> list[Cost]:
    """The cost of each launch of `VocoderDecoder.step`, in order."""

    def cost(kernel: str, **sizes: Any) -> Cost:
        return KERNELS[kernel].cost(B=rows, frames=frames, itemsize=itemsize, **sizes)

    D, width, per_frame = config.latent_dim, config.decoder_dim, 1
    costs = [cost("rvq_decode", C=config.n_codebooks, K=config.codebook_dim, D=D)]
    costs += [cost("conv1d_snake", samples_per_frame=1, Ci=D, Co=width, taps=KERNEL)]
    for stride in config.decoder_rates:
        up = {"Ci": width, "Co": width // 2, "stride": stride}
        costs += [cost("conv_transpose1d_snake", samples_per_frame=per_frame, **up)]
        width, per_frame = width // 2, per_frame * stride
        square = {"samples_per_frame": per_frame, "Ci": width, "Co": width}
        for unit in range(1, len(DILATIONS) + 1):
            y = unit < len(DILATIONS)  # what a later unit adds
            if width <= MAX_CHANNELS and itemsize < 4:
                costs += [cost("residual_unit", samples_per_frame=per_frame, C=width, taps=KERNEL, y=y)]
            else:
                costs += [cost("conv1d_snake", taps=KERNEL, **square)]
                costs += [cost("conv1d_snake", taps=1, residual=True, y=y, **square)]
    return [*costs, cost("conv1d_tanh", samples_per_frame=per_frame, Ci=width, taps=KERNEL)]
