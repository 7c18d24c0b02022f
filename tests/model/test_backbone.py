import dataclasses
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zonos2_triton.model import Backbone, Sampling, Zonos2, Zonos2Config, build_prompt
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.frame_embedding import project_speaker


@pytest.fixture(scope="module")
def golden_backbone(golden):
    return golden.backbone(dtype=torch.float32)


@pytest.fixture(scope="module")
def whole(golden):
    """A backbone in fp64, a prompt, a voice, and the trace of both at once."""
    backbone, io = golden.backbone(dtype=torch.float64), golden.tensors("backbone_b_io")
    ids, speaker = io["spk.prompt_ids"].long(), io["speaker_embedding"].double()
    return backbone, ids, speaker, backbone.trace(ids, speaker)


@given(cuts=st.sets(st.integers(1, 26), max_size=8))
def test_cached_in_any_pieces_is_the_full_forward(whole, cuts):
    """In fp64, where a wrong position or mask is not lost in rounding."""
    backbone, ids, speaker, trace = whole
    cache, page = reference.Cache(backbone.config, 1, len(ids), trace["logits"]), torch.zeros(1, dtype=torch.int32)
    row = project_speaker(speaker, backbone.model.speaker)
    edges = [0, *sorted(cuts), len(ids)]
    with torch.inference_mode():
        batches = [reference.Batch.single(ids[a:b], a, page, row if a == 0 else None) for a, b in pairwise(edges)]
        parts = [reference.forward(backbone.model, batch, cache)[0] for batch in batches]
    torch.testing.assert_close(torch.cat(parts), trace["hidden_states"][-1], rtol=0, atol=1e-11)


def test_without_a_seed_each_call_differs_and_says_how_to_repeat_it(tts):
    prompt = build_prompt(tts.backbone.config, "x")
    first, second = tts.backbone.generate([prompt, prompt], Sampling(max_frames=4))
    assert not torch.equal(first.frames, second.frames)
    again = tts.backbone.generate([prompt], Sampling(max_frames=4, seed=first.seed))[0]
    assert torch.equal(again.frames, first.frames)


# Relative error of the final norm against fp64, teacher-forced, over tokens whose experts agree (bf16: 95 % of them):
# fp32 1.6e-6, fp16 3.7e-3, bf16 4.4e-2 on a 2-core CPU, 2026-11-22. The bounds are twice that.
PRECISIONS = {torch.float32: 3.2e-6, torch.float16: 7.4e-3, torch.bfloat16: 8.8e-2}


@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS.items(), ids=str)
def test_runs_in_each_precision(golden, dtype, bound):
    io = golden.tensors("backbone_b_io")
    exact, got = (golden.backbone(dtype=d).trace(io["nospk.prompt_ids"]) for d in (torch.float64, dtype))
    assert got["hidden_states"].dtype == dtype
    same = (got["expert_ids"] == exact["expert_ids"]).all(0).all(-1)
    assert same.double().mean() >= (0.9 if dtype == torch.bfloat16 else 1)
    error = (got["final_norm"].double() - exact["final_norm"])[same].square().mean().sqrt()
    assert error / exact["final_norm"].square().mean().sqrt() < bound


def test_frames_stop_where_the_context_ends(golden_backbone):
    config = golden_backbone.config
    prompt = build_prompt(config, "x" * (config.max_seqlen - 19 - 3))
    result = golden_backbone.generate([prompt], Sampling(seed=0, ignore_eos=True))[0]
    assert len(result.frames) == config.max_seqlen - len(prompt) == 3


def changed(ids, row, column, value):
    ids = ids.clone()
    ids[row, column] = value
    return ids


