"""The scheduler on a GPU: graphs equal launches from the host bit for bit; a frame neither waits nor allocates."""

import pytest
import torch

from zonos2_triton.model import Backbone, BatchingOptions, Sampling, build_prompt

pytestmark = pytest.mark.gpu

COUNT = 19


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def make(request, tiny_folder):
    """A backbone with a scheduler of its own."""
    weights = tiny_folder / "model.safetensors"
    return lambda **options: Backbone.load(weights, None, "cuda", request.param, "triton", BatchingOptions(**options))


def requests(backbone):
    """Prompts and settings of their own; lengths from 3 to 48 frames."""
    prompts = [build_prompt(backbone.config, "ab" * (i % 7)) for i in range(COUNT)]
    return prompts, [Sampling(seed=i, max_frames=3 + 5 * i % 48, top_p=0.9 * (i % 2)) for i in range(COUNT)]


@pytest.fixture(scope="module")
def alone(make):
    """The frames of each request when nothing else runs, kernel by kernel."""
    backbone = make(cuda_graphs="off")
    return [backbone.generate([p], s)[0].frames for p, s in zip(*requests(backbone), strict=True)]


@pytest.mark.parametrize("cuda_graphs", ["off", "lazy", "at_load"])
@pytest.mark.parametrize(("max_batch_size", "sync_interval"), [(1, 8), (8, 3), (17, 8)])
def test_a_batch_with_graphs_is_each_alone_without(make, alone, caplog, cuda_graphs, max_batch_size, sync_interval):
    backbone = make(max_batch_size=max_batch_size, sync_interval=sync_interval, cuda_graphs=cuda_graphs)
    for got, want in zip(backbone.generate(*requests(backbone)), alone, strict=True):
        assert torch.equal(got.frames, want)
    assert not caplog.records, "capture failed"
    assert bool(backbone.scheduler._graphs.captured) == (cuda_graphs != "off")
    assert len(backbone.scheduler.state.free_pages) == backbone.scheduler.pages


def test_frames_neither_wait_nor_allocate(make):
    backbone = make(max_batch_size=4)
    prompts, _ = requests(backbone)
    streams = [backbone.stream(p, Sampling(seed=1, max_frames=100, ignore_eos=True)) for p in prompts[:3]]
    next(streams[0])
    scheduler = backbone.scheduler
    with scheduler.exclusive():
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(8):
                scheduler._graphs.run(3)
            assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
            scheduler._advance()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for stream in streams:
        stream.close()


def test_faults_stay_with_their_request(make, alone):
    """A NaN in the state of one stream's cache."""
    backbone = make(max_batch_size=4)
    prompts, samplings = requests(backbone)
    samplings = [Sampling(seed=s.seed, max_frames=60, ignore_eos=True, top_p=s.top_p) for s in samplings]
    want = backbone.generate([prompts[0]], samplings[0])[0].frames
    healthy, sick = (backbone.stream(prompts[i], samplings[i]) for i in (0, 1))
    first = [next(healthy)]
    scheduler = backbone.scheduler
    with scheduler.exclusive():
        page = next(request for request in scheduler.running if request.seed == 1).pages[0]
        for values in scheduler.state.cache.v:
            values[page] = float("nan")
    with pytest.raises(FloatingPointError, match="are not finite"):
        list(sick)
    assert torch.equal(torch.stack([frame.codes for frame in [*first, *healthy]]), want)
