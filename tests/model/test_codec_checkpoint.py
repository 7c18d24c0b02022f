"""A vocoder from its tensors and files: spellings of weight norm, what is refused, and DacModel of transformers."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from tests.model.codecs import frames_of, random_codec, randomize
from zonos2_triton.model import Vocoder, VocoderConfig
from zonos2_triton.model.weights.tiny import save_official_codec

CONV = "decoder.model.0"  # of the odd codec: weight_v [32, 20, 7], weight_g [32, 1, 1], bias [32]
CODES = frames_of(12, codebooks=9, top=1026).T[None]


@pytest.fixture(scope="module")
def odd(golden):
    return golden.vocoder("odd")


@pytest.fixture
def weights(golden):
    return golden.tensors("dac_tiny", "odd.weights.")


class TestState:
    @pytest.mark.parametrize("prefix", ["parametrizations.", ""], ids=["parametrizations", "without-the-word"])
    def test_spellings_of_weight_norm(self, odd, weights, prefix):
        g, v = (f"{prefix}weight.original{i}" for i in range(2))
        renamed = {tensor.replace("weight_g", g).replace("weight_v", v): value for tensor, value in weights.items()}
        assert torch.equal(Vocoder.from_state(odd.config, renamed).decode(CODES), odd.decode(CODES))

    def test_folded(self, odd, weights):
        """As torch itself folds it."""
        folded = {tensor: value for tensor, value in weights.items() if not tensor.endswith(("_g", "_v"))}
        for tensor in [tensor for tensor in weights if tensor.endswith("_g")]:
            base = tensor.removesuffix("_g")
            folded[base] = torch._weight_norm(weights[f"{base}_v"], weights[tensor], 0)
        audio = Vocoder.from_state(odd.config, folded).decode(CODES)
        torch.testing.assert_close(audio, odd.decode(CODES), atol=1e-5, rtol=0)

    def test_fp64_is_folded_in_fp64(self, odd, weights):
        g, v = weights[f"{CONV}.weight_g"].double(), weights[f"{CONV}.weight_v"].double()
        got = Vocoder.from_state(odd.config, weights, dtype=torch.float64).state[f"{CONV}.weight"]
        torch.testing.assert_close(got, torch._weight_norm(v, g, 0), atol=1e-15, rtol=1e-14)

    def test_encode_side_is_ignored(self, odd, weights):
        more = {"encoder.block.0.weight_v": torch.full((2, 2), torch.nan), "encoder.steps": torch.tensor(3)}
        more["quantizer.quantizers.0.in_proj.weight_g"] = torch.ones(4, 1, 1)
        more["quantizer.quantizers.0.in_proj.bias"] = torch.full((4,), torch.inf)
        assert torch.equal(Vocoder.from_state(odd.config, {**weights, **more}).decode(CODES), odd.decode(CODES))

    @pytest.mark.parametrize("half", ["g", "v"])
    def test_half_a_weight_norm(self, odd, weights, half):
        del weights[f"{CONV}.weight_{half}"]
        with pytest.raises(ValueError, match=rf"missing \(1\): {CONV}\.weight \[32, 20, 7\]"):
            Vocoder.from_state(odd.config, weights)

    @pytest.mark.parametrize(
        ("tensor", "value", "message"),
        [
            ("bias", torch.zeros(32).long(), "must be a dense floating-point tensor, got .*64"),
            ("bias", torch.full((32,), torch.inf), "holds NaN or Inf"),
            ("bias", torch.zeros(3), r"is \[3\], expected \[32\]"),
            ("more", torch.zeros(2), r" \[2\]"),
            *(("weight_g", torch.ones(shape), "") for shape in ((1, 1, 1), (1, 20, 1), (33, 1, 1), 32)),
            *(("weight_v", torch.ones(shape), "") for shape in ((32, 20), (32, 20, 5), (30, 20, 7))),
            ("weight_v", torch.zeros(32, 20, 7), ""),  # without a direction
            ("weight", torch.ones(32, 20, 7), ""),  # both folded and not
        ],
    )
    def test_wrong_tensors(self, odd, weights, tensor, value, message):
        """A g that broadcasts would give a wrong sound in silence; 0 / |0| is NaN."""
        weights[f"{CONV}.{tensor}"] = value
        with pytest.raises(ValueError, match=rf"{CONV}\..*{message}"):
            Vocoder.from_state(odd.config, weights)


class TestFiles:
    def test_official_file(self, odd, tmp_path):
        save_official_codec(tmp_path / "weights.pth", odd.config, odd.state)
        stored = torch.load(tmp_path / "weights.pth", weights_only=True)["state_dict"]
        normed = {name for name in odd.state if name.endswith(".weight") and "codebook" not in name}
        assert stored.keys() == odd.state.keys() - normed | {name + end for name in normed for end in ("_g", "_v")}
        for path in (tmp_path / "weights.pth", str(tmp_path / "weights.pth"), tmp_path):
            loaded = Vocoder.load(path)
            assert loaded.config == odd.config
            torch.testing.assert_close(loaded.decode(CODES), odd.decode(CODES), atol=1e-5, rtol=0)
            assert "never trained" in loaded.metadata["notice"]

    def test_latent_dim_follows_from_the_encoder(self, tmp_path):
        """The released file leaves it out: encoder_dim doubles with each of encoder_rates."""
        made = random_codec((4, 3, 2), n_codebooks=9, codebook_size=1024, latent_dim=24, decoder_dim=16)
        encoder = {"encoder_dim": 3, "encoder_rates": [2, 3, 4], "latent_dim": None, "quantizer_dropout": 0.5}
        kwargs = asdict(made.config) | encoder
        torch.save({"state_dict": made.state, "metadata": {"kwargs": kwargs}}, tmp_path / "weights.pth")
        assert Vocoder.load(tmp_path / "weights.pth").config == made.config

    def test_errors_name_the_file(self, odd, tmp_path):
        path = tmp_path / "weights.pth"
        state = {tensor: value for tensor, value in odd.state.items() if tensor != f"{CONV}.bias"}
        save_official_codec(path, odd.config, state)
        with pytest.raises(ValueError, match=rf"(?s)weights\.pth: .*missing \(1\): {CONV}\.bias \[32\]"):
            Vocoder.load(path)
        for kwargs in ({"decoder_rates": 4}, [1]):
            torch.save({"state_dict": odd.state, "metadata": {"kwargs": kwargs}}, path)
            with pytest.raises(ValueError, match=r"weights\.pth"):
                Vocoder.load(path)

    @pytest.mark.parametrize(
        "text",
        ["[]", "{", "{}", '{"downsampling_ratios": 4}', '{"downsampling_ratios": [2], "hidden_size": 0}'],
        ids=["list", "truncated", "empty", "ratios-no-list", "size-zero"],
    )
    def test_wrong_configuration(self, tmp_path, text):
        save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"config\.json is not the configuration"):
            Vocoder.load(tmp_path)

    @pytest.mark.parametrize(
        "ratios",
        [{"downsampling_ratios": [2, 3, 4]}, {"upsampling_ratios": [4, 3, 2], "downsampling_ratios": [8, 8]}],
        ids=["down", "up-and-down"],
    )
    def test_rates_of_a_transformers_configuration(self, odd, tmp_path, ratios):
        """Those of the decoder if it has its own, else the encoder's, reversed."""
        sizes = {"hidden_size": 20, "decoder_hidden_size": 32, "n_codebooks": 9, "codebook_size": 1024}
        settings = {**sizes, "codebook_dim": 4, "sampling_rate": 44_100, **ratios}
        save_file(odd.state, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        assert Vocoder.load(tmp_path).config == odd.config

    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="holds no vocoder weights"):
            Vocoder.load(tmp_path)


