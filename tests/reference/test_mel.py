"""The speaker encoder's front end: resampling at any rate, and the log-mel spectrogram."""

import math

import pytest
import torch

from tests.model.operations import Operations
from zonos2_triton.reference.mel import FLOOR, MELS, N_FFT, SAMPLE_RATE, TOP_HZ, log_mel, mel_filterbank, resample

MONO_ATOL, LOG_MEL_ATOL = 1e-5, 2e-3  # of the golden vectors
WAVES = ["wav24k_mono", "wav44k_stereo", "wav16k_mono_1d", "wav48k_mono"]
EDGE = 300  # samples at 24 kHz: near the ends the filter sees the silence outside


def sine(rate, hz, seconds=0.5, dtype=torch.float64):
    return torch.sin(2 * math.pi * hz * torch.arange(round(rate * seconds), dtype=torch.float64) / rate).to(dtype)


def decibels(power):
    return 10 * math.log10(power)


@pytest.mark.parametrize("name", WAVES)
def test_golden(golden, name):
    rates = {wave["name"]: wave["sample_rate"] for wave in golden.json("speaker_encoder_tiny")["front_end"]}
    assert sorted(rates) == sorted(WAVES)
    stored = golden.tensors("speaker_encoder_tiny", f"front_end.{name}.")
    mono = stored["waveform"] if stored["waveform"].ndim == 1 else stored["waveform"].mean(0)
    torch.testing.assert_close(resample(mono, rates[name]), stored["mono_24k"], atol=MONO_ATOL, rtol=0)
    torch.testing.assert_close(log_mel(stored["mono_24k"]), stored["log_mel"], atol=LOG_MEL_ATOL, rtol=0)


class TestResample:
    @pytest.mark.parametrize("rate", [24_000, 44_101, 1])
    def test_same_rate_changes_nothing(self, seeded, rate):
        x = seeded(50)
        assert torch.equal(resample(x, rate, rate), x)

    @pytest.mark.parametrize("rate", [400, 7919, 8000, 22_050, 24_001, 44_100, 44_101, 96_000, 192_000])
    @pytest.mark.parametrize("n", [1, 2, 147, 999])
    def test_length(self, seeded, n, rate):
        assert len(resample(seeded(n), rate)) == math.ceil(n * 24_000 / rate)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    @pytest.mark.parametrize(
        ("rate", "floor_db"),  # measured 89.1, 76.4, 89.5, 78.2, 89.1, 82.2
        [(44_101, 83), (8000, 70), (96_000, 83), (22_050, 72), (44_100, 83), (24_001, 76)],
    )
    def test_sine_stays_a_sine(self, rate, floor_db, dtype):
        """In pitch, level and phase: the error is against the sine sampled at 24 kHz."""
        got = resample(sine(rate, 1000, dtype=dtype), rate)
        assert got.dtype == dtype
        want = sine(SAMPLE_RATE, 1000, seconds=0.51)[: len(got)]
        error = (got.double() - want)[EDGE:-EDGE]
        assert decibels(want[EDGE:-EDGE].square().mean() / error.square().mean()) > floor_db

    @pytest.mark.parametrize(
        ("rate", "hz", "ceiling_db"),  # measured -44.3, -62.7, -45.3, -45.3
        [(48_000, 16_000, -40), (96_000, 20_000, -56), (44_100, 15_000, -40), (44_101, 15_000, -40)],
    )
    def test_what_24_khz_cannot_hold_is_removed(self, rate, hz, ceiling_db):
        """A tone above 12 kHz would come back as another one below."""
        got = resample(sine(rate, hz), rate)[EDGE:-EDGE]
        assert decibels(got.square().mean() / 0.5) < ceiling_db

    def test_sound_stays_where_it_was(self):
        x = torch.zeros(48_000, dtype=torch.float64)
        x[24_000] = 1
        got = resample(x, 48_000)
        assert got.argmax() == 12_000
        assert got[12_000] == pytest.approx(0.99 / 2, abs=1e-12)
        torch.testing.assert_close(got[12_001:12_030], got[11_971:12_000].flip(0), atol=1e-12, rtol=0)

    def test_a_rate_without_common_divisor_is_cheap(self, seeded):
        """A filter for each of its 24,000 phases would alone be 30 times as large as the output's weights."""
        x = seeded(1500)
        with Operations() as seen:
            n = len(resample(x, 44_101))
        assert max(seen.bytes) <= n * 32 * 8  # in fp64

    def test_long_recordings_are_bounded(self, seeded):
        """22 seconds are no larger at a time than the 11 that one round of outputs covers."""
        sizes = []
        for seconds in (11, 22):
            x = seeded(44_100 * seconds)
            with Operations() as seen:
                resample(x, 44_100)
            sizes.append(max(seen.bytes))
        assert sizes[1] <= 1.01 * sizes[0]


class TestFilterbank:
    @pytest.mark.needs("transformers")
    def test_oracle(self):
        from transformers.audio_utils import mel_filter_bank

        want = mel_filter_bank(N_FFT // 2 + 1, MELS, 0.0, TOP_HZ, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
        torch.testing.assert_close(mel_filterbank(), torch.from_numpy(want), atol=1e-12, rtol=0)


class TestLogMel:
    @pytest.mark.parametrize(("samples", "frames"), [(1024, 4), (1279, 4), (1280, 5), (24_000, 93)])
    def test_one_frame_for_256_samples(self, seeded, samples, frames):
        assert log_mel(seeded(samples)).shape == (frames, MELS)

    def test_silence_is_the_floor(self):
        torch.testing.assert_close(log_mel(torch.zeros(2048)), torch.full((8, MELS), math.log(FLOOR)))

    def test_magnitude_not_power(self, seeded):
        """Ten times as loud is log(10) more, not twice that."""
        x = seeded(4096)
        louder = log_mel(10 * x) - log_mel(x)
        torch.testing.assert_close(louder, torch.full((16, MELS), math.log(10)), atol=1e-4, rtol=0)
