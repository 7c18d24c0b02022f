"""The frame loop on a GPU: graphs are the host's launches, bit for bit, and a frame neither waits nor allocates."""

import pytest
import torch

from zonos2_triton.model import Backbone, LoopOptions, Sampling, build_prompt

pytestmark = pytest.mark.gpu

COUNT = 19


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def make(request, tiny_folder):
    """A backbone with a loop of its own."""
    weights = tiny_folder / "model.safetensors"
    return lambda **options: Backbone.load(weights, None, "cuda", request.param, "triton", LoopOptions(**options))


def requests(backbone):
    """Prompts and settings of their own; lengths from 3 to 48 frames."""
    prompts = [build_prompt(backbone.config, "ab" * (i % 7)) for i in range(COUNT)]
    return prompts, [Sampling(seed=i, max_frames=3 + 5 * i % 48, top_p=0.9 * (i % 2)) for i in range(COUNT)]


@pytest.fixture(scope="module")
def alone(make):
    """The frames of each request when nothing else runs, kernel by kernel."""
    backbone = make(graphs="off")
    return [backbone.generate([p], s)[0].frames for p, s in zip(*requests(backbone), strict=True)]


@pytest.mark.parametrize("graphs", ["off", "lazy", "load"])
@pytest.mark.parametrize(("streams", "look"), [(1, 8), (8, 3), (17, 8)])
def test_a_batch_with_graphs_is_each_alone_without(make, alone, caplog, graphs, streams, look):
    backbone = make(streams=streams, look=look, graphs=graphs)
    for got, want in zip(backbone.generate(*requests(backbone)), alone, strict=True):
        assert torch.equal(got.frames, want)
    assert not caplog.records, "capture failed"
    assert bool(backbone.loop._graphs.captured) == (graphs != "off")
    assert len(backbone.loop.slots.free) == backbone.loop.pages


def test_frames_neither_wait_nor_allocate(make):
    backbone = make(streams=4)
    prompts, _ = requests(backbone)
    streams = [backbone.stream(p, Sampling(seed=1, max_frames=100, ignore_eos=True)) for p in prompts[:3]]
    next(streams[0])
    loop = backbone.loop
    with loop.exclusive():
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(8):
                loop._graphs.run(3)
            assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
            loop._advance()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for stream in streams:
        stream.close()


def test_faults_stay_with_their_request(make, alone):
    """A NaN in the state of one stream's cache."""
    backbone = make(streams=4)
    prompts, samplings = requests(backbone)
    samplings = [Sampling(seed=s.seed, max_frames=60, ignore_eos=True, top_p=s.top_p) for s in samplings]
    want = backbone.generate([prompts[0]], samplings[0])[0].frames
    healthy, sick = (backbone.stream(prompts[i], samplings[i]) for i in (0, 1))
    first = [next(healthy)]
    loop = backbone.loop
    with loop.exclusive():
        page = next(request for request in loop.running if request.seed == 1).pages[0]
        for values in loop.slots.cache.v:
            values[page] = float("nan")
    with pytest.raises(FloatingPointError, match="are not finite"):
        list(sick)
    assert torch.equal(torch.stack([frame.codes for frame in [*first, *healthy]]), want)
