"""transformers' DacModel and dac.DAC accelerated: the same audio, the same errors, nothing else changed, and back."""

import copy
import json
import math
import os
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from tests.integrations.standins import audiotools, importable
from tests.integrations.wheels import unpacked
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.bench.proof.poison import poisoned
from zonos2_triton.model import Report, Vocoder, accelerate
from zonos2_triton.model import vocoder as vocoder_module
from zonos2_triton.model.integrations import accelerate as accelerate_module
from zonos2_triton.model.integrations.accelerate import MARK, difference
from zonos2_triton.model.integrations.dac.codec import BOUNDS
from zonos2_triton.model.integrations.patching import Replacement, Swaps
from zonos2_triton.model.weights.codec_checkpoint import official_name

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning"),  # dac uses it
]

DAC = "descript-audio-codec", "1.0.0"
LATENTS, CODEBOOKS, CODES, HOP = 8, 3, 16, 6
OLDER = (  # transformers of the 4.57 line, and what it needs that is not installed or is too new for it
    ("transformers", "4.57.6"), ("huggingface_hub", "0.36.0"), ("tokenizers", "0.22.1"), ("requests", "2.32.5"),
    ("urllib3", "2.5.0"), ("certifi", "2025.10.5"), ("charset_normalizer", "3.4.3"),
)  # fmt: skip
BLOCK = "decoder.model.1.block"
HALVES = (torch.bfloat16, torch.float16)

hosts = pytest.mark.parametrize("host", ["DacModel", "DAC"])
backends = pytest.mark.parametrize("backend", ["reference", "triton"])


@pytest.fixture(autouse=True)
def launches():
    """Quicker than as it comes. What nobody wrote is NaN."""
    with checked(bounds=False, undefined=False, races=False), poisoned():
        yield


