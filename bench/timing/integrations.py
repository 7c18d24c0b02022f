"""Times another project's model before and after `accelerate`, called as its users call it: eager, without a graph.

Weights and codes are random; the time does not depend on their values. `accelerate` compares the patched operations
with the originals before the second measurement.
"""

from typing import Any

import torch

from zonos2_triton.bench.suite.device_checks import random_codes
from zonos2_triton.bench.suite.recorder import NotRun
from zonos2_triton.bench.timing import timer
from zonos2_triton.bench.timing.vocoder import Work
from zonos2_triton.model import accelerate
from zonos2_triton.reference.vocoder import VocoderConfig

SEED = 0  # of the weights


def dac_model(config: VocoderConfig, device: str, dtype: torch.dtype) -> Any:
    """transformers' DacModel with random weights. NotRun: transformers is not installed."""
    try:
        from transformers import DacConfig, DacModel
    except ImportError as error:
        raise NotRun(f"transformers cannot be imported: {error}") from error
    rates = list(config.decoder_rates)
    sizes = {name: getattr(config, name) for name in ("n_codebooks", "codebook_size", "codebook_dim")}
    sizes |= {"encoder_hidden_size": config.latent_dim >> len(rates), "decoder_hidden_size": config.decoder_dim}
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(SEED)
        model: Any = DacModel(DacConfig(downsampling_ratios=rates[::-1], sampling_rate=config.sample_rate, **sizes))
    return model.to(dtype).eval().requires_grad_(False)


@torch.inference_mode()
def time_dac_model(
    config: VocoderConfig, work: Work, device: timer.Device, dtype: torch.dtype, seconds: float = 0.5, **more: Any
) -> dict[str, Any]:
    """Microseconds of `DacModel.decode(audio_codes=...)` before and after. more: arguments of `timer.measure`.

    ValueError: the kernels differ from the original operations by more than their bound. NotRun: no transformers.
    """
    model = dac_model(config, device.name, dtype)
    codes = random_codes(config, work.rows, work.frames, device.name).clamp(max=config.codebook_size - 1)
    codes = codes.mT.long().contiguous()

    def timed() -> dict[str, Any]:
        return timer.measure([lambda: model.decode(audio_codes=codes)], device, seconds, "flushed", False, **more)

    before = timed()
    with accelerate(model, backend="triton") as report:
        after = timed()
    sizes = {"rows": work.rows, "frames": work.frames}
    speed_up = timer.ratio(before["median_us"], after["median_us"])
    errors = {patch.op: patch.error for patch in report.patched}
    name = f"{report.integration} {report.package_version}"
    return {"integration": name} | sizes | {"before": before, "after": after, "speed_up": speed_up, "errors": errors}
