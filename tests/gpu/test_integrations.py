"""Patched models on a GPU: the same results, and graphs that replay to the bits of the launches.

On a CPU the same tests run in Triton's interpreter, where a replay is the call itself.
"""

import pytest
import torch

from tests.integrations.torch_module.tiny import ids, logits, made
from tests.integrations.zonos2_engine.official import SIZES, Run, build, random_weights, standing_in
from zonos2_triton.bench.timing import timer
from zonos2_triton.bench.timing.integrations import dac_model
from zonos2_triton.model import accelerate
from zonos2_triton.model.integrations.zonos2_engine.attention import creator
from zonos2_triton.reference.numeric import exact_numerics
from zonos2_triton.reference.vocoder import VocoderConfig

CPU = pytest.param("cpu", marks=[pytest.mark.interpreter, pytest.mark.slow])
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=[CPU, CUDA])
def device(request):
    return timer.cuda_device() if request.param == "cuda" else timer.cpu_device()


@pytest.fixture
def package():
    with standing_in() as found, torch.inference_mode():
        yield found


def test_a_captured_step_of_the_engine_replays_to_the_bits_of_the_launches(device, package, golden):
    """Two requests in a graph of four, for three frames: eager with the batch's own metadata, and replayed."""
    params = golden.json("params_b") | SIZES
    model = build(package, params, random_weights(params), device=device.name)
    report = accelerate(model, backend="triton")
    assert report.max_error is not None
    assert not report.skipped
    eager, graphed = runs = [Run(package, model, creator("triton")) for _ in range(2)]
    captured = graphed.capture(4)
    generator, found, replay = torch.Generator().manual_seed(2), [], None
    prompts = [torch.randint(30, (rows, 10), generator=generator, dtype=torch.int32) for rows in (9, 4)]
    reqs = [[run.add(prompt) for prompt in prompts] for run in runs]
    assert torch.equal(*(run.step(mine, "prefill") for run, mine in zip(runs, reqs, strict=True)))

    def step():
        found.append(model.forward())

    for _ in range(3):
        row = torch.randint(30, (2, 10), generator=generator, dtype=torch.int32)
        for run, mine in zip(runs, reqs, strict=True):
            run.append(mine, row)
        want = eager.step(reqs[0], "decode")
        graphed.backend.prepare_for_replay(graphed.batch(reqs[1], "decode", captured.reqs[:2]))
        with graphed.active(), graphed.context.forward_batch(captured):
            if replay is None and device.capture is not None:
                step()  # compiles
            replay = replay or (step if device.capture is None else device.capture(step))
            replay()
        assert torch.equal(found[-1][:2], want)
        assert found[-1].isfinite().all()
        for req in reqs[1]:
            req.complete_one()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_torch_module_gives_the_same_logits(device, dtype):
    model, tokens = made(dtype).to(device.name), ids().to(device.name)
    with torch.no_grad():
        before = logits(model, tokens=tokens)
        with accelerate(model, backend="triton") as report:
            after = logits(model, tokens=tokens)
        assert torch.equal(logits(model, tokens=tokens), before)
    assert report.max_error is not None
    if dtype == torch.float32:
        assert torch.equal(after.argmax(-1), before.argmax(-1))
    # RMS; on a CPU 4e-7, and 0.03 in bf16, where both are 0.05 from fp64 and some tokens take other experts.
    error = (after - before).float().square().mean().sqrt() / before.float().square().mean().sqrt()
    assert error <= {torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]


@pytest.fixture
def codec(device):
    """(dtype) -> a small DacModel and two batches of codes for it."""

    def made(dtype):
        config = VocoderConfig(latent_dim=16, decoder_dim=16, decoder_rates=(4, 2))
        codes = torch.randint(1024, (2, 2, 9, 6), generator=torch.Generator().manual_seed(1)).to(device.name)
        return dac_model(config, device.name, dtype), *codes

    return made


@pytest.mark.needs("transformers")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_codec_gives_the_same_sound(codec, dtype):
    model, codes, _ = codec(dtype)
    with torch.inference_mode(), exact_numerics():
        before = model.decode(audio_codes=codes).audio_values
        with accelerate(model, backend="triton") as report:
            after = model.decode(audio_codes=codes).audio_values
            alone = model.decode(audio_codes=codes[:1]).audio_values
    assert torch.equal(after[:1], alone)
    error = (after - before).abs().max() / before.abs().max()
    assert error <= {torch.float32: 1e-5, torch.float16: 1e-2}[dtype]  # on a CPU 2e-7 and 1.3e-3
    assert report.max_error is not None


@pytest.mark.needs("transformers")
def test_a_captured_decoding_of_a_codec_replays_to_the_bits_of_the_launches(device, codec):
    """With other codes in the same memory."""
    model, first, second = codec(torch.float16)
    codes, found = first.clone(), []

    def decode():
        found.append(model.decode(audio_codes=codes).audio_values)

    with torch.inference_mode(), accelerate(model, backend="triton"):
        want = model.decode(audio_codes=second).audio_values
        decode()
        replay = device.capture(decode) if device.capture is not None else decode
        codes.copy_(second)
        replay()
        assert torch.equal(found[-1], want)
        assert not torch.equal(found[0], want)
