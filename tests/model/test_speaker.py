"""The speaker encoder: golden embeddings, its layout, bad recordings and bad files."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from zonos2_triton.model import SpeakerEncoder, SpeakerEncoderConfig
from zonos2_triton.reference.speaker_encoder import layout

EMBED_ATOL = 5e-4  # of the golden vectors; their mel spectrograms are in test_mel.py
WAVES = ["wav24k_mono", "wav44k_stereo", "wav16k_mono_1d", "wav48k_mono"]
TINY = {"enc_dim": 64, "enc_channels": (16, 16, 16, 16, 48), "enc_attention_channels": 12}
TINY |= {"enc_res2net_scale": 4, "enc_se_channels": 8}


@pytest.fixture(scope="module")
def stored(golden):
    return golden.tensors("speaker_encoder_tiny")


@pytest.fixture(scope="module")
def weights(golden):
    return golden.tensors("speaker_encoder_tiny", "weights.")


@pytest.fixture(scope="module")
def settings(golden):
    return golden.json("speaker_encoder_tiny")["config"]


@pytest.fixture(scope="module")
def encoder(settings, weights):
    return SpeakerEncoder.from_state(SpeakerEncoderConfig(**settings), weights)


@pytest.fixture
def voice(seeded):
    return 0.1 * seeded(6000)


class TestGolden:
    @pytest.mark.parametrize("name", ["short", "mid"])
    def test_embed_mel(self, encoder, stored, name):
        for mel, want in zip(stored[f"{name}.mel"], stored[f"{name}.embedding"], strict=True):
            torch.testing.assert_close(encoder.embed_mel(mel), want, atol=EMBED_ATOL, rtol=0)

    @pytest.mark.parametrize("name", WAVES)
    def test_embed(self, golden, encoder, stored, name):
        rates = {wave["name"]: wave["sample_rate"] for wave in golden.json("speaker_encoder_tiny")["front_end"]}
        embedding = encoder.embed(stored[f"front_end.{name}.waveform"], rates[name])
        torch.testing.assert_close(embedding, stored[f"front_end.{name}.embedding"], atol=EMBED_ATOL, rtol=0)

    def test_layout(self, golden):
        known, config = golden.json("speaker_encoder_tiny"), SpeakerEncoderConfig()
        assert config == SpeakerEncoderConfig(**known["real_config"])
        names = layout(config)
        assert names == known["real_weights"]
        assert len(names) == known["real_n_tensors"] == 76
        assert sum(map(math.prod, names.values())) == known["real_parameter_count"] == 12_001_088
        assert layout(SpeakerEncoderConfig(**known["config"])) == known["weights"]


class TestEmbed:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
    def test_any_floats_are_computed_in_fp32(self, encoder, voice, dtype):
        embedding = encoder.embed(voice.to(dtype), 24_000)
        assert embedding.dtype == torch.float32
        assert torch.equal(embedding, encoder.embed(voice.to(dtype).float(), 24_000))

    @pytest.mark.parametrize(("samples", "rate"), [(1280, 24_000), (2352, 44_100), (854, 16_000)])
    def test_shortest_recording(self, encoder, voice, samples, rate):
        """Five mel frames, 53.3 ms: what the widest convolution's reflected border needs."""
        assert encoder.embed(voice[:samples], rate).isfinite().all()

    @pytest.mark.parametrize(("samples", "rate"), [(1, 24_000), (1024, 24_000), (1279, 24_000), (2350, 44_100)])
    def test_too_short(self, encoder, voice, samples, rate):
        """The message states the duration of the caller's recording."""
        with pytest.raises(ValueError, match=r"waveform lasts \d+\.\d ms"):
            encoder.embed(voice[:samples], rate)

    @pytest.mark.parametrize("rate", [-24_000, 999, 24_000.0, True, None, "24000"], ids=repr)
    def test_sample_rate(self, encoder, voice, rate):
        with pytest.raises(ValueError, match="sample_rate must be a whole number of Hz, at least 1000, got"):
            encoder.embed(voice[:20], rate)

    def test_a_rate_that_no_recording_has(self, encoder, voice):
        """The resampler's memory would grow with it."""
        with pytest.raises(ValueError, match="at most 384000, got 2147483647"):
            encoder.embed(voice.repeat(10**5), 2**31 - 1)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            pytest.param(lambda x: (x * 32767).short(), TypeError, "floating-point .*, got torch.int16", id="int16"),
            pytest.param(lambda x: (x * 32767).int(), TypeError, "got torch.int32, of 16 bits divide by", id="int32"),
            pytest.param(lambda x: x * 32767, ValueError, "in -1..1, got a peak of .*divided by 32768", id="scale"),
            pytest.param(lambda x: x / x.abs().max() * 100, ValueError, "got a peak of 100: samples", id="percent"),
            pytest.param(lambda x: torch.stack([x, -x]) * 99, ValueError, "got a peak of", id="scale-that-cancels"),
            pytest.param(lambda x: (x + 1) / 2, ValueError, r"centred about 0\.\d+ instead of 0: unsigned", id="uint"),
            pytest.param(lambda x: torch.full_like(x, 0.5), ValueError, "centred about 0.5", id="constant"),
            pytest.param(lambda x: x.numpy(), TypeError, "floating-point tensor, got ndarray", id="numpy"),
            pytest.param(lambda x: x.index_fill(0, torch.tensor(7), torch.nan), ValueError, "finite", id="nan"),
            pytest.param(torch.zeros_like, ValueError, "waveform is silent: its largest sample is 0", id="silent"),
            pytest.param(lambda x: x / x.abs().max() * 2**-15.1, ValueError, "silent", id="below-a-16-bit-step"),
            pytest.param(lambda x: torch.stack([x, -x]), ValueError, "silent", id="channels-cancel"),
            pytest.param(lambda x: x.reshape(-1, 2), ValueError, r"got \[3000, 2\], which looks transposed", id="T"),
            pytest.param(lambda x: x[None, None], ValueError, r"\[channels, N\], got \[1, 1, 6000\]", id="3-D"),
            pytest.param(lambda x: x[0], ValueError, r"\[channels, N\], got \[\]", id="0-D"),
            pytest.param(lambda x: x[:0], ValueError, r"\[channels, N\], got \[0\], which holds no", id="empty"),
        ],
    )
    def test_waveform(self, encoder, voice, change, error, message):
        with pytest.raises(error, match=message):
            encoder.embed(change(voice), 24_000)

    @pytest.mark.parametrize("peak", [2**-14.9, 7.9], ids=["quiet", "clipped"])
    def test_a_peak_that_is_taken(self, encoder, voice, peak):
        """Float samples of a mix may exceed 1."""
        assert encoder.embed(voice / voice.abs().max() * peak, 24_000).isfinite().all()

    def test_the_units_of_log_mel(self, encoder, voice):
        assert encoder.embed_mel(encoder.log_mel(voice)).isfinite().all()
        assert encoder.embed_mel(encoder.log_mel(torch.zeros(6000))).isfinite().all()
        with pytest.raises(ValueError, match=r"waveform_24k must be in -1\.\.1, got a peak of"):
            encoder.log_mel(voice * 32767)
        for change in (torch.exp, lambda x: torch.exp(2 * x), lambda x: x * 20 / math.log(10)):
            with pytest.raises(ValueError, match="must be natural logarithms of magnitudes"):
                encoder.embed_mel(change(encoder.log_mel(voice)))

    @pytest.mark.parametrize(
        ("mel", "error", "message"),
        [
            pytest.param(torch.zeros(9, 80), ValueError, r"\[frames >= 5, 128\], got \[9, 80\]", id="80-bands"),
            pytest.param(torch.zeros(4, 128), ValueError, r"\[frames >= 5, 128\], got \[4, 128\]", id="4-frames"),
            pytest.param(torch.zeros(9, 128).long(), TypeError, "log_mel must be a floating-point tensor", id="int"),
            pytest.param(torch.full((9, 128), torch.nan), ValueError, "log_mel must be finite", id="nan"),
        ],
    )
    def test_mel(self, encoder, mel, error, message):
        with pytest.raises(error, match=message):
            encoder.embed_mel(mel)


