"""The checks that a device is to pass, in the interpreter: what they find, and that they find it."""

import dataclasses
import math

import pytest
import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.bench.proof.verify import Mismatch
from zonos2_triton.bench.suite import device_checks
from zonos2_triton.model.ops import vocoder_ops
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.delay import shear_up
from zonos2_triton.reference.vocoder import VocoderConfig

SMALL = {"qkv_projection": "tiny", "output_projection": "tiny", "router": "tiny", "experts": "top2", "head": "tiny",
         "decode_attention": "tiny", "sample": "tiny"}  # fmt: skip


def small(kernel, workload, **sizes):
    found = device_checks.workload_sizes(kernel, workload)
    return {name: value for name, value in found.items() if name != "contexts"} | sizes


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the row of NaN
@pytest.mark.parametrize("kernel", device_checks.BATCHED)
def test_batch_invariance_in_the_interpreter(kernel):
    rows = {"B" if kernel in ("decode_attention", "sample") else "M": 3}
    device_checks.batch_invariance(kernel, small(kernel, SMALL[kernel], **rows), "cpu", torch.float32, (1, 2, 3))


@pytest.mark.parametrize("kernel", ["output_projection", "router", "experts"])
def test_prefill_rows_in_the_interpreter(kernel):
    sizes = small(kernel, "tiny" if kernel == "router" else "prefill", M=18)
    device_checks.prefill_rows(kernel, sizes, "cpu", torch.float32, (1, 7, 40))


def test_prefill_in_chunks_in_the_interpreter():
    device_checks.prefill_in_chunks(small("prefill_attention", "tiny"), "cpu", torch.float32, (1, 7, 16))


def test_a_difference_is_named(monkeypatch):
    """An operation whose rows know how many they are."""
    kernel = dataclasses.replace(KERNELS["head"], op=lambda x, *_, **__: x + 1e-6 * (len(x) == 2))
    monkeypatch.setattr(device_checks, "KERNELS", {"head": kernel})
    with pytest.raises(Mismatch, match=r"^head, 2 rows from 0: result 0 differs in \d+ of 96: .* instead of .* at \[0"):
        device_checks.batch_invariance("head", small("head", "tiny", M=3), "cpu", torch.float32, (1, 2, 3))


def test_a_captured_step_in_the_interpreter():
    chain = device_checks.layer_chain(small=True)
    device_checks.graph_capture(chain, "cpu", torch.float32, 1, 5, capture=lambda run: run)
    with pytest.raises(Mismatch, match="a replayed decode step"):  # the capture's own result is not the replay's
        device_checks.graph_capture(chain, "cpu", torch.float32, 1, 5, capture=lambda run: (run(), lambda: None)[1])


CODEC = VocoderConfig(latent_dim=8, decoder_dim=6, decoder_rates=(5,), n_codebooks=3, codebook_size=16, codebook_dim=4)


@pytest.fixture
def quick():
    """The interpreter without its checks of each access."""
    with checked(bounds=False, undefined=False, races=False):
        yield


@pytest.mark.usefixtures("quick")
def test_the_vocoder_in_steps_in_the_interpreter():
    device_checks.vocoder_steps(CODEC, "cpu", torch.float32, frames=9, chunks=(1, 7), rows=3)


@pytest.mark.usefixtures("quick")
def test_a_step_whose_bits_know_its_frames(monkeypatch):
    ops = vocoder_ops(torch.bfloat16)

    def later(*args, **more):
        return ops.waveform(*args, **more) + 1e-3 * (args[4] == 7)  # `frames`

    monkeypatch.setattr(device_checks, "vocoder_ops", lambda _: ops._replace(waveform=later))
    with pytest.raises(Mismatch, match=r"^vocoder, steps of 7 frames: result 0 differs in \d+ of 44: "):
        device_checks.vocoder_steps(CODEC, "cpu", torch.float32, frames=9, chunks=(7,), rows=1)


@pytest.mark.usefixtures("quick")
def test_captured_steps_of_the_vocoder_in_the_interpreter():
    device_checks.vocoder_graph(CODEC, "cpu", torch.float32, 9, 5, 2, capture=lambda run: run)
    with pytest.raises(Mismatch, match="a replayed step of the vocoder"):
        device_checks.vocoder_graph(CODEC, "cpu", torch.float32, 9, 5, 2, capture=lambda run: (run(), lambda: None)[1])


def test_codes_for_the_checks():
    codes = device_checks.random_codes(CODEC, 2, 5, "cpu")
    assert torch.equal(shear_up(device_checks.as_delayed(codes)[1].long(), 17)[:5], codes[1].long())


def test_the_chain_has_the_sizes_of_the_8b_model():
    config = device_checks.layer_chain()
    assert (config.dim, config.heads, config.kv_heads, config.ffn_dim) == (2048, 16, 4, 3072)
    assert [config.experts_per_token(layer) for layer in config.moe_layers] == [1, 2]


def test_whole_frames_are_the_8b_model_s():
    shapes = reference.layout(device_checks.whole_model()).values()
    assert sum(math.prod(shape) for shape in shapes) == pytest.approx(7.668e9, rel=1e-3)
