"""Whole clips by the reference: golden vectors, receptive field, and windows and steps that equal one pass."""

import math

import pytest
import torch

from tests.model.codecs import AUDIO_ATOL, assert_golden, assert_golden_frame, random_codec
from zonos2_triton.bench.proof.lookahead import decibels
from zonos2_triton.model import Vocoder, VocoderConfig
from zonos2_triton.model import vocoder as vocoder_module
from zonos2_triton.reference import vocoder as vocoder_reference
from zonos2_triton.reference.vocoder import layout, snake

WINDOWED_ATOL = 2e-5  # windows against one pass, fp32; measured 9.3e-6 (even), 2.6e-6 (odd)
WINDOWED_FP64_ATOL = 1e-7  # the one rounding to fp32
CODES = torch.zeros(1, 9, 2, dtype=torch.int64)

both_codecs = pytest.mark.parametrize("name", ["even", "odd"])


@pytest.fixture(scope="module")
def codecs(golden):
    """Two golden codecs, and one of random weights whose rates are all odd; 1 among them."""
    all_odd = random_codec((3, 1, 5), n_codebooks=9, codebook_size=1024)
    return {"even": golden.vocoder("even"), "odd": golden.vocoder("odd"), "all_odd": all_odd}


@pytest.fixture(params=["windows", "steps"])
def way(request, in_steps):
    """In steps, by the reference of the kernels; test_triton_vocoder.py tests the kernels."""
    return in_steps if request.param == "steps" else lambda vocoder: vocoder


def random_codes(*shape, top=1026, seed=0):
    return torch.randint(top, shape, generator=torch.Generator().manual_seed(seed))


def as_fp64(vocoder):
    return Vocoder.from_state(vocoder.config, vocoder.state, dtype=torch.float64)


class TestGolden:
    @both_codecs
    def test_clips(self, golden, codecs, way, name):
        stored, vocoder = golden.tensors("dac_tiny", f"{name}."), way(codecs[name])
        assert_golden(vocoder, stored)
        assert_golden_frame(vocoder, stored)
        torch.testing.assert_close(vocoder.decode(stored["codes"]), stored["out.audio"], atol=AUDIO_ATOL, rtol=0)

    @both_codecs
    def test_lengths(self, golden, codecs, name):
        known, config = golden.json("dac_tiny")["dacs"][name], codecs[name].config
        assert config.hop == known["product_of_rates"]
        for frames, samples in known["samples_for_T_frames"].items():
            assert config.samples(int(frames)) == samples
            assert codecs[name].decode(random_codes(1, 9, int(frames))).shape == (1, samples)


class TestRealLayout:
    def test_names_and_shapes(self, golden):
        real, expected = golden.json("dac_44khz_layout"), layout(VocoderConfig())
        assert expected == {
            tensor.replace("weight_v", "weight"): shape
            for tensor, shape in {**real["decoder"], **real["quantizer"]}.items()
            if ".in_proj." not in tensor and not tensor.endswith("weight_g")
        }
        decoder = sum(math.prod(shape) for tensor, shape in expected.items() if tensor.startswith("decoder."))
        assert decoder == real["parameter_count"]["decoder_folded"]

    def test_windows_of_the_real_codec(self):
        """Ten frames per side, which set streaming latency and the cost of windows."""
        assert VocoderConfig().receptive_field(32 * 512, 64 * 512) == (22, 74)


class TestReach:
    """Frames that a sample depends on: too few are heard at window borders, too many cost latency."""

    @pytest.mark.parametrize(("name", "frames"), [("even", 24), ("odd", 44), ("all_odd", 90)])
    def test_experiment(self, codecs, name, frames):
        """One frame is changed: only the samples that depend on it change, and the outermost of them do."""
        vocoder, frame = as_fp64(codecs[name]), frames // 2
        codes = random_codes(1, 9, frames, top=1024)
        changed_codes = codes.clone()
        changed_codes[:, :, frame] = (codes[:, :, frame] + 512) % 1024
        before, after = (vocoder.trace(c)["audio"][0] for c in (codes, changed_codes))
        changed = (before != after).nonzero()[:, 0].tolist()
        config = vocoder.config
        reach = [config.receptive_field(sample, sample + 1) for sample in range(config.samples(frames))]
        claimed = [sample for sample, (first, end) in enumerate(reach) if first <= frame < end]
        assert 0 < claimed[0] < claimed[-1] < len(before) - 1, "the clip is too short to show the reach"
        assert (changed[0], changed[-1]) == (claimed[0], claimed[-1])


