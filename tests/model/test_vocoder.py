"""The codec: golden vectors, an independent implementation, and what holds whatever the weights."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from zonos2_triton.model import Vocoder, VocoderConfig
from zonos2_triton.model import vocoder as vocoder_module
from zonos2_triton.model.weights.codec_checkpoint import official_name
from zonos2_triton.model.weights.tiny import codec_weights, save_official_codec
from zonos2_triton.reference.vocoder import layout, snake
from zonos2_triton.reference.vocoder_layers import OPEN

STAGE_ATOL, AUDIO_ATOL = 3e-4, 1e-4  # of the golden vectors
WINDOWED_ATOL = 2e-5  # windows against one pass, fp32; measured 9.3e-6 (even), 2.6e-6 (odd)
WINDOWED_FP64_ATOL = 1e-7  # the one rounding to fp32
BF16_DB = {"even": 24, "odd": 30}  # signal to error against fp32; measured 30.1 and 35.8
REACH_KEYS = {"even": "even (same rates as the 44.1 kHz model)", "odd": "odd"}

CONV = "decoder.model.0"  # of the odd codec: weight_v [32, 20, 7], weight_g [32, 1, 1], bias [32]

both_codecs = pytest.mark.parametrize("name", ["even", "odd"])


@pytest.fixture(scope="module")
def codecs(golden):
    """Two golden codecs, and one of random weights whose rates are all odd; 1 among them."""
    config = VocoderConfig(latent_dim=8, decoder_dim=8, decoder_rates=(3, 1, 5), codebook_dim=4)
    all_odd = Vocoder.from_state(config, codec_weights(config, torch.Generator().manual_seed(0)))
    return {"even": golden.vocoder("even"), "odd": golden.vocoder("odd"), "all_odd": all_odd}


def random_codes(*shape, top=1026, seed=0):
    return torch.randint(top, shape, generator=torch.Generator().manual_seed(seed))


def as_fp64(vocoder):
    return Vocoder.from_state(vocoder.config, vocoder.state, dtype=torch.float64)


class TestGolden:
    @both_codecs
    def test_stages(self, golden, codecs, name):
        stored = golden.tensors("dac_tiny", f"{name}.out.")
        trace = codecs[name].trace(golden.tensors("dac_tiny")[f"{name}.codes"])
        blocks = [f"block_{i}" for i in range(len(codecs[name].config.decoder_rates))]
        assert list(trace) == ["z", "conv_in", *blocks, "pre_tanh", "audio"]
        assert {"z", "conv_in", "block_0", "pre_tanh", "audio"} <= stored.keys()
        for stage in stored.keys() & trace.keys():
            atol = AUDIO_ATOL if stage == "audio" else STAGE_ATOL
            torch.testing.assert_close(
                trace[stage], stored[stage], atol=atol, rtol=0, msg=lambda m, s=stage: f"{s}: {m}"
            )

    @both_codecs
    def test_decode(self, golden, codecs, name):
        stored = golden.tensors("dac_tiny", f"{name}.")
        audio = codecs[name].decode(stored["codes"])
        torch.testing.assert_close(audio, stored["out.audio"], atol=AUDIO_ATOL, rtol=0)

    @both_codecs
    def test_one_frame(self, golden, codecs, name):
        stored = golden.tensors("dac_tiny", f"{name}.")
        audio = codecs[name].decode(stored["codes"][:1, :, :1])
        torch.testing.assert_close(audio, stored["single_frame.audio"], atol=AUDIO_ATOL, rtol=0)

    @both_codecs
    def test_fewer_codebooks_sum_the_given_ones(self, golden, codecs, name):
        stored = golden.tensors("dac_tiny", f"{name}.")
        z = codecs[name].trace(stored["codes"][:, :4])["z"]
        torch.testing.assert_close(z, stored["first_4_codebooks.z"], atol=STAGE_ATOL, rtol=0)

    @both_codecs
    def test_lengths(self, golden, codecs, name):
        known = golden.json("dac_tiny")["dacs"][name]
        config = codecs[name].config
        assert config.hop == known["product_of_rates"]
        for frames, samples in known["samples_for_T_frames"].items():
            assert config.samples(int(frames)) == samples
            assert codecs[name].decode(random_codes(1, 9, int(frames))).shape == (1, samples)


class TestSnake:
    @pytest.mark.parametrize("alpha", [0.0, 1e-8, 1e-4, 0.7, -1.3])
    def test_formula(self, alpha):
        """Small alphas too, where the 1e-9 that guards the division counts; none at all leaves x as it is."""
        xs = [-2.0, -0.1, 0.0, 0.5, 30.0]
        got = snake(torch.tensor([[xs]], dtype=torch.float64), torch.full((1, 1, 1), alpha, dtype=torch.float64))
        assert got.flatten().tolist() == pytest.approx([x + math.sin(alpha * x) ** 2 / (alpha + 1e-9) for x in xs])


class TestRealLayout:
    def test_names_and_shapes(self, golden):
        real = golden.json("dac_44khz_layout")
        stored = {**real["decoder"], **real["quantizer"]}
        folded = {
            tensor.replace("weight_v", "weight"): shape
            for tensor, shape in stored.items()
            if ".in_proj." not in tensor and not tensor.endswith("weight_g")
        }
        expected = layout(VocoderConfig())
        assert expected == folded
        decoder = sum(math.prod(shape) for tensor, shape in expected.items() if tensor.startswith("decoder."))
        assert decoder == real["parameter_count"]["decoder_folded"]

    def test_multiply_adds_per_frame(self, golden):
        """A convolution makes out_length x weights of them, a transposed one in_length x weights."""
        config, real = VocoderConfig(), golden.json("dac_44khz_layout")
        lengths = [math.prod(config.decoder_rates[:i]) for i in range(len(config.decoder_rates) + 1)]  # 1, 8, ..., 512
        counts = {}
        for tensor, shape in layout(config).items():
            if not tensor.endswith(".weight") or ".codebook." in tensor:
                continue
            part, _, number, *inner = tensor.removesuffix(".weight").split(".")
            stage = int(number) if part == "decoder" else 0
            transposed = inner == ["block", "1"] and part == "decoder"
            length = lengths[min(stage, len(lengths) - 1) - transposed]
            counts[tensor.removesuffix(".weight")] = math.prod(shape) * length
        assert counts == real["macs_per_frame_per_conv"]
        assert sum(counts.values()) == real["macs_per_frame_total"] == 804_151_296

    def test_windows_of_the_real_codec(self):
        """Ten frames per side: what streaming latency and the cost of windows rest on."""
        assert VocoderConfig().frames_behind(32 * 512, 64 * 512) == (22, 74)


class TestReach:
    """Which frames a sample depends on: too few would be heard at window borders, too many cost latency."""

    @both_codecs
    def test_golden(self, golden, codecs, name):
        known = golden.json("dac_tiny")["decoder_reach_samples_relative_to_frame_start"][REACH_KEYS[name]]
        frame, config = 100, codecs[name].config
        assert config.hop == known["hop"]
        for offset, behind in (
            (known["first"] - 1, False),
            (known["first"], True),
            (0, True),
            (known["last"], True),
            (known["last"] + 1, False),
        ):
            sample = frame * config.hop + offset
            first, end = config.frames_behind(sample, sample + 1)
            assert (first <= frame < end) == behind, f"sample {offset} from the start of its frame"

    @pytest.mark.parametrize(("name", "frames"), [("even", 24), ("odd", 44), ("all_odd", 90)])
    def test_experiment(self, codecs, name, frames):
        """One frame is changed; exactly the samples that claim to depend on it may change, up to the outermost."""
        vocoder, frame = as_fp64(codecs[name]), frames // 2
        codes = random_codes(1, 9, frames, top=1024)
        changed_codes = codes.clone()
        changed_codes[:, :, frame] = (codes[:, :, frame] + 512) % 1024
        before, after = (vocoder.trace(c)["audio"][0] for c in (codes, changed_codes))
        changed = (before != after).nonzero()[:, 0].tolist()
        config = vocoder.config
        reach = [config.frames_behind(sample, sample + 1) for sample in range(config.samples(frames))]
        claimed = [sample for sample, (first, end) in enumerate(reach) if first <= frame < end]
        assert 0 < claimed[0] < claimed[-1] < len(before) - 1, "the clip is too short to show the reach"
        assert (changed[0], changed[-1]) == (claimed[0], claimed[-1])

    @pytest.mark.parametrize("name", ["even", "odd", "all_odd"])
    @pytest.mark.parametrize(("start", "stop"), [(0, 1), (7, 400), (960, 2048)])
    def test_of_a_range_is_of_its_ends(self, codecs, name, start, stop):
        config = codecs[name].config
        first, end = config.frames_behind(start, stop)
        assert (first, end) == (config.frames_behind(start, start + 1)[0], config.frames_behind(stop - 1, stop)[1])


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
        whole = codecs[name].trace(codes)["audio"]
        torch.testing.assert_close(codecs[name].decode(codes), whole, atol=WINDOWED_ATOL, rtol=0)

    @pytest.mark.parametrize("name", ["even", "odd", "all_odd"])
    def test_windows_equal_one_pass_in_fp64(self, codecs, name):
        vocoder, codes = as_fp64(codecs[name]), random_codes(1, 9, 40)
        whole = vocoder.trace(codes)["audio"].float()
        torch.testing.assert_close(vocoder.decode(codes), whole, atol=WINDOWED_FP64_ATOL, rtol=0)

    @both_codecs
    def test_rows_do_not_depend_on_the_batch(self, codecs, name):
        codes = random_codes(3, 9, 40)
        rows = codecs[name].decode(codes)
        for row, clip in zip(rows, codes, strict=True):
            assert torch.equal(row, codecs[name].decode(clip[None])[0])

    @pytest.mark.parametrize("special", [1024, 1025], ids=["end", "padding"])
    def test_special_ids_decode_as_the_last_code(self, codecs, special):
        codes = random_codes(1, 9, 12, top=1024)
        codes[:, 3:7, 2:9] = special
        assert torch.equal(codecs["odd"].decode(codes), codecs["odd"].decode(codes.clamp(max=1023)))

    @both_codecs
    def test_no_frames_make_no_samples(self, codecs, name):
        audio = codecs[name].decode(torch.zeros(2, 9, 0, dtype=torch.int64))
        assert (audio.shape, audio.dtype) == ((2, 0), torch.float32)
        assert codecs[name].config.samples(0) == 0

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16], ids=str)
    def test_any_integer_type(self, codecs, dtype):
        codes = random_codes(1, 9, 4, top=128)
        assert torch.equal(codecs["odd"].decode(codes.to(dtype)), codecs["odd"].decode(codes))

    @both_codecs
    def test_fp64(self, golden, codecs, name):
        codes = random_codes(1, 9, 12)
        audio = golden.vocoder(name, dtype=torch.float64).decode(codes)
        torch.testing.assert_close(audio, codecs[name].decode(codes), atol=2e-5, rtol=0)

    @both_codecs
    def test_bf16(self, golden, codecs, name):
        codes = random_codes(1, 9, 20)
        vocoder, want = golden.vocoder(name, dtype="bfloat16"), codecs[name].decode(codes)
        assert {t.dtype for t in vocoder.state.values()} == {torch.bfloat16}
        got = vocoder.decode(codes)
        assert got.dtype == vocoder.trace(codes)["audio"].dtype == torch.float32
        assert 10 * math.log10(want.square().sum() / (got - want).square().sum()) > BF16_DB[name]


class TestInSteps:
    """As the kernels take clips, by their reference; test_triton_vocoder.py has the kernels."""

    @both_codecs
    def test_golden(self, golden, codecs, in_steps, name):
        stored, vocoder = golden.tensors("dac_tiny", f"{name}."), in_steps(codecs[name])
        trace, audio = vocoder.trace(stored["codes"]), vocoder.decode(stored["codes"])
        assert list(trace) == list(codecs[name].trace(stored["codes"]))
        for stage, value in trace.items():
            if f"out.{stage}" in stored:
                torch.testing.assert_close(value, stored[f"out.{stage}"], atol=STAGE_ATOL, rtol=0)
        for got in (trace["audio"], audio):
            torch.testing.assert_close(got, stored["out.audio"], atol=AUDIO_ATOL, rtol=0)
        few = vocoder.trace(stored["codes"][:, :4])["z"]
        torch.testing.assert_close(few, stored["first_4_codebooks.z"], atol=STAGE_ATOL, rtol=0)

    @pytest.mark.parametrize("widest_unit", [0, 4, 64])
    @pytest.mark.parametrize("name", ["odd", "all_odd"])
    def test_steps_and_batches(self, codecs, in_steps, monkeypatch, name, widest_unit):
        """In steps of five frames, three clips at a time, whichever units are one operation."""
        clips = [random_codes(9, n, seed=n) for n in (12, 0, 1, 33, 7)]
        vocoder = in_steps(codecs[name], widest_unit)
        monkeypatch.setattr(vocoder_module, "ACTIVATIONS", vocoder.decoder.room(3, 5))
        monkeypatch.setattr(vocoder_module, "ROWS_TOGETHER", 3)
        assert vocoder._frames_together(3) == 5
        got = vocoder.decode(clips)
        for audio, wanted in zip(got, codecs[name].decode(clips), strict=True):
            torch.testing.assert_close(audio, wanted, atol=WINDOWED_ATOL, rtol=0)

    def test_a_step_takes_a_frame_at_least(self, codecs, in_steps, monkeypatch):
        monkeypatch.setattr(vocoder_module, "ACTIVATIONS", 1)
        assert in_steps(codecs["odd"])._frames_together(2) == 1

    @pytest.mark.parametrize("name", ["even", "odd", "all_odd"])
    def test_what_a_frame_waits_for(self, codecs, name):
        """As the reference has it: a sample is final when the last frame that it depends on has come."""
        config, decoder = codecs[name].config, codecs[name].decoder
        ready = 50 * config.hop - decoder.lag  # samples that are final after 50 frames
        assert [config.frames_behind(at, at + 1)[1] for at in (ready - 1, ready)] == [50, 51]
        assert decoder.lookahead == max(config.frames_behind(50 * config.hop, 51 * config.hop)[1] - 51, 0)

    @pytest.mark.parametrize("name", ["odd", "all_odd"])
    def test_what_a_step_finished(self, codecs, name):
        """Of a row by itself: samples from where the step before left off, and columns that hold them."""
        config, decoder = codecs[name].config, codecs[name].decoder
        for length in (0, 1, 3, 40, OPEN):
            total = config.samples(length) if length < OPEN else None
            begin = 0
            for done in range(0, min(length, 30) + decoder.lookahead, 7):
                where, columns = decoder.finished(done, 7, length)
                assert where.start == begin
                begin = where.stop
                assert where.stop - where.start == columns.stop - columns.start
                assert 0 <= columns.start <= columns.stop <= 7 * config.hop or where.start == where.stop
                if where.start < where.stop:
                    assert columns.start - where.start == decoder.lag - done * config.hop
            assert total is None or length > 30 or begin == total
            nothing, _ = decoder.finished(7, 0, length)
            assert nothing.start == nothing.stop


def renamed(weights, g, v):
    return {tensor.replace("weight_g", g).replace("weight_v", v): value for tensor, value in weights.items()}


class TestWeights:
    @pytest.fixture
    def weights(self, golden):
        return golden.tensors("dac_tiny", "odd.weights.")

    @pytest.fixture
    def config(self, codecs):
        return codecs["odd"].config

    @pytest.mark.parametrize(
        ("g", "v"),
        [
            ("parametrizations.weight.original0", "parametrizations.weight.original1"),
            ("weight.original0", "weight.original1"),
        ],
        ids=["parametrizations", "without-the-word"],
    )
    def test_spellings_of_weight_norm(self, codecs, config, weights, g, v):
        codes = random_codes(1, 9, 12)
        audio = Vocoder.from_state(config, renamed(weights, g, v)).decode(codes)
        assert torch.equal(audio, codecs["odd"].decode(codes))

    def test_folded(self, codecs, config, weights):
        """As torch itself folds it."""
        folded = {tensor: value for tensor, value in weights.items() if not tensor.endswith(("_g", "_v"))}
        for tensor in [tensor for tensor in weights if tensor.endswith("_g")]:
            base = tensor.removesuffix("_g")
            folded[base] = torch._weight_norm(weights[f"{base}_v"], weights[tensor], 0)
        codes = random_codes(1, 9, 12)
        audio = Vocoder.from_state(config, folded).decode(codes)
        torch.testing.assert_close(audio, codecs["odd"].decode(codes), atol=1e-5, rtol=0)

    def test_encode_side_is_ignored(self, codecs, config, weights):
        more = {
            "encoder.block.0.weight_v": torch.full((2, 2), torch.nan),
            "encoder.steps": torch.tensor(3),
            "quantizer.quantizers.0.in_proj.weight_g": torch.ones(4, 1, 1),
            "quantizer.quantizers.0.in_proj.bias": torch.full((4,), torch.inf),
        }
        codes = random_codes(1, 9, 3)
        audio = Vocoder.from_state(config, {**weights, **more}).decode(codes)
        assert torch.equal(audio, codecs["odd"].decode(codes))

    def test_every_wrong_tensor_is_listed(self, config, weights):
        del weights["decoder.model.1.block.0.alpha"], weights["quantizer.quantizers.8.codebook.weight"]
        weights[f"{CONV}.bias"] = torch.zeros(3)
        weights["decoder.model.4.alpha"] = torch.zeros(4)
        weights["decoder.model.9.bias"] = torch.zeros(2)
        with pytest.raises(ValueError, match="do not fit") as error:
            Vocoder.from_state(config, weights)
        text = str(error.value)
        assert "missing (2)" in text
        assert "surplus (1)" in text
        assert "wrong shape (2)" in text
        for tensor in ("decoder.model.1.block.0.alpha [1, 32, 1]", "quantizer.quantizers.8.codebook.weight [1024, 4]"):
            assert tensor in text
        assert "decoder.model.9.bias [2]" in text
        assert f"{CONV}.bias is [3], expected [32]" in text
        assert "decoder.model.4.alpha is [4], expected [1, 4, 1]" in text

    @pytest.mark.parametrize("half", ["g", "v"])
    def test_half_a_weight_norm(self, config, weights, half):
        del weights[f"{CONV}.weight_{half}"]
        with pytest.raises(ValueError, match=rf"missing \(1\): {CONV}\.weight \[32, 20, 7\]"):
            Vocoder.from_state(config, weights)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
    def test_values_must_be_finite(self, config, weights, bad):
        weights[f"{CONV}.bias"][5] = weights["decoder.model.2.block.1.weight_g"][0] = bad
        with pytest.raises(
            ValueError, match=rf"(?s){CONV}\.bias holds NaN.*decoder\.model\.2\.block\.1\.weight_g holds NaN"
        ):
            Vocoder.from_state(config, weights)

    def test_values_must_be_floats(self, config, weights):
        weights[f"{CONV}.bias"] = torch.zeros(32, dtype=torch.int64)
        with pytest.raises(ValueError, match=rf"{CONV}\.bias must be a dense floating-point tensor, got torch\.int64"):
            Vocoder.from_state(config, weights)

    @pytest.mark.parametrize("shape", [(1, 1, 1), (1, 20, 1), (33, 1, 1), (32,)], ids=str)
    def test_g_of_a_wrong_shape(self, config, weights, shape):
        """One that broadcasts would give a wrong sound in silence."""
        weights[f"{CONV}.weight_g"] = torch.ones(shape)
        with pytest.raises(ValueError, match=CONV):
            Vocoder.from_state(config, weights)

    @pytest.mark.parametrize("shape", [(32, 20), (32, 20, 5), (30, 20, 7)], ids=str)
    def test_v_of_a_wrong_shape(self, config, weights, shape):
        weights[f"{CONV}.weight_v"] = torch.ones(shape)
        with pytest.raises(ValueError, match=CONV):
            Vocoder.from_state(config, weights)

    def test_v_without_a_direction(self, config, weights):
        """0 / |0| is NaN: finite tensors, a weight that is not."""
        weights[f"{CONV}.weight_v"][3] = 0
        with pytest.raises(ValueError, match=CONV):
            Vocoder.from_state(config, weights)

    def test_fp64_is_folded_in_fp64(self, config, weights):
        g, v = weights[f"{CONV}.weight_g"].double(), weights[f"{CONV}.weight_v"].double()
        got = Vocoder.from_state(config, weights, dtype=torch.float64).state[f"{CONV}.weight"]
        torch.testing.assert_close(got, torch._weight_norm(v, g, 0), atol=1e-15, rtol=1e-14)

    def test_what_only_overflows_in_the_wanted_precision(self, config, weights):
        weights[f"{CONV}.weight_g"] *= 1e7
        Vocoder.from_state(config, weights)
        with pytest.raises(ValueError, match=rf"{CONV}\.weight holds NaN or Inf"):
            Vocoder.from_state(config, weights, dtype=torch.float16)

    def test_a_weight_both_folded_and_not(self, config, weights):
        weights[f"{CONV}.weight"] = torch.ones(32, 20, 7)
        with pytest.raises(ValueError, match=CONV):
            Vocoder.from_state(config, weights)

    @pytest.mark.parametrize(
        ("placement", "message"),
        [
            ({"backend": "cuda"}, "backend must be one of reference, triton, auto, got 'cuda'"),
            ({"dtype": torch.int8}, "dtype must be one of .*, got torch.int8"),
            ({"dtype": "fp32"}, "dtype must be one of .*float32.*, got 'fp32'"),
            ({"device": "gpu"}, "device must be a torch device .*, got 'gpu'"),
        ],
        ids=["backend", "dtype", "dtype-name", "device"],
    )
    def test_placement(self, config, weights, placement, message):
        with pytest.raises(ValueError, match=message):
            Vocoder.from_state(config, weights, **placement)


class TestFiles:
    def test_official_file(self, codecs, tmp_path):
        vocoder, codes = codecs["odd"], random_codes(1, 9, 12)
        save_official_codec(tmp_path / "weights.pth", vocoder.config, vocoder.state)
        for path in (tmp_path / "weights.pth", str(tmp_path / "weights.pth"), tmp_path):
            loaded = Vocoder.load(path)
            assert loaded.config == vocoder.config
            torch.testing.assert_close(loaded.decode(codes), vocoder.decode(codes), atol=1e-5, rtol=0)
            assert "never trained" in loaded.metadata["notice"]

    def test_latent_dim_follows_from_the_encoder(self, tmp_path):
        """The released file leaves it out: encoder_dim doubles with each of encoder_rates."""
        config = VocoderConfig(latent_dim=24, decoder_dim=16, decoder_rates=(4, 3, 2), codebook_dim=4)
        state = codec_weights(config, torch.Generator().manual_seed(0))
        kwargs = {
            "encoder_dim": 3,
            "encoder_rates": [2, 3, 4],
            "latent_dim": None,
            "decoder_dim": 16,
            "decoder_rates": [4, 3, 2],
            "n_codebooks": 9,
            "codebook_size": 1024,
            "codebook_dim": 4,
            "quantizer_dropout": 0.5,
            "sample_rate": 44100,
        }
        torch.save({"state_dict": state, "metadata": {"kwargs": kwargs}}, tmp_path / "weights.pth")
        assert Vocoder.load(tmp_path / "weights.pth").config == config

    @pytest.mark.parametrize("kwargs", [{"decoder_rates": 4}, [1]], ids=["rates-no-list", "no-mapping"])
    def test_official_file_of_wrong_arguments(self, codecs, tmp_path, kwargs):
        path = tmp_path / "weights.pth"
        torch.save({"state_dict": codecs["odd"].state, "metadata": {"kwargs": kwargs}}, path)
        with pytest.raises(ValueError, match=r"weights\.pth"):
            Vocoder.load(path)

    def test_wrong_tensors_name_the_file(self, codecs, tmp_path):
        state = {tensor: value for tensor, value in codecs["odd"].state.items() if tensor != f"{CONV}.bias"}
        save_official_codec(tmp_path / "weights.pth", codecs["odd"].config, state)
        with pytest.raises(ValueError, match=rf"(?s)weights\.pth: .*missing \(1\): {CONV}\.bias \[32\]"):
            Vocoder.load(tmp_path / "weights.pth")

    @pytest.mark.parametrize(
        "text",
        ["[]", "{", "{}", '{"downsampling_ratios": 4}', '{"downsampling_ratios": [2], "hidden_size": 0}'],
        ids=["list", "truncated", "empty", "ratios-no-list", "size-zero"],
    )
    def test_wrong_configuration(self, codecs, tmp_path, text):
        save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"config\.json is not the configuration"):
            Vocoder.load(tmp_path)

    @pytest.mark.parametrize(
        "ratios",
        [{"downsampling_ratios": [2, 3, 4]}, {"upsampling_ratios": [4, 3, 2], "downsampling_ratios": [8, 8]}],
        ids=["down", "up-and-down"],
    )
    def test_rates_of_a_transformers_configuration(self, codecs, tmp_path, ratios):
        """Those of the decoder if it has its own, else the encoder's, reversed."""
        config = codecs["odd"].config
        sizes = {"hidden_size": 20, "decoder_hidden_size": 32, "n_codebooks": 9, "codebook_size": 1024}
        settings = {**sizes, "codebook_dim": 4, "sampling_rate": 44_100, **ratios}
        save_file(codecs["odd"].state, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        assert Vocoder.load(tmp_path).config == config

    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="holds no vocoder weights"):
            Vocoder.load(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"weights\.pth is not a file"):
            Vocoder.load(tmp_path / "weights.pth")