@pytest.fixture(scope="module")
def dac():
    """The package, whose modules and metadata are gone after the tests here."""
    with importable(unpacked(*DAC), *audiotools()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about what the package uses
        import dac

        yield dac


@pytest.fixture
def build(request):
    """A tiny codec of a host; folded: without weight norm."""

    def made(host, rates=(3, 2), dtype=torch.float32, folded=False):
        sizes = {"n_codebooks": CODEBOOKS, "codebook_size": CODES, "codebook_dim": 4}
        width, down = max(LATENTS >> len(rates), 1), [*rates][::-1]
        if host == "DacModel":
            transformers = pytest.importorskip("transformers")
            sizes |= {"encoder_hidden_size": width, "downsampling_ratios": down, "decoder_hidden_size": 16}
            model = transformers.DacModel(transformers.DacConfig(**sizes))
            randomize(model)
        else:
            sizes |= {"encoder_dim": width, "encoder_rates": down, "decoder_dim": 16, "decoder_rates": [*rates]}
            model = request.getfixturevalue("dac").DAC(**sizes)
            normed = [module for module in model.modules() if hasattr(module, "weight_g")]
            for module in normed:
                nn.utils.remove_weight_norm(module)
            randomize(model)
            for module in () if folded else normed:
                nn.utils.weight_norm(module)
        return model.to(dtype).eval().requires_grad_(False)

    return made


def randomize(model):
    """Weights that neither fall silent nor magnify rounding errors."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("alpha"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.ndim == 3:
                tensor.normal_(0, 0.7 * math.prod(tensor.shape[1:]) ** -0.5, generator=generator)
            else:
                tensor.normal_(0, 1 if "codebook" in name else 0.1, generator=generator)


def codes_of(clips, frames, codebooks=CODEBOOKS):
    return torch.randint(CODES, (clips, codebooks, frames), generator=torch.Generator().manual_seed(1))


def latents_of(clips, frames, dtype=torch.float32):
    return torch.randn(clips, LATENTS, frames, generator=torch.Generator().manual_seed(2)).to(dtype)


@torch.no_grad()
def decode(model, codes):
    """As the users of each host do."""
    if hasattr(model, "preprocess"):
        return model.decode(model.quantizer.from_codes(codes)[0])[:, 0]
    return model.decode(audio_codes=codes).audio_values


def parts(model):
    """Every attribute of every part, by identity; but for the weight that weight norm makes anew at each call."""
    return {
        (path, name): id(value)
        for path, part in model.named_modules()
        for name, value in vars(part).items()
        if name != "weight"
    } | {(path, name): id(tensor) for path, part in model.named_modules() for name, tensor in part._parameters.items()}


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def check_same(got, want, dtype, op):
    assert difference(got, want) <= BOUNDS[dtype][op]
    assert got.stride() == want.stride()


class TestSameAudio:
    @pytest.mark.parametrize("dtype", BOUNDS, ids=str)
    @backends
    @hosts
    def test_every_stage(self, build, host, backend, dtype):
        model, codes = build(host, dtype=dtype), codes_of(2, 5)
        if (backend, dtype) == ("triton", torch.float64):
            with pytest.raises(ValueError, match="use 'reference' for float64"):
                accelerate(model, backend=backend)
            return
        z, whole = latents_of(2, 5, dtype), decode(model, codes)
        summed, decoded = model.quantizer.from_codes(codes), model.decoder(z)
        with accelerate(model, backend=backend) as report:
            assert report.backend == backend
            assert [swap.op for swap in report.swapped] == ["from_codes", "decoder"]
            got = model.quantizer.from_codes(codes)
            check_same(got[0], summed[0], dtype, "from_codes")
            assert torch.equal(got[1], summed[1])
            assert got[2] is codes
            check_same(model.decoder(z), decoded, dtype, "decoder")
            check_same(decode(model, codes), whole, dtype, "decoder")
        assert same_bits(decode(model, codes), whole)

    @pytest.mark.parametrize("codebooks", range(1, CODEBOOKS + 1))
    @backends
    @hosts
    def test_any_number_of_codebooks(self, build, host, backend, codebooks):
        model, codes = build(host), codes_of(2, 4, codebooks)
        want = model.quantizer.from_codes(codes)
        accelerate(model, only="from_codes", backend=backend)
        got = model.quantizer.from_codes(codes)
        check_same(got[0], want[0], torch.float32, "from_codes")
        assert torch.equal(got[1], want[1])

    @pytest.mark.parametrize("rates", [(8, 8, 4, 2), (5, 3), (1, 4), (2,)], ids=str)
    @hosts
    def test_rates(self, build, host, rates):
        """The real ones; odd ones, which make a clip shorter; 1; a single block."""
        model, codes = build(host, rates=rates), codes_of(1, 13)
        want = decode(model, codes)
        accelerate(model, backend="reference")
        check_same(decode(model, codes), want, torch.float32, "decoder")

    @pytest.mark.parametrize("frames", [1, 2, 40])
    @hosts
    def test_lengths(self, build, host, frames):
        model, codes = build(host), codes_of(3, frames)
        want = decode(model, codes)
        accelerate(model, backend="reference")
        check_same(decode(model, codes), want, torch.float32, "decoder")

    @hosts
    def test_encoded_and_decoded(self, build, host):
        """The encoder is the host's; what it makes goes through ours."""
        model = build(host)
        audio = torch.randn(2, 1, 40, generator=torch.Generator().manual_seed(3))
        sound, codes = ("audio_values", "audio_codes") if host == "DacModel" else ("audio", "codes")
        want = model(audio)
        accelerate(model, backend="reference")
        got = model(audio)
        assert torch.equal(got[codes], want[codes])
        check_same(got[sound], want[sound], torch.float32, "decoder")

    def test_from_the_quantized_representation(self, build):
        model, z = build("DacModel"), latents_of(2, 4)
        want = model.decode(quantized_representation=z, return_dict=False)[0]
        accelerate(model, backend="reference")
        check_same(model.decode(quantized_representation=z, return_dict=False)[0], want, torch.float32, "decoder")

    @pytest.mark.parametrize(
        ("host", "of_codes", "of_latents"), [("DacModel", "audio_codes", "hidden_state"), ("DAC", "codes", "x")]
    )
    def test_arguments_keep_their_names(self, build, host, of_codes, of_latents):
        model, codes = build(host), codes_of(1, 3)
        accelerate(model, backend="reference")
        z = model.quantizer.from_codes(**{of_codes: codes})[0]
        assert same_bits(z, model.quantizer.from_codes(codes)[0])
        assert same_bits(model.decoder.forward(**{of_latents: z}), model.decoder(z))
        with pytest.raises(TypeError, match=f"missing a required argument: '{of_codes}'"):
            model.quantizer.from_codes(sound=codes)

    @pytest.mark.parametrize("how", ["hooks", "parametrizations", "folded"])
    @hosts
    def test_weight_norm_in_any_spelling(self, build, host, how):
        model, codes = build(host, folded=True), codes_of(2, 4)
        plain = decode(model, codes)
        norm = {"hooks": nn.utils.weight_norm, "parametrizations": nn.utils.parametrizations.weight_norm}.get(how)
        if host == "DacModel" and how == "parametrizations":
            model.apply_weight_norm()
        elif norm is not None:
            for module in [*model.modules()]:
                if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                    norm(module)
        model.eval().requires_grad_(False)  # what makes the weights comes in training mode
        check_same(decode(model, codes), plain, torch.float32, "decoder")
        report = accelerate(model, backend="reference")
        check_same(decode(model, codes), plain, torch.float32, "decoder")
        assert report.max_error < 1e-5

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @hosts
    def test_autocast(self, build, host, dtype):
        """The result is of the dtype that it would have had; what is computed follows the weights."""
        model, codes = build(host, dtype=dtype), codes_of(1, 4)
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
            check_same(decode(model, codes), sound, torch.bfloat16, "decoder")
            assert same_bits(got[0], exact.bfloat16())
            assert same_bits(model.decoder(exact), by_weights.bfloat16())
            accelerate(build(host, dtype=dtype), backend="reference")  # verified as if it were off

    def test_a_clip_is_the_same_alone_and_in_any_company(self, build, monkeypatch):
        model, codes = build("DacModel", rates=(3,)), codes_of(3, 5)
        accelerate(model, backend="triton")
        together = decode(model, codes)
        for clip, row in zip(codes, together, strict=True):
            assert same_bits(decode(model, clip[None])[0], row)
        monkeypatch.setattr(vocoder_module, "ROWS_TOGETHER", 2)
        monkeypatch.setattr(vocoder_module, "ACTIVATIONS", 1)  # a frame a step
        assert same_bits(decode(model, codes), together)

    @pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
    @hosts
    def test_it_is_the_audio_of_our_vocoder(self, build, host, dtype):
        """Bit for bit, by the kernels, whatever spells the weights."""
        model, codes = build(host, dtype=dtype), codes_of(2, 3)
        config = vocoder_module.VocoderConfig(LATENTS, 16, (3, 2), CODEBOOKS, CODES, 4)
        state = {official_name(name, config): tensor for name, tensor in model.state_dict().items()}
        want = Vocoder.from_state(config, state, dtype=dtype, backend="triton").decode(codes)
        accelerate(model, backend="triton")
        assert same_bits(decode(model, codes), want.to(dtype))


def outcome(function, *args):
    try:
        return function(*args).shape
    except Exception as error:
        return type(error), str(error)


class TestEdges:
    """Where the host has errors of its own, they stay."""

    @pytest.mark.parametrize(("clips", "frames"), [(1, 0), (0, 3), (0, 0)])
    @hosts
    def test_nothing_to_decode(self, build, host, clips, frames):
        model = build(host)
        codes, z = codes_of(clips, frames), latents_of(clips, frames)
        before = outcome(model.decoder, z), outcome(lambda c: model.quantizer.from_codes(c)[0], codes)
        accelerate(model, backend="reference")
        assert (outcome(model.decoder, z), outcome(lambda c: model.quantizer.from_codes(c)[0], codes)) == before

    @pytest.mark.parametrize(
        "codes",
        [
            pytest.param(torch.full((1, CODEBOOKS, 2), CODES), id="above"),
            pytest.param(torch.full((1, CODEBOOKS, 2), -1), id="negative"),
            pytest.param(torch.zeros(1, CODEBOOKS + 1, 2, dtype=torch.int64), id="too-many-codebooks"),
            pytest.param(torch.zeros(1, 0, 2, dtype=torch.int64), id="no-codebooks"),
            pytest.param(torch.zeros(CODEBOOKS, 2, dtype=torch.int64), id="no-batch"),
            pytest.param(torch.zeros(1, CODEBOOKS, 2), id="no-integers"),
        ],
    )
    @hosts
    def test_codes_that_there_are_not(self, build, host, codes):
        model = build(host)
        before = outcome(lambda c: model.quantizer.from_codes(c)[0], codes)
        accelerate(model, backend="reference")
        after = outcome(lambda c: model.quantizer.from_codes(c)[0], codes)
        assert before[0] is after[0]
        assert issubclass(before[0], Exception)

    @pytest.mark.parametrize("ids", [torch.int32, torch.int64], ids=str)
    @hosts
    def test_types_of_ids(self, build, host, ids):
        model, codes = build(host), codes_of(1, 3).to(ids)
        want = model.quantizer.from_codes(codes)
        accelerate(model, backend="reference")
        got = model.quantizer.from_codes(codes)
        check_same(got[0], want[0], torch.float32, "from_codes")
        assert got[2].dtype == ids

    @pytest.mark.parametrize(
        ("z", "error", "message"),
        [
            (torch.zeros(1, LATENTS + 1, 2), ValueError, r"z must be a tensor \[B, 8, T\].*, got \[1, 9, 2\]"),
            (torch.zeros(LATENTS, 2), ValueError, r"z must be a tensor \[B, 8, T\].*, got \[8, 2\]"),
            (
                torch.zeros(1, LATENTS, 2).half(),
                TypeError,
                "z must be torch.float32 like the weights, got torch.float1",
            ),
        ],
        ids=["width", "no-batch", "dtype"],
    )
    @hosts
    def test_latents_that_do_not_fit(self, build, host, z, error, message):
        model = build(host)
        accelerate(model, backend="reference")
        with pytest.raises(error, match=message):
            model.decoder(z)

    @hosts
    def test_gradients(self, build, host):
        model, z = build(host), latents_of(1, 3).requires_grad_()
        accelerate(model, backend="reference")
        with pytest.raises(ValueError, match="decoder: z requires gradients, which kernels do not make"):
            model.decoder(z)
        with torch.no_grad():
            assert model.decoder(z).isfinite().all()

    def test_without_padding_the_original_decodes(self, build):
        """As in `decompress` of the pieces of a long file: each piece is then as long as what depends on it alone."""
        model, codes = build("DAC"), codes_of(1, 60)
        padded = decode(model, codes)
        accelerate(model, backend="reference", only="decoder")
        model.padding = False
        bare = decode(model, codes)
        model.padding = True
        assert difference(decode(model, codes), padded) <= BOUNDS[torch.float32]["decoder"]
        vars(model)[MARK].restore()
        model.padding = False
        assert same_bits(bare, decode(model, codes))
        assert bare.shape != padded.shape


class TestUndo:
    @backends
    @hosts
    def test_restore_is_identity(self, build, host, backend):
        model = build(host)
        before = parts(model)
        report = accelerate(model, backend=backend)
        changed = parts(model).items() ^ before.items()
        assert {place for place, _ in changed} == {("quantizer", "from_codes"), ("decoder", "forward"), ("", MARK)}
        assert isinstance(model.decoder.forward, Replacement)
        report.restore()
        assert parts(model) == before

    @hosts
    def test_twice_is_once_and_a_block_undoes(self, build, host):
        model = build(host)
        before = parts(model)
        with accelerate(model, backend="reference") as report:
            after = parts(model)
            assert accelerate(model, backend="reference") is report
            assert parts(model) == after
        assert parts(model) == before

    @pytest.mark.parametrize(("op", "place"), [("from_codes", "quantizer"), ("decoder", "decoder")])
    @hosts
    def test_only(self, build, host, op, place):
        model = build(host)
        before = parts(model)
        report = accelerate(model, only=[op], backend="reference")
        assert [swap.op for swap in report.swapped] == [op]
        assert {path for (path, _), _ in parts(model).items() ^ before.items()} == {place, ""}

    @hosts
    def test_a_failure_half_way_is_undone(self, build, host, monkeypatch):
        model = build(host)
        before, put = parts(model), Swaps.attribute

        def fails(self, owner, name, value):
            if name == "forward":
                raise MemoryError
            put(self, owner, name, value)

        monkeypatch.setattr(Swaps, "attribute", fails)
        with pytest.raises(MemoryError):
            accelerate(model, backend="reference")
        assert parts(model) == before

    @hosts
    def test_no_copies_but_the_weights_are_saved_as_ever(self, build, host):
        model = build(host, folded=True)  # torch copies no module with weight norm in hooks
        names = [*model.state_dict()]
        accelerate(model, backend="reference")
        for make in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=r"cannot be copied or saved whole: call report\.restore\(\)"):
                make(model)
        assert [*model.state_dict()] == names

    @hosts
    def test_the_rng_is_left_alone(self, build, host):
        model = build(host)
        torch.manual_seed(5)
        state = torch.get_rng_state()
        accelerate(model, backend="reference")
        decode(model, codes_of(1, 2))
        assert torch.equal(torch.get_rng_state(), state)

    @hosts
    def test_the_report(self, build, host):
        report = accelerate(build(host), backend="reference")
        assert isinstance(report, Report)
        read = json.loads(report.json())
        assert [row["where"] for row in read["swapped"]] == ["quantizer.from_codes", "decoder.forward"]
        assert [row["places"] for row in read["swapped"]] == [1, 1]
        assert read["left"] == []
        assert read["host_version"] == ("1.0.0" if host == "DAC" else sys.modules["transformers"].__version__)
        assert str(report).splitlines()[0].startswith("dac.DAC 1.0.0:" if host == "DAC" else "transformers.DacModel ")
        assert 0 <= report.max_error < 1e-5