PROMPT = torch.full((3, 10), 1)
REJECTED = {
    "ids-rank": ({"prompts": [PROMPT[0]]}, ValueError, r"prompts\[0\] must be a tensor \[T, 10\]"),
    "ids-list": ({"prompts": [[1] * 10]}, ValueError, r"got list"),
    "ids-float": ({"prompts": [PROMPT.float()]}, TypeError, r"prompts\[0\] must be torch.int32 or torch.int64"),
    "code-high": ({"prompts": [changed(PROMPT, 1, 4, 1026)]}, ValueError, r"\[1, 4\] must be in 0\.\.1025, got 1026"),
    "text-high": ({"prompts": [changed(PROMPT, 0, 9, 520)]}, ValueError, r"\[0, 9\] must be in 0\.\.519, got 520"),
    "too-long": ({"prompts": [PROMPT[:1].repeat(128, 1)]}, ValueError, r"128 tokens.*max_seqlen is 128"),
    "second": ({"prompts": [PROMPT, PROMPT[:, :2]]}, ValueError, r"prompts\[1\]"),
    "samplings": ({"sampling": [Sampling(max_frames=1)] * 2}, ValueError, r"sampling must be one .* 1 prompts, got 2"),
    "speakers": ({"speakers": []}, ValueError, r"speakers must be .* got 0"),
    "voice-size": ({"speakers": [torch.zeros(39)]}, ValueError, r"speakers\[0\] must be .*=40\], got \[39\]"),
    "voice-nan": ({"speakers": [torch.full((40,), torch.nan)]}, ValueError, r"speakers\[0\] must hold finite"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), REJECTED.values(), ids=REJECTED)
def test_rejects_before_any_work(golden_backbone, monkeypatch, arguments, error, message):
    monkeypatch.setattr(reference, "forward", lambda *_: pytest.fail("computed before checking"))
    with pytest.raises(error, match=message):
        golden_backbone.generate(**{"prompts": [PROMPT], "sampling": Sampling(max_frames=1), **arguments})


def test_rejects_a_voice_where_the_model_knows_none(golden_backbone):
    mute = Backbone(dataclasses.replace(golden_backbone.config, speaker_enabled=False), golden_backbone.weights)
    with pytest.raises(ValueError, match="takes no speaker embedding"):
        mute.trace(PROMPT, torch.zeros(40))


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ({"backend": "cuda"}, "backend must be one of reference, triton, auto, got 'cuda'"),
        ({"backend": "triton", "dtype": "float64"}, "backend 'triton' runs in float32, bfloat16 and float16"),
        ({"device": "meta"}, "device must be a CPU or a CUDA or ROCm device, got 'meta'"),
        ({"device": "abacus"}, "device must be a torch device such as 'cpu' or 'cuda', got 'abacus'"),
        ({"dtype": "int8"}, "dtype must be one of float64, float32, bfloat16, float16, got 'int8'"),
        ({"dtype": torch.int8}, r"dtype must be one of .* got torch\.int8"),
    ],
    ids=str,
)
def test_rejects_a_placement(golden, placement, message):
    for load in (golden.backbone, partial(golden.vocoder, "odd")):
        with pytest.raises(ValueError, match=message):
            load(**placement)


@pytest.mark.interpreter
def test_rejects_a_gpu_that_is_not_there(golden, tiny_folder):
    for device in ("cuda", 0, np.int64(1)):
        name = device if device == "cuda" else f"cuda:{device}"
        with pytest.raises(ValueError, match=f"device is '{name}', but torch .* finds 0 GPUs"):
            golden.backbone(device=device)
        with pytest.raises(ValueError, match=f"device is '{name}', but torch .* finds 0 GPUs"):
            Zonos2.load(tiny_folder, device)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"head_dim": 24, "n_heads": 4}, "head dimension must be a power of two from 16, got 24"),
        ({"moe_router_dim": 30}, "moe_router_dim must be a multiple of 4 for torch.float32, got 30"),
    ],
    ids=["head_dim", "moe_router_dim"],
)
def test_sizes_that_kernels_do_not_take_are_refused_at_once(golden, changed, message):
    """The reference accepts them."""
    config = Zonos2Config.from_params(golden.json("params_b") | changed)
    weights = {name: torch.zeros(shape) for name, shape in Backbone.layout(config).items()}
    assert Backbone(config, weights, "reference").backend == "reference"
    with pytest.raises(ValueError, match=f"backend 'triton': the {message}|backend 'triton': {message}"):
        Backbone(config, weights, "triton")