class TestTransformers:
    """DacModel of the transformers library: the same codec, written by others, in a layout of its own."""

    @staticmethod
    def build(transformers, ratios, weight_norm):
        config = transformers.DacConfig(
            encoder_hidden_size=4,
            downsampling_ratios=list(ratios),
            decoder_hidden_size=32,
            codebook_dim=4,
            sampling_rate=24_000,
        )
        model, generator = transformers.DacModel(config).eval(), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor, value in model.named_parameters():
                if tensor.endswith("alpha"):
                    value.uniform_(0.5, 1.5, generator=generator)
                elif value.ndim == 3:
                    value.normal_(0, 0.7 * math.prod(value.shape[1:]) ** -0.5, generator=generator)
                else:
                    value.normal_(0, 1 if "codebook" in tensor else 0.02, generator=generator)
            model.decoder.conv2.weight.mul_(0.3)
        if weight_norm:
            model.apply_weight_norm()
        return model

    @pytest.mark.parametrize(
        ("ratios", "weight_norm"),
        [
            pytest.param((2, 4, 8, 8), False, id="real-rates-folded"),
            pytest.param((2, 4, 8, 8), True, id="real-rates-weight-norm"),
            pytest.param((2, 3, 4), False, id="one-odd-rate-folded"),
            pytest.param((3, 5), True, id="odd-rates-weight-norm"),
        ],
    )
    def test_decode(self, tmp_path, ratios, weight_norm):
        transformers = pytest.importorskip("transformers")
        model = self.build(transformers, ratios, weight_norm)
        model.save_pretrained(tmp_path)
        vocoder, codes = Vocoder.load(tmp_path), random_codes(2, 9, 20, top=1024)
        assert vocoder.config == VocoderConfig(
            latent_dim=4 * 2 ** len(ratios),
            decoder_dim=32,
            decoder_rates=ratios[::-1],
            codebook_dim=4,
            sample_rate=24_000,
        )
        with torch.no_grad():
            want = model.decode(audio_codes=codes).audio_values
        assert 0.1 < want.std() < 0.7, "a silent or clipped clip would show little"
        torch.testing.assert_close(vocoder.decode(codes), want, atol=1e-5, rtol=0)


