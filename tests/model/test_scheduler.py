"""The scheduler on the reference: a request that joins, leaves, fails or is cancelled does not change the others."""

import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

from tests.model.operations import WAITS, Operations
from zonos2_triton.model import Backbone, BatchingOptions, Sampling, build_prompt
from zonos2_triton.model.ops import PAGE_SIZE
from zonos2_triton.model.runtime.batch_state import pages_of
from zonos2_triton.model.runtime.cuda_graphs import Graphs, buckets
from zonos2_triton.model.runtime.scheduler import Scheduler, even_chunk
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.ops import REFERENCE

TEXTS = ("", "a", "hello", "ab" * 20, "xyz")


def assert_empty(backbone):
    scheduler = backbone.scheduler
    scheduler.sweep()
    assert sorted(scheduler.state.free_pages) == list(range(scheduler.pages))
    assert (scheduler.state.positions < 0).all()
    assert [*scheduler.waiting, *scheduler.prefilling, *scheduler.running] == []


@pytest.fixture
def make(golden_weights):
    """A backbone with a scheduler, empty in the end. pipelined: results are read one step later, as on a GPU."""
    backbones = []

    def made(pipelined=False, **options):
        backbones.append(Backbone(*golden_weights, backend="reference", options=BatchingOptions(**options)))
        backbones[-1].scheduler._pipelined = pipelined
        return backbones[-1]

    yield made
    for backbone in backbones:
        assert_empty(backbone)


@pytest.fixture(scope="module")
def requests(golden_weights):
    """Prompts and settings of five requests that differ in length, temperature, penalty, filters and seed."""
    kinds = ({}, {"temperature": 0.5, "top_k": 5}, {"min_p": 0.0, "top_p": 0.9}, {"repetition_penalty": 3.0}, {})
    prompts = [build_prompt(golden_weights[0], text) for text in TEXTS]
    return prompts, [Sampling(seed=i, max_frames=3 + 4 * i % 11, **kind) for i, kind in enumerate(kinds)]


@pytest.fixture(scope="module")
def alone(golden_weights, requests):
    """The frames of each request when it runs alone."""
    backbone = Backbone(*golden_weights, backend="reference")
    return [backbone.generate([p], s)[0].frames for p, s in zip(*requests, strict=True)]


def codes(stream):
    return torch.stack([frame.codes for frame in stream])


def assert_same(results, alone, failed=()):
    for i, want in enumerate(alone):
        assert i in failed or torch.equal(results[i].frames, want)


@pytest.mark.parametrize(
    ("pipelined", "options"),
    [
        (False, {"max_batch_size": 1, "sync_interval": 1}),
        (True, {"max_batch_size": 2, "sync_interval": 8}),
        (True, {"max_batch_size": 5, "sync_interval": 1}),
        (False, {"max_batch_size": 5, "sync_interval": 8, "kv_cache_tokens": PAGE_SIZE * pages_of(80)}),
    ],
    ids=str,
)
def test_a_batch_of_any_size_and_interval_is_each_alone(make, requests, alone, pipelined, options):
    """Fewer slots than requests, or a cache for one: they take turns."""
    backbone = make(pipelined, **options)
    assert_same(backbone.generate(*requests), alone)


@pytest.mark.parametrize(("sync_interval", "pipelined"), [(1, False), (4, True)])
def test_late_comers_change_nothing_and_are_not_changed(make, requests, alone, sync_interval, pipelined):
    backbone, (prompts, samplings) = make(pipelined, max_batch_size=3, sync_interval=sync_interval), requests
    first = backbone.stream(prompts[3], samplings[3])
    got = {3: [next(first), next(first)]}
    others = {i: backbone.stream(prompts[i], samplings[i]) for i in (4, 0)}
    got[4] = [next(others[4])]
    others[2] = backbone.stream(prompts[2], samplings[2])
    got[3] += first
    for i, stream in others.items():
        got[i] = got.get(i, []) + list(stream)
    for i, frames in got.items():
        assert torch.equal(codes(frames), alone[i])
        assert [frame.last for frame in frames] == [False] * (len(frames) - 1) + [True]