class TestWeights:
    @pytest.mark.parametrize(
        ("value", "message"),
        [(torch.full((64,), torch.nan), "fc.bias holds NaN"), (torch.zeros(3), r"fc.bias is \[3\], expected \[64\]")],
        ids=["nan", "shape"],
    )
    def test_values(self, encoder, weights, value, message):
        with pytest.raises(ValueError, match=message):
            SpeakerEncoder.from_state(encoder.config, weights | {"fc.bias": value})

    def test_16_bit_weights_are_computed_in_fp32(self, encoder, weights, voice):
        halves = {name: value.bfloat16() for name, value in weights.items()}
        other = SpeakerEncoder.from_state(encoder.config, halves)
        assert {value.dtype for value in other.state.values()} == {torch.float32}
        assert other.embed(voice, 24_000).dtype == torch.float32


class TestConfig:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"enc_dim": 0}, "enc_dim must be a positive integer, got 0"),
            ({"enc_se_channels": 8.0}, "enc_se_channels must be a positive integer, got 8.0"),
            ({"enc_attention_channels": True}, "enc_attention_channels must be a positive integer, got True"),
            ({"enc_dilations": [1, 2, 3, -4, 1]}, r"enc_dilations .* positive integers, got \[1, 2, 3, -4, 1\]"),
            ({"enc_kernel_sizes": [5, 3, 3, 3]}, "one length, 3 or more"),
            ({"enc_kernel_sizes": [5, 3, 4, 3, 1]}, "enc_kernel_sizes must be"),
            ({"mel_dim": 80}, "mel_dim must be 128, got 80"),
            ({"enc_res2net_scale": 3}, "a multiple of enc_res2net_scale 3"),
            ({"enc_channels": [16, 16, 16, 8, 40]}, r"must be equal .*got \(16, 16, 16, 8, 40\)"),
            ({"enc_channels": [16, 16, 16, 16, 64]}, "the sum of the blocks it joins, 48, got 64"),
        ],
        ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
    )
    def test_rejects(self, change, message):
        with pytest.raises(ValueError, match=f"SpeakerEncoderConfig: .*{message}"):
            SpeakerEncoderConfig(**{**TINY, **change})