class TestDecode:
    @pytest.mark.parametrize(
        ("name", "frames"),
        [
            *((name, frames) for name in ("odd", "all_odd") for frames in (1, 31, 32, 33, 42, 51, 52, 64, 65, 97)),
            *(("even", frames) for frames in (32, 33, 65)),
        ],
    )
    def test_windows_equal_one_pass(self, codecs, name, frames):
        codes = random_codes(1, 9, frames, seed=frames)
        for vocoder, atol in ((codecs[name], WINDOWED_ATOL), (as_fp64(codecs[name]), WINDOWED_FP64_ATOL)):
            whole = vocoder.trace(codes)["audio"].float()
            torch.testing.assert_close(vocoder.decode(codes), whole, atol=atol, rtol=0)

    @both_codecs
    def test_rows_do_not_depend_on_the_batch(self, codecs, name):
        codes = random_codes(3, 9, 40)
        for row, clip in zip(codecs[name].decode(codes), codes, strict=True):
            assert torch.equal(row, codecs[name].decode(clip[None])[0])

    @pytest.mark.parametrize("special", [1024, 1025], ids=["end", "padding"])
    def test_special_ids_decode_as_the_last_code(self, codecs, special):
        codes = random_codes(1, 9, 12, top=1024)
        codes[:, 3:7, 2:9] = special
        assert torch.equal(codecs["odd"].decode(codes), codecs["odd"].decode(codes.clamp(max=1023)))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16], ids=str)
    def test_any_integer_type(self, codecs, dtype):
        codes = random_codes(1, 9, 4, top=128)
        assert torch.equal(codecs["odd"].decode(codes.to(dtype)), codecs["odd"].decode(codes))

    @pytest.mark.parametrize(
        ("dtype", "name", "floor_db"),
        [("float64", "odd", 113), ("bfloat16", "even", 24)],  # measured 124.9, 30.1
    )
    def test_other_precisions(self, golden, codecs, dtype, name, floor_db):
        codes, vocoder = random_codes(1, 9, 20), golden.vocoder(name, dtype=dtype)
        assert {t.dtype for t in vocoder.state.values()} == {getattr(torch, dtype)}
        got = vocoder.decode(codes)
        assert got.dtype == torch.float32
        assert decibels(got, codecs[name].decode(codes)) > floor_db
        if dtype == "bfloat16":
            assert vocoder.trace(codes)["audio"].dtype == torch.float32

    @pytest.mark.parametrize("alpha", [0.0, 1e-8, 1e-4, 0.7, -1.3])
    def test_snake(self, alpha):
        """Small alphas too, where the 1e-9 that guards the division counts; none at all leaves x as it is."""
        xs = [-2.0, -0.1, 0.0, 0.5, 30.0]
        got = snake(torch.tensor([[xs]], dtype=torch.float64), torch.full((1, 1, 1), alpha, dtype=torch.float64))
        assert got.flatten().tolist() == pytest.approx([x + math.sin(alpha * x) ** 2 / (alpha + 1e-9) for x in xs])


class TestShortClips:
    @both_codecs
    def test_no_frames_make_no_samples(self, codecs, way, name):
        vocoder, none = way(codecs[name]), torch.zeros(2, 9, 0, dtype=torch.int64)
        audio, latents = vocoder.decode(none), torch.zeros(2, vocoder.config.latent_dim, 0)
        assert (audio.shape, audio.dtype, vocoder.decode([])) == ((2, 0), torch.float32, [])
        assert (vocoder.decode_latents(latents).shape, vocoder.config.samples(0)) == ((2, 0), 0)
        with pytest.raises(ValueError, match="codes must hold at least one frame to be traced"):
            vocoder.trace(none)

    def test_too_short_to_sound(self, way):
        """A rate of 1 removes a position, so one frame may leave no sample."""
        vocoder = way(random_codec((1, 1), n_codebooks=9, codebook_size=1024))
        for frames, samples in ((1, 0), (2, 0), (3, 1)):
            assert vocoder.decode(random_codes(1, 9, frames)).shape == (1, samples)
        assert vocoder.trace(random_codes(1, 9, 3))["audio"].shape == (1, 1)
        with pytest.raises(ValueError, match="at least one frame to be traced, and a sample, got 2"):
            vocoder.trace(random_codes(1, 9, 2))