def test_a_prompt_in_small_pieces_holds_nobody_up_for_long(make, monkeypatch):
    backbone, forward = make(max_batch_size=4, max_prefill_tokens=16), Mock(wraps=reference.forward)
    monkeypatch.setattr(reference, "forward", forward)
    backbone.scheduler.per_sequence = False  # only for how work is shared out: the reference takes prompts whole
    long = [build_prompt(backbone.config, "x" * 40) for _ in range(2)]
    first = backbone.stream(long[0], Sampling(seed=1, max_frames=20, ignore_eos=True))
    next(first)
    rest = backbone.stream(long[1], Sampling(seed=2, max_frames=3, ignore_eos=True))
    forward.reset_mock()
    list(rest)
    seen = [len(call.args[1].ids) for call in forward.call_args_list]
    pieces = [n for n in seen if n > 1]
    assert sum(pieces) >= len(long[1]) - 1
    assert max(pieces) <= 16
    assert max(pieces) - min(pieces) <= 1  # no piece of a few tokens, which would read every weight again
    first.close()


@pytest.mark.parametrize(
    ("tokens", "most", "chunks"), [(520, 512, [260, 260]), (512, 512, [512]), (1, 512, [1]), (10, 4, [4, 3, 3])]
)
def test_a_prompt_is_cut_evenly(tokens, most, chunks):
    found = []
    while sum(found) < tokens:
        found.append(even_chunk(tokens - sum(found), most))
    assert found == chunks


def test_prompts_that_do_not_fit_into_a_step_together_come_one_after_the_other(make, monkeypatch):
    backbone, forward = make(max_batch_size=4, max_prefill_tokens=64), Mock(wraps=reference.forward)
    monkeypatch.setattr(reference, "forward", forward)
    backbone.scheduler.per_sequence = False
    first = backbone.stream(build_prompt(backbone.config, "x"), Sampling(seed=1, max_frames=40, ignore_eos=True))
    next(first)
    prompts = [build_prompt(backbone.config, "x" * n) for n in (21, 21, 2)]
    lengths = [len(prompt) for prompt in prompts]
    assert lengths[0] + lengths[1] > 64 >= lengths[0] + lengths[2]
    forward.reset_mock()
    backbone.generate(prompts, Sampling(seed=2, max_frames=3, ignore_eos=True))
    seen = [len(call.args[1].ids) for call in forward.call_args_list]
    assert [n for n in seen if n > 1] == [lengths[0], lengths[1] + lengths[2]]
    first.close()


def test_a_warm_up_leaves_no_trace_of_requests(make, requests, alone):
    backbone, (prompts, samplings) = make(max_batch_size=5), requests
    free = [*backbone.scheduler.state.free_pages]
    with backbone.scheduler.exclusive():
        backbone.scheduler._model_runner.warm_up([2, 5])
    assert backbone.scheduler.state.free_pages == free
    assert_same(backbone.generate(prompts, samplings), alone)


def test_no_frame_is_asked_for_that_nobody_waits_for(make, requests, monkeypatch):
    backbone, asked = make(max_batch_size=2, sync_interval=8), []
    run = backbone.scheduler._graphs.run
    monkeypatch.setattr(backbone.scheduler._graphs, "run", lambda n: (asked.append(n), run(n)))
    samplings = [Sampling(seed=i, max_frames=n, ignore_eos=True) for i, n in enumerate((4, 12))]
    backbone.generate(requests[0][:2], samplings)
    assert asked == [2] * 8 + [1] * 3  # the first frame of each comes with its prompt


@pytest.mark.parametrize(("sync_interval", "pipelined"), [(1, False), (4, True)])
def test_logits_that_are_not_finite_end_one_request(make, requests, alone, sync_interval, pipelined):
    """After its good frames; the error names prompt and frame."""
    backbone, (prompts, samplings) = make(pipelined, max_batch_size=5, sync_interval=sync_interval), requests

    def sick(logits, settings, seeds, steps, *state):
        ill = (seeds == 3) & (steps == 2)
        logits = torch.where(ill[:, None, None], torch.nan, logits)
        return REFERENCE.sample_codes(logits, settings, seeds, steps, *state)

    backbone.ops = replace(backbone.ops, sample_codes=sick)
    results = backbone.generate(prompts, samplings, return_exceptions=True)
    assert isinstance(results[3], FloatingPointError)
    assert "prompts[3]: the logits of frame 2 are not finite" in str(results[3])
    assert_same(results, alone, failed=[3])
    stream = backbone.stream(prompts[3], samplings[3])
    assert torch.equal(torch.stack([next(stream).codes for _ in range(2)]), alone[3][:2])
    with pytest.raises(FloatingPointError, match="frame 2"):
        next(stream)
    with pytest.raises(FloatingPointError, match=r"prompts\[3\]"):
        backbone.generate(prompts, samplings)