class TestLoad:
    @pytest.fixture
    def folder(self, tmp_path, weights, settings):
        save_file(weights, tmp_path / "model.safetensors", {"notice": "for tests"})
        (tmp_path / "config.json").write_text(json.dumps({**settings, "model_type": "other keys are left aside"}))
        return tmp_path

    def test_folder(self, folder, encoder, voice):
        for path in (folder, str(folder)):
            loaded = SpeakerEncoder.load(path)
            assert (loaded.config, loaded.metadata["notice"]) == (encoder.config, "for tests")
            torch.testing.assert_close(loaded.embed(voice, 24_000), encoder.embed(voice, 24_000), atol=1e-5, rtol=0)

    def test_prefixed_names_in_another_file_name(self, folder, weights, encoder, voice):
        (folder / "model.safetensors").unlink()
        prefixed = {f"speaker_encoder.{name}": t for name, t in weights.items()}
        others = {"talker.norm.weight": torch.full((4,), torch.nan)}  # of a joint checkpoint
        save_file(prefixed | others, folder / "encoder.safetensors")
        embedding = SpeakerEncoder.load(folder).embed(voice, 24_000)
        torch.testing.assert_close(embedding, encoder.embed(voice, 24_000), atol=1e-5, rtol=0)

    @pytest.mark.parametrize(
        ("missing", "message"),
        [("config.json", "config.json"), ("model.safetensors", "holds no speaker encoder weights; looked for model")],
    )
    def test_missing(self, folder, missing, message):
        (folder / missing).unlink()
        with pytest.raises(FileNotFoundError, match=message):
            SpeakerEncoder.load(folder)
        with pytest.raises(FileNotFoundError, match="absent"):
            SpeakerEncoder.load(folder / "absent")

    @pytest.mark.parametrize("text", ["", "[]", "{}"], ids=["empty", "list", "no-keys"])
    def test_config_of_something_else(self, folder, text):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json is not the configuration of a speaker encoder"):
            SpeakerEncoder.load(folder)

    @pytest.mark.parametrize("size", [0, 65])
    def test_a_wrong_size_names_the_folder(self, folder, settings, size):
        (folder / "config.json").write_text(json.dumps({**settings, "enc_dim": size}))
        with pytest.raises(ValueError, match=folder.name):
            SpeakerEncoder.load(folder)