class TestInSteps:
    @pytest.mark.parametrize("widest_unit", [0, 4, 64])
    @pytest.mark.parametrize("name", ["odd", "all_odd"])
    def test_steps_and_batches(self, codecs, in_steps, monkeypatch, name, widest_unit):
        """In steps of five frames, three clips at a time, with residual units as one or two operations."""
        clips = [random_codes(9, n, seed=n) for n in (12, 0, 1, 33, 7)]
        vocoder, seen = in_steps(codecs[name], widest_unit), []
        monkeypatch.setattr(vocoder_module, "MAX_ACTIVATION_BYTES", vocoder.decoder.ring_bytes(3, 5))
        monkeypatch.setattr(vocoder_module, "MAX_CLIPS", 3)
        step = vocoder.decoder.step
        monkeypatch.setattr(vocoder.decoder, "step", lambda *args: seen.append(args[2].tolist()) or step(*args))
        for audio, wanted in zip(vocoder.decode(clips), codecs[name].decode(clips), strict=True):
            torch.testing.assert_close(audio, wanted, atol=WINDOWED_ATOL, rtol=0)
        assert all(any(count for _, count, *_ in step_meta) for step_meta in seen), "no step is for nothing"
        assert max(count for step_meta in seen if len(step_meta) == 3 for _, count, *_ in step_meta) == 5
        for row, length in enumerate((12, 0, 1)):  # of the first batch: every frame once
            step_meta = [step_meta[row] for step_meta in seen if len(step_meta) == 3]
            made = [frame for done, count, *_ in step_meta for frame in range(done, done + count)]
            assert made == [*range(length + vocoder.decoder.right_context if length else 0)]

    @pytest.mark.parametrize("name", ["even", "odd", "all_odd"])
    def test_what_a_frame_waits_for(self, codecs, name):
        """As in the reference: a sample is final when the last frame that it depends on has come."""
        config, decoder = codecs[name].config, codecs[name].decoder
        ready = 50 * config.hop - decoder.delay  # samples that are final after 50 frames
        assert [config.receptive_field(at, at + 1)[1] for at in (ready - 1, ready)] == [50, 51]
        assert decoder.right_context == max(config.receptive_field(50 * config.hop, 51 * config.hop)[1] - 51, 0)


class TestLatents:
    @pytest.mark.parametrize(("dtype", "frames", "atol"), [("float32", 40, 1e-5), ("float64", 20, 1e-13)])
    def test_in_one_pass(self, dtype, frames, atol):
        """Codes to latents to samples; double precision stays."""
        vocoder, codes = random_codec((3, 2), dtype=getattr(torch, dtype)), random_codes(2, 3, frames, top=16)
        want, z = vocoder_reference.decode(vocoder.config, vocoder.state, codes), vocoder.latents(codes)
        torch.testing.assert_close(z, want["z"], atol=1e-6, rtol=0)
        torch.testing.assert_close(vocoder.decode_latents(z), want["audio"], atol=atol, rtol=0)
        strided = z.mT.contiguous().mT
        assert torch.equal(vocoder.decode_latents(strided), vocoder.decode_latents(z.contiguous()))

    def test_clips_of_one_length_need_nothing_of_the_host(self, way, monkeypatch):
        """A CUDA graph could not hold them."""
        vocoder, sent = way(random_codec((3, 2))), []
        monkeypatch.setattr(vocoder_module, "upload", lambda values, device: sent.append(values.tolist()) or values)
        vocoder.decode_latents(torch.randn(2, 8, 5))
        assert not sent
        vocoder.decode([random_codes(3, 2, top=18), random_codes(3, 4, top=18)])
        assert sent == ([[2, 4]] if vocoder.backend == "triton" else [])

    @pytest.mark.parametrize(
        ("z", "error", "message"),
        [
            (torch.zeros(8, 3), ValueError, r"z must be a tensor \[B, 8, T\] .*, got \[8, 3\]"),
            (torch.zeros(1, 7, 3), ValueError, r"\[B, 8, T\].*, got \[1, 7, 3\]"),
            ([1.0], ValueError, r"z must be a tensor .*, got list"),
            (torch.zeros(1, 8, 3, device="meta"), ValueError, "z must be on cpu.*, got meta"),
            (torch.zeros(1, 8, 3).half(), TypeError, "float32 like the weights, got torch.float16"),
        ],
    )
    def test_rejects(self, z, error, message):
        with pytest.raises(error, match=message):
            random_codec((3, 2)).decode_latents(z)


