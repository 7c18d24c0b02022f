import json

import pytest
import torch

from tests.model.codecs import randomize
from zonos2_triton.model import Audio, Vocoder
from zonos2_triton.model.cli import main
from zonos2_triton.model.training.codec_encoder import CodecEncoder
from zonos2_triton.model.training.dataset import load_dataset

CPU = torch.device("cpu")


def dac(folder, ratios=(2, 4, 8, 8), weight_norm=True, rate=44100):
    """DacModel of the transformers library, saved in its own layout."""
    import transformers

    sizes = {"encoder_hidden_size": 4, "decoder_hidden_size": 32, "codebook_dim": 4, "sampling_rate": rate}
    model = transformers.DacModel(transformers.DacConfig(downsampling_ratios=list(ratios), **sizes)).eval()
    randomize(model)
    if weight_norm:
        model.apply_weight_norm()
    model.save_pretrained(folder)
    return model


@pytest.mark.needs("transformers")
@pytest.mark.parametrize(("ratios", "weight_norm"), [((2, 4, 8, 8), True), ((2, 3, 4), False), ((3, 5), True)], ids=str)
def test_codes_are_those_of_transformers(tmp_path, seeded, ratios, weight_norm):
    model = dac(tmp_path, ratios, weight_norm)
    encoder = CodecEncoder.load(tmp_path, CPU)
    samples = 0.3 * seeded(encoder.hop * 7)
    with torch.no_grad():
        want = model.encode(samples[None, None]).audio_codes[0]
    codes = encoder.encode(samples, 44100)
    assert want.unique().numel() > 20, "few codes would show little"
    assert (want == codes.T).float().mean() > 0.99, "an angle may be the least by a rounding error"
    assert torch.equal(codes[:, 0].long(), want[0])


@pytest.mark.needs("transformers")
def test_a_dataset_of_recordings(tmp_path, config, capsys):
    """Resampled, mixed to mono, padded to a whole frame; the official vocoder decodes the codes."""
    dac(tmp_path / "dac")
    sound = torch.sin(torch.arange(5000) / 9)
    Audio(sound, 22050).save(tmp_path / "a.wav")
    lines = [
        {"id": "a", "text": "Hi.", "audio": "a.wav", "speaking_rate": 3},
        {"id": "b", "text": "Ho.", "audio": "none.wav"},
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = [
        "encode",
        str(tmp_path / "r.jsonl"),
        "--vocoder",
        str(tmp_path / "dac"),
        "--out",
        str(tmp_path / "d" / "t.jsonl"),
    ]
    assert main(words) == 2
    assert "1 of 2 recordings are bad\n" in (err := capsys.readouterr().err)
    assert "r.jsonl:2: " in err
    assert "none.wav is not a file" in err
    assert not (tmp_path / "d").exists()
    assert main([*words, "--skip-bad", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["items"], report["frames"]) == (1, -(-10000 // 512))
    (item,) = load_dataset(tmp_path / "d" / "t.jsonl", config, 500)
    assert (item.id, item.text, item.prompt) == ("a", "Hi.", {"speaking_rate": 3})
    assert Vocoder.load(tmp_path / "dac").decode(item.codes.T[None].long()).isfinite().all()


def test_a_codec_without_an_encoder_is_named(tiny_folder):
    with pytest.raises(ValueError, match=r"weights.pth holds no encoder: it can decode codes, not make them"):
        CodecEncoder.load(tiny_folder / "dac", CPU)


@pytest.mark.needs("transformers")
@pytest.mark.parametrize("samples", [torch.zeros(0), torch.full((600,), float("nan"))], ids=["empty", "nan"])
def test_a_recording_without_sound_is_refused(tmp_path, samples):
    dac(tmp_path)
    with pytest.raises(ValueError, match="a recording must have samples that are finite"):
        CodecEncoder.load(tmp_path, CPU).encode(samples, 44100)
