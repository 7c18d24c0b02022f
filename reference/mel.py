"""The front end of the speaker encoder: a recording to a log-mel spectrogram at 24 kHz."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLE_RATE = 24_000
N_FFT, HOP = 1024, 256
MELS, TOP_HZ = 128, 12_000.0
FLOOR = 1e-5  # of the magnitudes, before the logarithm

LOWPASS_WIDTH, ROLLOFF = 6, 0.99  # resampler: zero crossings per side, share of the Nyquist frequency


def resample(waveform: Tensor, orig_freq: int, new_freq: int = SAMPLE_RATE) -> Tensor:
    """waveform [N] at `orig_freq` Hz -> [ceil(N * new_freq / orig_freq)]: Hann-windowed sinc interpolation.

    Output n lies at time n / new_freq and weighs the samples within LOWPASS_WIDTH zero crossings. Weights are computed
    per output, not per phase, because a frequency without common divisors has 24,000 phases.
    """
    divisor = math.gcd(orig_freq, new_freq)
    orig_freq, new_freq = orig_freq // divisor, new_freq // divisor
    if orig_freq == new_freq:
        return waveform
    cutoff = min(orig_freq, new_freq) * ROLLOFF
    width = math.ceil(LOWPASS_WIDTH * orig_freq / cutoff)  # samples per side
    n = torch.arange(math.ceil(len(waveform) * new_freq / orig_freq), device=waveform.device)
    before = n * orig_freq // new_freq  # the sample at or before each output
    phase = (n * orig_freq % new_freq).double() / new_freq  # in samples, beyond it
    offsets = torch.arange(-width, width + 2, device=waveform.device)
    padded = F.pad(waveform, (width, width + 1))
    out = torch.empty(len(n), dtype=waveform.dtype, device=waveform.device)
    for chunk in torch.arange(len(n), device=waveform.device).split(1 << 18):  # bounds the memory of long recordings
        t = ((offsets - phase[chunk, None]) * cutoff / orig_freq).clamp(-LOWPASS_WIDTH, LOWPASS_WIDTH)
        window = torch.cos(t * math.pi / LOWPASS_WIDTH / 2).square()
        weights = (torch.sinc(t) * window * cutoff / orig_freq).to(waveform.dtype)
        out[chunk] = (padded[before[chunk, None] + offsets + width] * weights).sum(-1)
    return out


def mel_filterbank() -> Tensor:
    """[N_FFT / 2 + 1, MELS] fp64: triangles on the Slaney mel scale, each of area 2 / its width in Hz."""
    linear_hz, log_step = 1000.0, math.log(6.4) / 27  # linear up to 1 kHz, logarithmic above
    linear_mels = linear_hz * 3 / 200
    top = linear_mels + math.log(TOP_HZ / linear_hz) / log_step
    mels = torch.linspace(0, top, MELS + 2, dtype=torch.float64, device="cpu")
    above = linear_hz * torch.exp(log_step * (mels - linear_mels))
    hz = torch.where(mels < linear_mels, mels * 200 / 3, above)
    bins = torch.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1, dtype=torch.float64, device="cpu")[:, None]
    rising = (bins - hz[:-2]) / (hz[1:-1] - hz[:-2])
    falling = (hz[2:] - bins) / (hz[2:] - hz[1:-1])
    return torch.minimum(rising, falling).clamp(min=0) * 2 / (hz[2:] - hz[:-2])


def log_mel(waveform: Tensor) -> Tensor:
    """waveform [N] at 24 kHz -> [frames, MELS]: log of the mel-weighted magnitudes, frames 256 samples apart."""
    pad = (N_FFT - HOP) // 2
    padded = F.pad(waveform[None], (pad, pad), mode="reflect")[0]
    window = torch.hann_window(N_FFT, dtype=waveform.dtype, device=waveform.device)
    spectrum = torch.stft(padded, N_FFT, HOP, window=window, center=False, return_complex=True).abs()
    mels = mel_filterbank().to(waveform).T @ spectrum
    return mels.clamp(min=FLOOR).log().T