class TestRejects:
    @pytest.mark.parametrize("method", ["decode", "trace"])
    @pytest.mark.parametrize(
        ("codes", "error", "message"),
        [
            pytest.param(CODES.float(), TypeError, "codes must be integers, got torch.float32", id="float"),
            pytest.param(CODES - 1, ValueError, r"codes\[0, 0, 0\] must be in 0..1025, got -1", id="negative"),
            pytest.param(CODES + 1026, ValueError, r"codes\[0, 0, 0\] must be in 0..1025, got 1026", id="too-large"),
            pytest.param(CODES[0], ValueError, r"codes must be a tensor \[B, 9, T\].*got \[9, 2\]", id="rank-2"),
            pytest.param(CODES[:, :0], ValueError, r"got \[1, 0, 2\]", id="no-codebooks"),
            pytest.param(CODES[:0], ValueError, r"with B >= 1, got \[0, 9, 2\]", id="empty-batch"),
            pytest.param(CODES.tolist(), ValueError, "got list", id="no-tensor"),
        ],
    )
    def test_codes(self, codecs, method, codes, error, message):
        with pytest.raises(error, match=message):
            getattr(codecs["odd"], method)(codes)

    @pytest.mark.parametrize(
        ("clip", "error", "message"),
        [
            pytest.param(CODES, ValueError, r"must be a tensor \[9, T\], got \[1, 9, 2\]", id="rank-3"),
            pytest.param(CODES[0].bool(), TypeError, "must be integers, got torch.bool", id="bool"),
            pytest.param(CODES[0, :1], ValueError, r"must have the 9 codebooks of codes\[0\], got 1", id="fewer"),
        ],
    )
    def test_a_wrong_clip_is_named(self, codecs, clip, error, message):
        with pytest.raises(error, match=rf"codes\[1\].*{message}"):
            codecs["odd"].decode([CODES[0], clip])

    @pytest.mark.parametrize(
        ("mode", "name", "value", "rule"),
        [
            ("fast", "mode", "fast", "'exact' or 'overlap'"),
            ("overlap", "overlap", -1, "integer from 0"),
            *((mode, "chunk", 0, "integer from 1") for mode in ("overlap", "exact")),
            ("exact", "first_chunk", 0, "integer from 1"),
        ],
    )
    def test_stream_settings(self, codecs, mode, name, value, rule):
        with pytest.raises(ValueError, match=f"{name} must be .*{rule}, got {value!r}"):
            codecs["odd"].stream(**{"mode": mode, name: value})

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("latent_dim", 0, "must be a positive integer, got 0"),
            ("n_codebooks", True, "must be a positive integer, got True"),
            ("sample_rate", 44100.0, "must be a positive integer, got 44100.0"),
            ("decoder_rates", (), r"must be a list of positive integers, got \(\)"),
            ("decoder_rates", [8, 0], r"must be a list of positive integers, got \[8, 0\]"),
            ("decoder_dim", 24, "24 must halve evenly"),
        ],
    )
    def test_config(self, name, value, message):
        with pytest.raises(ValueError, match=f"VocoderConfig: {name} {message}"):
            VocoderConfig(**{name: value})