EXCHANGED = (  # weights of one layer and another; in bf16, alphas of like size make no more difference than rounding
    ("decoder", f"{BLOCK}.2.block.1.weight", f"{BLOCK}.3.block.1.weight"),
    ("decoder", f"{BLOCK}.4.block.3.weight", f"{BLOCK}.3.block.3.weight"),
    ("decoder", f"{BLOCK}.1.bias", f"{BLOCK}.2.block.1.bias"),
    ("decoder", f"{BLOCK}.2.block.0.alpha", "decoder.model.2.block.0.alpha"),
    ("from_codes", "quantizer.quantizers.0.out_proj.weight", "quantizer.quantizers.1.out_proj.weight"),
    ("from_codes", "quantizer.quantizers.0.out_proj.bias", "quantizer.quantizers.1.out_proj.bias"),
    ("from_codes", "quantizer.quantizers.1.codebook.weight", "quantizer.quantizers.2.codebook.weight"),
)


class TestVerify:
    @pytest.mark.parametrize(("op", "method"), [("from_codes", "latents"), ("decoder", "decode_latents")])
    @backends
    @hosts
    def test_one_percent_is_too_much(self, build, host, backend, op, method, monkeypatch):
        model, right = build(host), getattr(Vocoder, method)
        before = parts(model)
        monkeypatch.setattr(Vocoder, method, lambda self, x: right(self, x) * 1.01)
        with pytest.raises(ValueError, match=rf"{op} cannot be swapped: differs from the original by 1\.0e-02, more"):
            accelerate(model, backend=backend)
        assert parts(model) == before
        if backend == "reference":
            report = accelerate(model, backend=backend, strict=False)
            assert [left.op for left in report.left] == [op]
            assert len(report.swapped) == 1
            report.restore()
            assert len(accelerate(model, backend=backend, verify=False).swapped) == 2

    @pytest.mark.parametrize(
        ("dtype", "op", "one", "other"),
        [
            (dtype, *wrong)
            for dtype in BOUNDS
            for wrong in EXCHANGED
            if dtype != torch.bfloat16 or "alpha" not in wrong[1]
        ],
    )
    def test_a_wrong_weight_is_too_much(self, build, op, one, other, dtype, monkeypatch):
        """Each bound is below what any of these does."""
        model, right = build("DacModel", dtype=dtype), Vocoder.from_state.__func__

        def wrong(cls, config, state, *args):
            return right(cls, config, {**state, one: state[other]}, *args)

        monkeypatch.setattr(Vocoder, "from_state", classmethod(wrong))
        with pytest.raises(ValueError, match=f"{op} cannot be swapped: differs"):
            accelerate(model, backend="reference")