CODES = torch.zeros(1, 9, 2, dtype=torch.int64)


@pytest.mark.parametrize("name", ["decoder.block.x.snake1.alpha", "decoder.block.0", "decoder.norm.weight", "encoder"])
def test_names_that_transformers_does_not_have_stay(name):
    assert official_name(name, VocoderConfig()) == name


class TestRejects:
    @pytest.mark.parametrize("method", ["decode", "trace"])
    @pytest.mark.parametrize(
        ("codes", "error", "message"),
        [
            pytest.param(CODES.float(), TypeError, "codes must be integers, got torch.float32", id="float"),
            pytest.param(CODES.bool(), TypeError, "codes must be integers, got torch.bool", id="bool"),
            pytest.param(CODES - 1, ValueError, r"codes\[0, 0, 0\] must be in 0..1025, got -1", id="negative"),
            pytest.param(CODES + 1026, ValueError, r"codes\[0, 0, 0\] must be in 0..1025, got 1026", id="too-large"),
            pytest.param(CODES[0], ValueError, r"codes must be a tensor \[B, 9, T\].*got \[9, 2\]", id="rank-2"),
            pytest.param(CODES[None], ValueError, r"got \[1, 1, 9, 2\]", id="rank-4"),
            pytest.param(CODES.mT.repeat(1, 5, 1), ValueError, r"got \[1, 10, 9\]", id="too-many-codebooks"),
            pytest.param(CODES[:, :0], ValueError, r"got \[1, 0, 2\]", id="no-codebooks"),
            pytest.param(CODES[:0], ValueError, r"with B >= 1, got \[0, 9, 2\]", id="empty-batch"),
            pytest.param(CODES.tolist(), ValueError, "got list", id="no-tensor"),
        ],
    )
    def test_codes(self, codecs, method, codes, error, message):
        with pytest.raises(error, match=message):
            getattr(codecs["odd"], method)(codes)

    def test_the_first_wrong_code_is_named(self, codecs):
        codes = random_codes(2, 9, 5, top=1024)
        codes[1, 3, 2] = codes[1, 4, 0] = 2000
        with pytest.raises(ValueError, match=r"codes\[1, 3, 2\] must be in 0..1025, got 2000"):
            codecs["odd"].decode(codes)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            pytest.param({"mode": "fast"}, "mode must be 'exact' or 'overlap', got 'fast'", id="mode"),
            pytest.param({"overlap": -1}, "overlap must be an integer from 0, got -1", id="overlap-negative"),
            pytest.param({"overlap": 2.0}, "overlap must be an integer from 0, got 2.0", id="overlap-float"),
            pytest.param({"overlap": True}, "overlap must be an integer from 0, got True", id="overlap-bool"),
            pytest.param({"chunk": 0}, "chunk must be an integer from 1, got 0", id="chunk-zero"),
            pytest.param({"chunk": "8"}, "chunk must be an integer from 1, got '8'", id="chunk-text"),
        ],
    )
    def test_stream_settings(self, codecs, settings, message):
        with pytest.raises(ValueError, match=message):
            codecs["odd"].stream(**{"mode": "overlap", **settings})

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ({"latent_dim": 0}, "latent_dim must be a positive integer, got 0"),
            ({"decoder_dim": -32}, "decoder_dim must be a positive integer, got -32"),
            ({"n_codebooks": True}, "n_codebooks must be a positive integer, got True"),
            ({"sample_rate": 44100.0}, "sample_rate must be a positive integer, got 44100.0"),
            ({"codebook_size": None}, "codebook_size must be a positive integer, got None"),
            ({"decoder_rates": ()}, r"decoder_rates must be a list of positive integers, got \(\)"),
            ({"decoder_rates": [8, 0]}, r"decoder_rates must be a list of positive integers, got \[8, 0\]"),
            ({"decoder_rates": 8}, "decoder_rates must be .*integers, got 8"),
            ({"decoder_dim": 24}, "decoder_dim 24 must halve evenly"),
        ],
        ids=json.dumps,
    )
    def test_config(self, sizes, message):
        with pytest.raises(ValueError, match=f"VocoderConfig: {message}"):
            VocoderConfig(**sizes)

    @pytest.mark.parametrize("stepping", [False, True], ids=["windows", "steps"])
    def test_too_short_to_sound(self, in_steps, stepping):
        """A rate of 1 takes a position off: of a frame nothing may be left."""
        config = VocoderConfig(latent_dim=8, decoder_dim=8, decoder_rates=(1, 1), codebook_dim=4)
        vocoder = Vocoder(config, codec_weights(config, torch.Generator().manual_seed(0)))
        vocoder = in_steps(vocoder) if stepping else vocoder
        for frames, samples in ((1, 0), (2, 0), (3, 1)):
            assert vocoder.decode(random_codes(1, 9, frames)).shape == (1, samples)
        assert vocoder.trace(random_codes(1, 9, 3))["audio"].shape == (1, 1)
        with pytest.raises(ValueError, match="at least one frame to be traced, and a sample, got 2"):
            vocoder.trace(random_codes(1, 9, 2))

    def test_clips_of_other_codebooks(self, codecs):
        with pytest.raises(ValueError, match=r"codes\[1\] must have the 9 codebooks of codes\[0\], got 1"):
            codecs["odd"].decode([random_codes(9, 4), random_codes(1, 4)])

    def test_a_trace_of_nothing(self, codecs):
        with pytest.raises(ValueError, match="codes must hold at least one frame to be traced"):
            codecs["odd"].trace(torch.zeros(1, 9, 0, dtype=torch.int64))
