"""The checks that a device is to pass, in the interpreter: what they find, and that they find it."""

import dataclasses
import math
from functools import partial

import pytest
import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.verify import Mismatch
from zonos2_triton.bench.suite import device_checks
from zonos2_triton.bench.suite.gpu import quiet_interpreter
from zonos2_triton.model.ops import vocoder_ops
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.ops import REFERENCE
from zonos2_triton.reference.vocoder import VocoderConfig

CODEC = VocoderConfig(latent_dim=8, decoder_dim=6, decoder_rates=(5,), n_codebooks=3, codebook_size=16, codebook_dim=4)


@pytest.fixture(autouse=True)
def quick():
    """The interpreter without its checks of each access, which tests of the kernels have."""
    with quiet_interpreter():
        yield


def small(kernel, workload, **sizes):
    found = device_checks.workload_sizes(kernel, workload)
    return {name: value for name, value in found.items() if name != "contexts"} | sizes


@pytest.mark.parametrize(
    "check",
    [
        partial(device_checks.batch_invariant, "codebook_head", small("codebook_head", "tiny", M=3), batches=(1, 2, 3)),
        partial(device_checks.chunked_rows, "moe_router", small("moe_router", "tiny", M=18), cuts=(1, 7, 40)),
        partial(device_checks.chunked_prefill, small("prefill_attention", "tiny"), cuts=(1, 7, 16)),
    ],
    ids=lambda check: check.func.__name__,
)
def test_the_kernels_pass_in_the_interpreter(check):
    """The slow smoke run in test_suite.py takes every kernel through all of them."""
    check(device="cpu", dtype=torch.float32)


def test_a_difference_is_named(monkeypatch):
    kernel = dataclasses.replace(KERNELS["codebook_head"], op=lambda x, *_, **__: x + 1e-6 * (len(x) == 2))
    monkeypatch.setattr(device_checks, "KERNELS", {"codebook_head": kernel})
    said = r"^codebook_head, 2 rows from 0: result 0 differs in \d+ of 96: .* instead of .* at \[0"
    sizes = small("codebook_head", "tiny", M=3)
    with pytest.raises(Mismatch, match=said):
        device_checks.batch_invariant("codebook_head", sizes, "cpu", torch.float32, (1, 2, 3))


def never(run):
    """The capture's own result is not the replay's."""
    run()
    return lambda: None


CHAIN = device_checks.layer_chain(small=True)
CHECKS = {
    "decode step": partial(device_checks.graph_capture, CHAIN, "cpu", torch.float32, 1, 5),
    "step of the vocoder": partial(device_checks.vocoder_graph, CODEC, "cpu", torch.float32, 6, 5, 2),
}


@pytest.mark.parametrize("step", ["decode step", pytest.param("step of the vocoder", marks=pytest.mark.slow)])
def test_a_replay_that_does_nothing_is_found(step, monkeypatch):
    """By the reference, where it can be; the slow smoke run in test_suite.py captures the kernels."""
    monkeypatch.setattr(device_checks, "ops_of", lambda *_: REFERENCE)
    CHECKS[step](lambda run: run)
    with pytest.raises(Mismatch, match=f"a replayed {step}"):
        CHECKS[step](never)


def test_a_step_whose_bits_know_its_frames(monkeypatch):
    ops = vocoder_ops(torch.bfloat16)

    def later(*args, **more):
        return ops.conv1d_tanh(*args, **more) + 1e-3 * (args[4] == 7)  # `frames`

    monkeypatch.setattr(device_checks, "vocoder_ops", lambda _: ops._replace(conv1d_tanh=later))
    with pytest.raises(Mismatch, match=r"^vocoder, steps of 7 frames: result 0 differs in \d+ of 44: "):
        device_checks.vocoder_steps(CODEC, "cpu", torch.float32, frames=9, chunks=(7,), rows=1)


def test_the_sizes_are_those_of_the_8b_model():
    config = device_checks.layer_chain()
    assert (config.dim, config.heads, config.kv_heads, config.ffn_dim) == (2048, 16, 4, 3072)
    assert [config.experts_per_token(layer) for layer in config.moe_layers] == [1, 2]
    shapes = reference.layout(device_checks.whole_model()).values()
    assert sum(math.prod(shape) for shape in shapes) == pytest.approx(7.668e9, rel=1e-3)