@pytest.mark.needs("transformers")
@pytest.mark.parametrize(("ratios", "weight_norm"), [((2, 4, 8, 8), True), ((2, 3, 4), False), ((3, 5), True)], ids=str)
def test_transformers(tmp_path, ratios, weight_norm):
    """DacModel of the transformers library: an independent implementation of the codec in its own layout."""
    import transformers

    sizes = {"encoder_hidden_size": 4, "decoder_hidden_size": 32, "codebook_dim": 4, "sampling_rate": 24_000}
    config = transformers.DacConfig(downsampling_ratios=list(ratios), **sizes)
    model = transformers.DacModel(config).eval()
    randomize(model)
    with torch.no_grad():
        model.decoder.conv2.weight.mul_(0.3)
    if weight_norm:
        model.apply_weight_norm()
    model.save_pretrained(tmp_path)
    vocoder, codes = Vocoder.load(tmp_path), torch.randint(1024, (2, 9, 20))
    sizes = {"latent_dim": 4 * 2 ** len(ratios), "decoder_dim": 32, "codebook_dim": 4, "sample_rate": 24_000}
    assert vocoder.config == VocoderConfig(decoder_rates=ratios[::-1], **sizes)
    with torch.no_grad():
        want = model.decode(audio_codes=codes).audio_values
    assert 0.1 < want.std() < 0.7, "a silent or clipped clip would show little"
    torch.testing.assert_close(vocoder.decode(codes), want, atol=1e-5, rtol=0)