def test_a_callback_that_raises_ends_its_own_request(make, requests, alone):
    """If it ends the call, the stream of another caller goes on."""
    backbone, (prompts, samplings), seen = make(max_batch_size=5), requests, [[] for _ in requests[0]]

    def progress(i, frame):
        seen[i].append(frame)
        if i == 1:
            raise LookupError("not interested")

    results = backbone.generate(prompts, samplings, progress=progress, return_exceptions=True)
    assert isinstance(results[1], LookupError)
    assert len(seen[1]) == 1
    assert_same(results, alone, failed=[1])
    assert all(torch.equal(codes(seen[i]), alone[i]) for i in (0, 2, 3, 4))
    mine = backbone.stream(prompts[3], samplings[3])
    first = next(mine)
    with pytest.raises(LookupError, match="not interested"):
        backbone.generate(prompts[:2], samplings[:2], progress=progress)
    assert torch.equal(codes([first, *mine]), alone[3])


@pytest.mark.parametrize("pipelined", [False, True], ids=["", "pipelined"])
def test_cancelled_and_forgotten_streams_give_their_places_back(make, requests, alone, pipelined):
    backbone, (prompts, samplings) = make(pipelined, max_batch_size=2, kv_cache_tokens=256), requests
    closed, forgotten, waiting = (backbone.stream(prompts[i], samplings[i]) for i in (3, 2, 1))
    next(closed), next(forgotten)
    closed.close()
    closed.close()
    assert list(closed) == []
    del forgotten
    gc.collect()
    with backbone.stream(prompts[0], samplings[0]) as never_read:
        assert torch.equal(codes(waiting), alone[1])
    assert list(never_read) == []
    assert list(closed) == []  # what was under way when it was closed went nowhere


def test_a_consumer_that_stops_reading_holds_nobody_up(make, requests, alone):
    backbone, (prompts, samplings) = make(max_batch_size=1, sync_interval=2), requests
    idle, busy = (backbone.stream(prompts[i], samplings[i]) for i in (2, 4))
    first = next(idle)
    assert torch.equal(codes(busy), alone[4])
    assert_empty(backbone)
    assert torch.equal(codes([first, *idle]), alone[2])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_no_memory_for_one_prompt_is_its_own_error(make, requests, alone, monkeypatch, error):
    """The prompts that were batched with it are prefilled again without it."""
    backbone, (prompts, samplings) = make(max_batch_size=5), requests
    backbone.scheduler.per_sequence = False
    forward = reference.forward

    def short_of_memory(model, batch, *more):
        if batch.cu_seqlens is not None and int(batch.cu_seqlens.diff().max()) == len(prompts[3]):
            raise error("no room")
        return forward(model, batch, *more)

    monkeypatch.setattr(reference, "forward", short_of_memory)
    results = backbone.generate(prompts, samplings, return_exceptions=True)
    assert isinstance(results[3], error)
    assert_same(results, alone, failed=[3])


