"""Spectrograms."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from zonos2_triton._settings import local_path
from zonos2_triton.model.audio import Audio

N_FFT, HOP = 1024, 256
RANGE_DB = 80


def check_plotting() -> None:
    """Draw a spectrogram to nowhere. ImportError: matplotlib is missing or cannot draw."""
    if find_spec("matplotlib") is None:
        raise ImportError("a spectrogram needs matplotlib: pip install matplotlib")
    try:
        save_spectrogram(Audio(torch.zeros(1, dtype=torch.float32, device="cpu"), 1), os.devnull, "no sound")
    except Exception as error:  # a damaged installation, no font, no folder for its cache
        raise ImportError(f"matplotlib cannot draw a spectrogram here: {error}") from error


def save_spectrogram(audio: Audio, path: str | Path, title: str) -> None:
    """Write a PNG: time in s, frequency in kHz, level in dB below the loudest point. ImportError: no matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    samples = torch.nn.functional.pad(audio.samples, (0, max(N_FFT - len(audio.samples), 0)))
    window = torch.hann_window(N_FFT, dtype=samples.dtype, device=samples.device)
    power = torch.stft(samples, N_FFT, HOP, window=window, return_complex=True).abs().square()
    decibels = 10 * torch.log10(power / power.max().clamp(min=1e-20) + 10 ** (-RANGE_DB / 10))
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    extent = (0, len(samples) / audio.sample_rate, 0, audio.sample_rate / 2000)
    look: dict[str, Any] = {"origin": "lower", "aspect": "auto", "vmin": -RANGE_DB, "vmax": 0, "cmap": "magma"}
    image = axes.imshow(decibels.numpy(), extent=extent, **look)
    axes.set(xlabel="time (s)", ylabel="frequency (kHz)")
    title = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in title)  # a file may have any name
    axes.set_title(title, loc="left", fontsize="small", wrap=True, parse_math=False)
    figure.colorbar(image, label="level (dB)")
    figure.savefig(local_path(path), format="png", dpi=120)