def conv_of(model):
    """The first one of the decoder, and how its host calls it."""
    return (model.decoder.conv1, "conv1") if hasattr(model.decoder, "conv1") else (model.decoder.model[0], r"model\.0")


def transposed_of(model):
    return next(module for module in model.decoder.modules() if isinstance(module, nn.ConvTranspose1d))


def snake_of(model):
    return next(module for module in model.decoder.modules() if hasattr(module, "alpha"))


class Exponential(nn.Module):
    """A snake whose alpha is a logarithm, as other vocoders have it."""

    def __init__(self, alpha):
        super().__init__()
        self.alpha = alpha

    def forward(self, x):
        a = self.alpha.exp()
        return x + torch.sin(a * x).square() / a


class Quantizer(nn.Module):
    """Of another codec: it is asked for nothing."""

    def __init__(self):
        super().__init__()
        self.quantizers = nn.ModuleList([nn.Embedding(16, 4)])

    from_codes = nn.Module.forward


class Loud(nn.Conv1d):
    def forward(self, x):
        return 2 * super().forward(x)


def put(model, old, new):
    """Another module in the place of one."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new.eval().requires_grad_(False))


def loud(model):
    conv, _ = conv_of(model)
    conv.__class__ = Loud


def logarithmic(model):
    snake = snake_of(model)
    put(model, snake, Exponential(snake.alpha))


def without_tanh(model):
    for module in [*model.decoder.modules()]:
        if isinstance(module, nn.Tanh):
            put(model, module, nn.Hardtanh())


def longer(model):
    """With a layer behind the last one."""
    model.decoder.add_module("smooth", nn.AvgPool1d(3).eval())


def shorter(model):
    block = model.decoder.block[0] if hasattr(model.decoder, "block") else model.decoder.model[1].block
    if hasattr(block, "res_unit2"):
        del block.res_unit2
    else:
        del block[3]


def thresholded(model):
    nn.utils.parametrize.register_parametrization(model.quantizer.quantizers[0].out_proj, "weight", nn.Threshold(0, 0))
    model.eval().requires_grad_(False)


def not_a_number(model):
    with torch.no_grad():
        model.quantizer.quantizers[0].codebook.weight[1, 2] = math.nan


def patched(model):
    model.decoder.forward = print


def emptied(model):
    model.quantizer.quantizers = nn.ModuleList().eval()


def widened(model):
    conv, _ = conv_of(model)
    conv.bias = nn.Parameter(torch.zeros(17), requires_grad=False)


WRONG = {
    "training": (lambda m: m.train(), r"quantizer: \S+ is in training mode: call \.eval\(\)"),
    "one part in training": (lambda m: snake_of(m).train(), r"decoder: \S+ is in training mode"),
    "gradients": (lambda m: conv_of(m)[0].bias.requires_grad_(), r"decoder\.\S*bias requires gradients"),
    "mixed devices": (lambda m: conv_of(m)[0].to("meta"), r"decoder\.\S+ is on the meta device"),
    "mixed dtypes": (lambda m: m.quantizer.half(), r"one dtype, got torch\.float16 of quantizer\.\S+ and"),
    "a hook": (lambda m: snake_of(m).register_forward_hook(print), r"decoder: \S+ has a forward hook"),
    "NaN": (not_a_number, r"quantizer\.quantizers\.0\.codebook\.weight holds NaN or Inf"),
    "a shape": (widened, r"decoder\.model\.0\.bias is \[17\], expected \[16\]"),
    "padding": (lambda m: setattr(conv_of(m)[0], "padding", (0,)), r"decoder\.\S+\.padding must be \(3,\), got \(0,\)"),
    "dilation": (lambda m: setattr(conv_of(m)[0], "dilation", (2,)), r"\.dilation must be \(1,\), got \(2,\)"),
    "groups": (lambda m: setattr(conv_of(m)[0], "groups", 2), r"\.groups must be 1, got 2"),
    "padding mode": (lambda m: setattr(conv_of(m)[0], "padding_mode", "reflect"), "must be zeros, got reflect"),
    "output padding": (lambda m: setattr(transposed_of(m), "output_padding", (1,)), r"output_padding must be \(0,\)"),
    "stride": (lambda m: setattr(transposed_of(m), "stride", (4,)), r"\.kernel_size must be \(8,\), got \(6,\)"),
    "no bias": (lambda m: setattr(conv_of(m)[0], "bias", None), "must have a bias, got none"),
    "a class of its own": (loud, "must be a Conv1d of torch, got Loud"),
    "a replaced forward": (patched, r"decoder\.forward was replaced on the module itself: put it back first"),
    "another activation": (logarithmic, r"must be x \+ sin\(alpha x\)\^2 / \(alpha \+ 1e-9\); Exponential differs"),
    "no snake": (lambda m: put(m, snake_of(m), nn.PReLU()), r"must be a snake of alpha \[1, 16, 1\], got parameters"),
    "another end": (without_tanh, "must be a Tanh of torch, got Hardtanh"),
    "one layer more": (longer, r"decoder\.smooth is a layer that the codec does not have: AvgPool1d"),
    "one layer less": (shorter, r"has no layer decoder\.model\.1\.block\.3\.|must be \(9,\), got \(27,\)"),
    "a parametrization": (thresholded, r"out_proj\.weight may be parametrized by weight norm alone, got Threshold"),
    "a bounded norm": (lambda m: setattr(m.quantizer.quantizers[1].codebook, "max_norm", 1.0), "max_norm must be None"),
    "no codebooks": (emptied, "quantizer holds no Embedding"),
}  # fmt: skip


class TestRefuses:
    @pytest.mark.parametrize("strict", [True, False], ids=["strict", "lenient"])
    @pytest.mark.parametrize("fault", WRONG)
    @hosts
    def test_one_that_is_not_as_expected(self, build, host, fault, strict):
        """With strict=False too: what it would compute is not known."""
        model = build(host, folded=fault == "a parametrization")
        spoil, message = WRONG[fault]
        spoil(model)
        before = parts(model)
        with pytest.raises(ValueError, match=message):
            accelerate(model, backend="reference", strict=strict)
        assert parts(model) == before

    @hosts
    def test_a_part_that_is_accelerated_already(self, build, host):
        model, other = build(host), build(host)
        accelerate(model, backend="reference")
        other.decoder = model.decoder
        before = parts(other)
        with pytest.raises(ValueError, match=r"decoder\.forward was replaced on the module itself: put it back first"):
            accelerate(other, backend="reference")
        assert parts(other) == before

    @pytest.mark.parametrize(
        ("host", "package", "version", "known"),
        [
            ("DacModel", "transformers", "6.0.0", "4.57 to below 6"),
            ("DacModel", "transformers", "4.56.2", "4.57 to below 6"),
            ("DAC", "descript-audio-codec", "1.1.0", "1.0.0 to below 1.1"),
        ],
    )
    def test_an_unknown_version(self, build, host, package, version, known, monkeypatch):
        model, actual = build(host), accelerate_module.version
        before = parts(model)
        monkeypatch.setattr(accelerate_module, "version", lambda name: version if name == package else actual(name))
        with pytest.raises(ValueError, match=f"{package} {version} is none of the versions {known}"):
            accelerate(model, backend="reference")
        assert parts(model) == before
        assert accelerate(model, backend="reference", strict=False).host_version == version

    def test_another_codec(self):
        """Of the same outline: it is taken for dac.DAC, and the layer that differs is named."""
        model = nn.Module()
        model.quantizer, model.decoder = Quantizer(), nn.Module()
        model.decoder.model = nn.Sequential(nn.Conv1d(8, 16, 7, padding=3), nn.ConvTranspose1d(16, 8, 6, 3))
        with pytest.raises(ValueError, match=r"dac\.DAC: decoder\.model\.1 is a layer that the codec does not have"):
            accelerate(model.eval().requires_grad_(False))


class TestAfterwards:
    """Packed weights are a copy: what happens to the originals is an error when they are next used."""

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda m: conv_of(m)[0].bias.add_(1), id="written to"),
            pytest.param(lambda m: m.load_state_dict(m.state_dict()), id="loaded"),
            pytest.param(lambda m: m.double(), id="converted"),
            pytest.param(lambda m: conv_of(m)[0].register_parameter("bias", None), id="removed"),
            pytest.param(lambda m: m.requires_grad_(), id="to be trained"),
        ],
    )
    @hosts
    def test_changed_weights(self, build, host, change):
        model = build(host)
        report = accelerate(model, backend="reference")
        change(model)
        with pytest.raises(
            RuntimeError, match=r"decoder\.\S+ was changed after accelerate\(\), .* call report\.restore"
        ):
            model.decoder(latents_of(1, 3))
        report.restore()

    @hosts
    def test_a_changed_codebook(self, build, host):
        model, codes, z = build(host), codes_of(1, 3), latents_of(1, 3)
        report = accelerate(model, backend="reference")
        with torch.no_grad():
            model.quantizer.quantizers[0].codebook.weight.mul_(2)
        with pytest.raises(RuntimeError, match=r"quantizer\.quantizers\.0\.codebook\.weight was changed"):
            model.quantizer.from_codes(codes)
        assert model.decoder(z).isfinite().all()
        report.restore()
        want = model.quantizer.from_codes(codes)[0]
        accelerate(model, backend="reference")
        assert difference(model.quantizer.from_codes(codes)[0], want) < 1e-6

    @hosts
    def test_weights_of_the_encoder_may_change(self, build, host):
        model, codes = build(host), codes_of(1, 3)
        accelerate(model, backend="reference")
        model.encoder.requires_grad_()
        model.quantizer.quantizers[0].in_proj.requires_grad_()
        assert decode(model, codes).isfinite().all()


CHECK = """
import sys, torch, transformers
from zonos2_triton.model import accelerate
config = transformers.DacConfig(
    encoder_hidden_size=2, downsampling_ratios=[2, 3], decoder_hidden_size=16, n_codebooks=3, codebook_size=16,
    codebook_dim=4,
)
torch.manual_seed(0)
model = transformers.DacModel(config).eval().requires_grad_(False)
codes = torch.randint(16, (2, 3, 5))
want = model.decode(audio_codes=codes).audio_values
before = {(path, name): id(value) for path, part in model.named_modules() for name, value in vars(part).items()}
for backend in ("reference", "triton"):
    with accelerate(model, backend=backend) as report:
        got = model.decode(audio_codes=codes).audio_values
    error = ((got - want).abs().max() / want.abs().max()).item()
    assert error < 1e-5 and report.max_error < 1e-5, (error, report)
    assert len(report.swapped) == 2 and report.host_version == transformers.__version__
after = {(path, name): id(value) for path, part in model.named_modules() for name, value in vars(part).items()}
assert before == after
print(transformers.__version__, type(model.quantizer).__name__)
"""


def test_the_older_line_of_transformers():
    """Its own process, as a process has one transformers; with the wheels that it is from."""
    path = os.pathsep.join(str(unpacked(*wheel)) for wheel in OLDER)
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4.57.6", "DacResidualVectorQuantize"]
