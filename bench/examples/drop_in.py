"""Accelerate a model of another library in place, and undo it: transformers' DacModel, of random weights.

    python -m zonos2_triton.bench.examples.drop_in

The report lists each patched function and its distance from the original. The audio agrees up to fp32 rounding. When
the block ends, the model has its own functions again. On a GPU, leave `backend` out: the kernels run.
"""

import torch
from transformers import DacConfig, DacModel

from zonos2_triton.model import accelerate


def main() -> None:
    torch.manual_seed(0)
    config = DacConfig(n_codebooks=9, encoder_hidden_size=4, downsampling_ratios=[2, 4], decoder_hidden_size=64)
    model = DacModel(config).eval()
    codes = torch.randint(1024, (1, 9, 50))

    with torch.no_grad():
        own = model.decode(audio_codes=codes).audio_values
        with accelerate(model, backend="reference") as report:
            patched = model.decode(audio_codes=codes).audio_values
        restored = model.decode(audio_codes=codes).audio_values

    print(report)
    print(f"audio of {own.shape[-1]} samples: largest difference {(patched - own).abs().max():.1e}")
    print(f"restored, same bits: {torch.equal(restored, own)}")


if __name__ == "__main__":
    main()
