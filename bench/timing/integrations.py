"""Somebody else's model before and after `accelerate`, called as its users call it: launched by the host, no graph.

Weights and codes are random; the time does not depend on their values. `accelerate` compares the patched operations
with the original ones before the second time is taken.
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
    settings = DacConfig(
        encoder_hidden_size=config.latent_dim >> len(rates), downsampling_ratios=rates[::-1],
        decoder_hidden_size=config.decoder_dim, n_codebooks=config.n_codebooks, codebook_size=config.codebook_size,
        codebook_dim=config.codebook_dim, sampling_rate=config.sample_rate,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(SEED)
        model: Any = DacModel(settings)
    return model.to(dtype).eval().requires_grad_(False)


@torch.inference_mode()
def time_dac_model(
    config: VocoderConfig, work: Work, device: timer.Device, dtype: torch.dtype, seconds: float = 0.5, **more: Any
) -> dict[str, Any]:  # fmt: skip
    """Microseconds of `DacModel.decode(audio_codes=...)` before and after. more: arguments of `timing.measure`.

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
    return {
        "integration": f"{report.integration} {report.package_version}", "rows": work.rows, "frames": work.frames,
        "before": before, "after": after, "speed_up": timer.ratio(before["median_us"], after["median_us"]),
        "errors": {patch.op: patch.error for patch in report.patched},
    }  # fmt: skip
