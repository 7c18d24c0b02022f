"""The kernels on a GPU, compiled: exactness on small workloads, and bits that no batch changes."""

import pytest
import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.verify import verify
from zonos2_triton.bench.suite.device_checks import graph_capture, layer_chain
from zonos2_triton.model import Sampling, build_prompt
from zonos2_triton.model.backbone import Backbone
from zonos2_triton.reference import network as reference

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SMALL = [
    pytest.param(kernel, workload, id=f"{kernel.name}-{workload.name}")
    for kernel in KERNELS.values()
    for workload in kernel.workloads
    if not workload.real
]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def tiny(request, tiny_folder):
    return Backbone.load(tiny_folder / "model.safetensors", device="cuda", dtype=request.param, backend="triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "workload"), SMALL)
def test_is_as_exact_as_pytorch(kernel, workload, dtype):
    verify(kernel, workload, "cuda", dtype)


def test_a_batch_is_its_single_runs(tiny):
    """Bit for bit, with mates of other lengths and settings, some of which end earlier; and again."""
    texts = ["", "a", "hello", "ab" * 40, *(f"mate {i}" for i in range(30))]
    prompts = [build_prompt(tiny.config, text) for text in texts]
    samplings = [Sampling(seed=i, max_frames=4 + i % 5, ignore_eos=True) for i in range(len(texts))]
    together, again = ([g.frames for g in tiny.generate(prompts, samplings)] for _ in range(2))
    for i, frames in enumerate(together):
        assert torch.equal(again[i], frames)
        if i < 6:
            assert torch.equal(tiny.generate([prompts[i]], samplings[i])[0].frames, frames)


def test_nan_in_a_mate_stays_there(tiny):
    """By a speaker whose row is NaN, which `generate` would refuse: so the rows are run as it runs them."""
    config, device = tiny.config, tiny.device
    ids = torch.cat([build_prompt(config, text) for text in ("hello", "mate")]).to(device)
    cut = len(build_prompt(config, "hello"))
    voice = torch.full((1, config.dim), float("nan"), device=device, dtype=tiny.dtype)

    def run(index_of_nan):
        index = torch.full((len(ids),), -1, dtype=torch.int32, device=device)
        if index_of_nan is not None:
            index[index_of_nan] = 0
        pages = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32, device=device)
        cache = reference.Cache(config, 4, 64, tiny.model.table)
        starts, cuts, ends = (
            torch.tensor(n, dtype=torch.int32, device=device)
            for n in ([0, 0], [0, cut, len(ids)], [cut, len(ids) - cut])
        )
        longest = max(cut, len(ids) - cut)
        batch = reference.Batch(ids, pages, starts, cuts, longest, voice, index)
        x = reference.forward(tiny.model, batch, cache, tiny.ops)
        after = reference.forward(tiny.model, reference.Batch(ids[:2], pages, ends), cache, tiny.ops)
        return x, after, reference.logits(tiny.model, after, tiny.ops)

    with torch.inference_mode():
        clean, spoilt = run(None), run(cut)
    assert torch.equal(spoilt[0][:cut], clean[0][:cut])
    assert torch.equal(spoilt[1][0], clean[1][0])
    assert torch.equal(spoilt[2][0], clean[2][0])
    for part in (spoilt[0][cut:], spoilt[1][1], spoilt[2][1]):
        assert part.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_captured_step_is_the_eager_one(dtype):
    graph_capture(layer_chain(small=True), "cuda", dtype)