@pytest.mark.parametrize("error", [RuntimeError("device lost"), KeyboardInterrupt()], ids=repr)
def test_a_failure_of_the_scheduler_ends_every_request(make, requests, alone, monkeypatch, error):
    backbone, (prompts, samplings) = make(max_batch_size=5), requests
    others = [backbone.stream(prompts[i], samplings[i]) for i in (2, 3)]
    next(others[0])
    with monkeypatch.context() as broken:
        broken.setattr(backbone.scheduler._model_runner, "frame", None)
        broken.setattr(backbone.scheduler._graphs, "frame", lambda n: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            backbone.generate([prompts[0]], samplings[0])
    for stream in others:
        with pytest.raises(RuntimeError, match=r"device lost|the scheduler was stopped: KeyboardInterrupt"):
            list(stream)
    assert torch.equal(backbone.generate([prompts[4]], samplings[4])[0].frames, alone[4])


def test_threads_share_the_scheduler(make, requests, alone):
    backbone = make(max_batch_size=3)
    with ThreadPoolExecutor(5) as threads:
        got = [*threads.map(lambda prompt, sampling: codes(backbone.stream(prompt, sampling)), *requests)]
    assert all(map(torch.equal, got, alone))


def test_a_frame_is_one_replay_and_nothing_else(golden_weights, requests):
    """No operation, so no allocation and no wait for the device, within a step; each step waits once."""
    backbone, replay = Backbone(*golden_weights, "reference"), Mock()
    capture = Mock(return_value=replay)  # in place of CUDA graphs
    options = BatchingOptions(max_batch_size=6, sync_interval=8)
    scheduler = backbone._scheduler = Scheduler(backbone.model, REFERENCE, options, False, capture)
    streams = [backbone.stream(p, Sampling(seed=1, max_frames=50)) for p in requests[0]]
    with scheduler.exclusive():
        scheduler._admit()
        with Operations() as seen:
            for _ in range(9):
                scheduler._graphs.run(5)
        assert (capture.call_count, replay.call_count, seen.names) == (1, 9, [])
        with Operations() as step:
            assert scheduler._advance() is not None
        assert replay.call_count == 17
        assert not (WAITS - {"aten::_to_copy"}) & {*step.names}
    for stream in streams:
        stream.close()


def test_the_state_stays_where_it_is(make, requests):
    backbone = make(max_batch_size=4, sync_interval=2)
    tensors = [value for value in vars(backbone.scheduler.state).values() if isinstance(value, torch.Tensor)]
    before = [t.data_ptr() for t in tensors]
    backbone.generate(*requests)
    after = [value.data_ptr() for value in vars(backbone.scheduler.state).values() if isinstance(value, torch.Tensor)]
    assert after == before


def test_buckets():
    sizes = {1: [1], 2: [1, 2], 3: [1, 2, 4], 9: [1, 2, 4, 8, 16], 256: [1, 2, 4, *range(8, 257, 8)]}
    assert {streams: buckets(streams) for streams in sizes} == sizes


def test_graphs_are_captured_once_by_bucket():
    ran, replay = [], Mock()
    capture = Mock(return_value=replay)
    graphs = Graphs(ran.append, 20, capture)
    for batch_size in (1, 3, 4, 9, 16, 17, 3):
        graphs.run(batch_size)
    assert (capture.call_count, replay.call_count, ran) == (4, 7, [])
    graphs.capture_all()
    assert capture.call_count == len(buckets(20))
    graphs.forget()
    graphs.run(2)
    assert capture.call_count == len(buckets(20)) + 1


def test_frames_go_on_without_graphs_where_capture_fails(caplog):
    refused, ran = Mock(side_effect=RuntimeError("operation not permitted when stream is capturing")), []
    graphs = Graphs(ran.append, 20, refused)
    for batch_size in (3, 9, 3):
        graphs.run(batch_size)
    assert (ran, len(caplog.records)) == ([3, 9, 3], 1)
    assert "RuntimeError: operation not permitted when stream is capturing" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_size": 257}, r"max_batch_size must be an integer in 1\.\.256, got 257"),
        ({"sync_interval": 0}, r"sync_interval must be an integer in 1\.\.1024, got 0"),
        ({"sync_interval": 2.5}, "sync_interval must be an integer in .*, got 2.5"),
        ({"max_prefill_tokens": True}, "max_prefill_tokens must be an integer in .*, got True"),
        ({"kv_cache_tokens": -1}, "kv_cache_tokens must be an integer in .*, got -1"),
        ({"cuda_graphs": "never"}, "cuda_graphs must be one of lazy, at_load, off, got 'never'"),
    ],
    ids=str,
)
def test_rejects_options(options, message):
    with pytest.raises(ValueError, match=f"options: {message}"):
        BatchingOptions(**options)


def test_rejects_what_the_context_or_the_cache_does_not_hold(make, requests):
    """The error names the prompt and comes before any work; only the default is cut to the context."""
    backbone, prompts = make(kv_cache_tokens=64), requests[0][:3]
    room = backbone.config.max_seqlen - len(prompts[2])
    fine = Sampling(max_frames=2)
    with pytest.raises(ValueError, match=rf"prompts\[2\]: max_frames is {room + 1}, .* holds {room} frames"):
        backbone.generate(prompts, [fine, fine, Sampling(max_frames=room + 1)])
    with pytest.raises(ValueError, match=r"prompts\[1\] and its 60 frames fill .* tokens of the cache, which has 64"):
        backbone.generate(prompts, [fine, Sampling(max_frames=60), fine])
    with pytest.raises(TypeError, match=r"sampling\[1\] must be a Sampling object, got None"):
        backbone.generate(prompts, [fine, None, fine])
