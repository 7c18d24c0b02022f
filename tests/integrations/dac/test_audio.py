"""transformers' DacModel and dac.DAC accelerated: the same audio, and the same errors."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.integrations.wheels import unpacked
from zonos2_triton.bench.proof.invariants import same_bits
from zonos2_triton.model import Vocoder, VocoderConfig, accelerate
from zonos2_triton.model.integrations.accelerate import MARK, difference
from zonos2_triton.model.integrations.dac.codec import BOUNDS
from zonos2_triton.model.weights.codec_checkpoint import official_name

pytestmark = pytest.mark.interpreter
OLDER = (  # transformers 4.57, and the dependencies that are not installed or too new for it
    ("transformers", "4.57.6"), ("huggingface_hub", "0.36.0"), ("tokenizers", "0.22.1"), ("requests", "2.32.5"),
    ("urllib3", "2.5.0"), ("certifi", "2025.10.5"), ("charset_normalizer", "3.4.3"),
)  # fmt: skip
CLIPS = [*((rates, 1, 13) for rates in ((8, 8, 4, 2), (5, 3), (1, 4), (2,))), *(((3, 2), 3, n) for n in (1, 2, 40))]
HALVES = (torch.bfloat16, torch.float16)
REFERENCES = [("reference", dtype) for dtype in BOUNDS]
KERNELS = [pytest.param("triton", dtype, marks=pytest.mark.slow) for dtype in (torch.float32, *HALVES)]


def check_same(got, want, dtype=torch.float32, op="decoder"):
    assert difference(got, want) <= BOUNDS[dtype][op]
    assert got.stride() == want.stride()


@pytest.mark.parametrize(("backend", "dtype"), [*REFERENCES, *KERNELS], ids=str)
def test_every_stage(build, codes_of, latents_of, decode, codec_class, backend, dtype):
    model, codes = build(codec_class, dtype=dtype), codes_of(2, 5)
    z, whole = latents_of(2, 5, dtype), decode(model, codes)
    summed, decoded = model.quantizer.from_codes(codes), model.decoder(z)
    with accelerate(model, backend=backend) as report:
        assert report.backend == backend
        assert [patch.op for patch in report.patched] == ["from_codes", "decoder"]
        got = model.quantizer.from_codes(codes)
        check_same(got[0], summed[0], dtype, "from_codes")
        assert torch.equal(got[1], summed[1])
        assert got[2] is codes
        check_same(model.decoder(z), decoded, dtype)
        check_same(decode(model, codes), whole, dtype)
    assert same_bits(decode(model, codes), whole)


def test_kernels_take_no_float64(build, codec_class):
    with pytest.raises(ValueError, match="use 'reference' for float64"):
        accelerate(build(codec_class, dtype=torch.float64), backend="triton")


@pytest.mark.parametrize("codebooks", [1, 2])
@pytest.mark.parametrize("ids", [torch.int32, torch.int64], ids=str)
def test_some_codebooks(build, codes_of, codec_class, ids, codebooks):
    model, codes = build(codec_class), codes_of(2, 4, codebooks).to(ids)
    want = model.quantizer.from_codes(codes)
    accelerate(model, only="from_codes", backend="reference")
    got = model.quantizer.from_codes(codes)
    check_same(got[0], want[0], op="from_codes")
    assert torch.equal(got[1], want[1])
    assert got[2].dtype == ids


@pytest.mark.parametrize(("rates", "clips", "frames"), CLIPS, ids=str)
def test_rates_and_lengths(build, codes_of, decode, codec_class, rates, clips, frames):
    """The real rates; odd rates, which shorten a clip; a rate of 1; a single block."""
    model, codes = build(codec_class, rates=rates), codes_of(clips, frames)
    want = decode(model, codes)
    accelerate(model, backend="reference")
    check_same(decode(model, codes), want)


def test_arguments_keep_their_names(build, codes_of, codec_class):
    of_codes, of_latents = {"DacModel": ("audio_codes", "hidden_state"), "DAC": ("codes", "x")}[codec_class]
    model, codes = build(codec_class), codes_of(1, 3)
    accelerate(model, backend="reference")
    z = model.quantizer.from_codes(**{of_codes: codes})[0]
    assert same_bits(z, model.quantizer.from_codes(codes)[0])
    assert same_bits(model.decoder.forward(**{of_latents: z}), model.decoder(z))
    with pytest.raises(TypeError, match=f"missing a required argument: '{of_codes}'"):
        model.quantizer.from_codes(sound=codes)


@pytest.mark.parametrize("how", ["hooks", "parametrizations", "folded"])
def test_weight_norm_in_any_spelling(build, codes_of, decode, codec_class, how):
    model, codes = build(codec_class, folded=True), codes_of(2, 4)
    plain = decode(model, codes)
    norm = {"hooks": nn.utils.weight_norm, "parametrizations": nn.utils.parametrizations.weight_norm}.get(how)
    if codec_class == "DacModel" and how == "parametrizations":
        model.apply_weight_norm()
    elif norm is not None:
        for module in [*model.modules()]:
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                norm(module)
    model.eval().requires_grad_(False)  # new parametrizations are in training mode
    check_same(decode(model, codes), plain)
    report = accelerate(model, backend="reference")
    check_same(decode(model, codes), plain)
    assert report.max_error < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(build, codes_of, decode, codec_class, dtype):
    """The result has the dtype of the original; the weights decide what is computed."""
    model, codes = build(codec_class, dtype=dtype), codes_of(1, 4)
    with torch.autocast("cpu", torch.bfloat16):
        want = model.quantizer.from_codes(codes)
        sound = decode(model, codes)
    accelerate(model, backend="reference")
    exact = model.quantizer.from_codes(codes)[0]
    by_weights = model.decoder(exact)
    with torch.autocast("cpu", torch.bfloat16):
        got = model.quantizer.from_codes(codes)
        check_same(got[0], want[0], torch.bfloat16, "from_codes")
        assert torch.equal(got[1], want[1])
        check_same(decode(model, codes), sound, torch.bfloat16)
        assert same_bits(got[0], exact.bfloat16())
        assert same_bits(model.decoder(exact), by_weights.bfloat16())
        accelerate(build(codec_class, dtype=dtype), backend="reference")  # verify ignores autocast


@pytest.mark.parametrize(("backend", "dtype"), [("triton", torch.float32), *KERNELS[1:]], ids=str)
def test_it_is_the_audio_of_our_vocoder(build, codes_of, decode, codec_class, backend, dtype):
    """Bit for bit, for each form of the weights."""
    model, codes = build(codec_class, dtype=dtype), codes_of(2, 3)
    config = VocoderConfig(8, 16, (3, 2), 3, 16, 4)
    state = {official_name(name, config): tensor for name, tensor in model.state_dict().items()}
    want = Vocoder.from_state(config, state, dtype=dtype, backend=backend).decode(codes)
    accelerate(model, backend=backend)
    assert same_bits(decode(model, codes), want.to(dtype))


def outcome(function, *args):
    try:
        return function(*args).shape
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize(("clips", "frames"), [(1, 0), (0, 3), (0, 0)])
def test_nothing_to_decode(build, codes_of, latents_of, codec_class, clips, frames):
    model, codes, z = build(codec_class), codes_of(clips, frames), latents_of(clips, frames)

    def outcomes():
        return outcome(model.decoder, z), outcome(lambda c: model.quantizer.from_codes(c)[0], codes)

    before = outcomes()
    accelerate(model, backend="reference")
    assert outcomes() == before


WRONG = {
    **{"above": torch.full((1, 3, 2), 16), "negative": torch.full((1, 3, 2), -1), "no-integers": torch.zeros(1, 3, 2)},
    **{"too-many-codebooks": torch.zeros(1, 4, 2).long(), "no-codebooks": torch.zeros(1, 0, 2).long()},
    "no-batch": torch.zeros(3, 2).long(),
}


@pytest.mark.parametrize("codes", WRONG.values(), ids=WRONG)
def test_codes_that_there_are_not(build, codec_class, codes):
    model = build(codec_class)
    before = outcome(model.quantizer.from_codes, codes)
    accelerate(model, backend="reference")
    assert before[0] is outcome(model.quantizer.from_codes, codes)[0]
    assert issubclass(before[0], Exception)


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        (torch.zeros(1, 9, 2), ValueError, r"z must be a tensor \[B, 8, T\].*, got \[1, 9, 2\]"),
        (torch.zeros(8, 2), ValueError, r"z must be a tensor \[B, 8, T\].*, got \[8, 2\]"),
        (torch.zeros(1, 8, 2).half(), TypeError, "z must be torch.float32 like the weights, got torch.float16"),
    ],
    ids=["width", "no-batch", "dtype"],
)
def test_latents_that_do_not_fit(build, codec_class, z, error, message):
    model = build(codec_class)
    accelerate(model, backend="reference")
    with pytest.raises(error, match=message):
        model.decoder(z)


def test_without_padding_the_original_decodes(build, codes_of, decode):
    """As in `decompress` of the chunks of a long file: a chunk gives only the samples that depend on it alone."""
    model, codes = build("DAC"), codes_of(1, 60)
    padded = decode(model, codes)
    accelerate(model, backend="reference", only="decoder")
    model.padding = False
    bare = decode(model, codes)
    model.padding = True
    check_same(decode(model, codes), padded)
    vars(model)[MARK].restore()
    model.padding = False
    assert same_bits(bare, decode(model, codes))
    assert bare.shape != padded.shape


@pytest.mark.slow
@pytest.mark.needs("transformers")
def test_the_older_line_of_transformers():
    """Runs tests of this folder in another process, with the wheels of the older transformers."""
    path = os.pathsep.join(str(unpacked(*wheel)) for wheel in OLDER)
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1", "HF_HUB_OFFLINE": "1"}
    code = "import sys, pytest, transformers; print(transformers.__version__); sys.exit(pytest.main(sys.argv[1:]))"
    chosen = ["-qpno:cacheprovider", "-kDacModel and (every_stage or restore)", os.path.dirname(__file__)]
    command = [sys.executable, "-c", code, *chosen]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout
    assert done.stdout.split()[0] == "4.57.6"
