"""The golden vectors of the backbone, on each device and backend."""

from contextlib import nullcontext

import pytest
import torch

from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.model import Sampling

ATOL = {"hidden_states": 1e-3, "router_states": 1e-3, "router_probs": 1e-4, "expert_weights": 1e-4, "final_norm": 1e-3}
REFERENCE = pytest.param(("cpu", "reference", False), id="reference")
CPU_KERNELS = pytest.param(("cpu", "triton", False), marks=pytest.mark.interpreter, id="triton")
SLOW_KERNELS = pytest.param(*CPU_KERNELS.values, marks=[*CPU_KERNELS.marks, pytest.mark.slow], id="triton")
ON_A_GPU = [
    pytest.param(("cuda", "reference", False), marks=pytest.mark.gpu, id="gpu-reference"),
    pytest.param(("cuda", "reference", True), marks=pytest.mark.gpu, id="gpu-reference-tf32-allowed"),
    pytest.param(("cuda", "triton", False), marks=pytest.mark.gpu, id="gpu-triton"),
]


@pytest.fixture
def placed(request, golden, monkeypatch):
    """The golden backbone in fp32 on a device and backend. fp32 is IEEE even if the user has allowed TF32."""
    device, backend, tf32 = request.param
    if tf32:
        monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
    interpreted = (device, backend) == ("cpu", "triton")
    # Quicker than as it comes; the kernels' own tests check each launch.
    with checked(bounds=False, undefined=False, races=False) if interpreted else nullcontext():
        yield golden.backbone(dtype=torch.float32, device=device, backend=backend)


@pytest.mark.parametrize("placed", [REFERENCE, CPU_KERNELS, *ON_A_GPU], indirect=True)
@pytest.mark.parametrize("voice", ["spk", pytest.param("nospk", marks=pytest.mark.slow)])
def test_golden_trace(golden, placed, voice):
    io = golden.tensors("backbone_b_io")
    speaker = io["speaker_embedding"] if voice == "spk" else None
    trace = placed.trace(io[f"{voice}.prompt_ids"], speaker)
    assert trace["logits"].device.type == placed.device.type
    trace = {stage: values.cpu() for stage, values in trace.items()}
    assert torch.equal(trace["expert_ids"], io[f"{voice}.expert_ids"].long())
    for stage, atol in ATOL.items():
        torch.testing.assert_close(trace[stage], io[f"{voice}.{stage}"], rtol=0, atol=atol)
    at = io[f"{voice}.logits_positions"]
    torch.testing.assert_close(trace["logits"][at], io[f"{voice}.logits"], rtol=0, atol=2e-3)


@pytest.mark.parametrize("placed", [REFERENCE, SLOW_KERNELS, *ON_A_GPU], indirect=True)
def test_golden_greedy_codes(golden, placed):
    """With and without the penalty, batched with a request of another length and voice."""
    io = golden.tensors("backbone_b_io")
    prompt, voice = io["spk.prompt_ids"], io["speaker_embedding"]
    plain, penalised = io["spk.decode_codes"].long(), io["spk.decode_codes_greedy_reppen"].long()
    samplings = [
        Sampling(temperature=0, repetition_window=0, max_frames=len(plain)),
        Sampling(max_frames=4, seed=1),
        Sampling(temperature=0, max_frames=len(penalised)),
    ]
    results = placed.generate([prompt, io["nospk.prompt_ids"][:9], prompt], samplings, [voice, None, voice])
    assert torch.equal(results[0].frames, plain)
    assert torch.equal(results[2].frames, penalised)
    assert results[0].eos_frame is results[2].eos_frame is None
