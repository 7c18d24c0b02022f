"""The frame loop on the reference: what joins, leaves, fails or is given up changes nothing for the others."""

import gc
import threading
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zonos2_triton.model import Backbone, LoopOptions, Sampling, Zonos2Config, build_prompt
from zonos2_triton.model.runtime.batch_state import Slots, pages_of
from zonos2_triton.model.runtime.cuda_graphs import Graphs, buckets
from zonos2_triton.model.runtime.scheduler import Loop
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.ops import REFERENCE
from zonos2_triton.reference.stopping import EndDetector

TEXTS = ("", "a", "hello", "ab" * 20, "xyz")


@pytest.fixture(scope="module")
def weights(golden):
    loaded = golden.backbone(dtype=torch.float32)
    return loaded.config, loaded.weights


@pytest.fixture
def make(weights):
    """A backbone with a loop of its own; ahead: what has come is read one look later, as on a GPU."""

    def made(ahead=False, **options):
        backbone = Backbone(*weights, backend="reference", options=LoopOptions(**options))
        backbone.loop._ahead = ahead
        return backbone

    return made


def prompts_of(backbone, texts=TEXTS):
    return [build_prompt(backbone.config, text) for text in texts]


def samplings_of(count, **more):
    """Each request its own: length, temperature, penalty, filters, seed."""
    kinds = ({}, {"temperature": 0.5, "top_k": 5}, {"min_p": 0.0, "top_p": 0.9}, {"repetition_penalty": 3.0})
    return [Sampling(seed=i, max_frames=3 + 4 * i % 11, **kinds[i % 4], **more) for i in range(count)]


@pytest.fixture(scope="module")
def alone(weights):
    """The frames of each request when nothing else runs."""
    backbone = Backbone(*weights, backend="reference")
    prompts = prompts_of(backbone)
    return [backbone.generate([p], s)[0].frames for p, s in zip(prompts, samplings_of(5), strict=True)]


def codes(stream):
    return torch.stack([frame.codes for frame in stream])


def assert_empty(backbone):
    """No row, no page and no request is left behind."""
    loop = backbone.loop
    loop.sweep()
    assert sorted(loop.slots.free) == list(range(loop.pages))
    assert (loop.slots.positions < 0).all()
    assert [*loop.waiting, *loop.filling, *loop.running] == []


# What a request becomes.


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
@pytest.mark.parametrize("look", [1, 3, 8])
@pytest.mark.parametrize("streams", [1, 2, 5])
def test_a_batch_of_any_size_and_look_is_each_alone(make, alone, streams, look, ahead):
    """Fewer rows than requests: they take turns."""
    backbone = make(ahead, streams=streams, look=look)
    together = backbone.generate(prompts_of(backbone), samplings_of(5))
    for got, want in zip(together, alone, strict=True):
        assert torch.equal(got.frames, want)
    assert_empty(backbone)


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
@pytest.mark.parametrize("look", [1, 4])
def test_late_comers_change_nothing_and_are_not_changed(make, alone, look, ahead):
    backbone = make(ahead, streams=3, look=look)
    prompts, samplings = prompts_of(backbone), samplings_of(5)
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
    assert_empty(backbone)


def test_a_prompt_in_small_pieces_holds_nobody_up_for_long(make, monkeypatch):
    """Between two looks no more rows of prompts than allowed, once something runs."""
    backbone = make(streams=4, prefill_rows=16)
    seen = []
    forward = reference.forward

    def counted(model, batch, *more):
        seen.append(len(batch.ids))
        return forward(model, batch, *more)

    monkeypatch.setattr(reference, "forward", counted)
    backbone.loop.alone = False  # only for how work is shared out: the reference takes prompts whole
    long = [build_prompt(backbone.config, "x" * 40) for _ in range(2)]
    first = backbone.stream(long[0], Sampling(seed=1, max_frames=20, ignore_eos=True))
    next(first)
    rest = backbone.stream(long[1], Sampling(seed=2, max_frames=3, ignore_eos=True))
    seen.clear()
    list(rest)
    assert max(seen) == 16
    assert sum(n for n in seen if n > 1) >= len(long[1]) - 1
    first.close()


def test_eos_ends_a_stream_and_is_told_from_then_on(make):
    """By the loop as by the serial rule."""
    backbone = make(look=4)

    def ending(logits, settings, seeds, steps, last_seen):
        codes, faults = REFERENCE.sample(logits, settings, seeds, steps, last_seen)
        codes[:, 3] = torch.where(steps == 5, 1024, codes[:, 3])
        return codes, faults

    backbone.ops = replace(backbone.ops, sample=ending)
    frames = list(backbone.stream(prompts_of(backbone)[1], Sampling(seed=1, max_frames=60)))
    detector = EndDetector(1024, 60)
    lasts = []
    for frame in frames:
        lasts.append(detector.push(frame.codes.tolist()))
        assert frame.eos_frame == detector.eos_frame
        assert frame.last == lasts[-1]
    assert lasts[-1]
    assert len(frames) <= 15
    ignoring = backbone.generate([prompts_of(backbone)[1]], Sampling(seed=1, max_frames=30, ignore_eos=True))[0]
    assert (len(ignoring.frames), ignoring.eos_frame) == (30, None)
    assert_empty(backbone)


def test_no_frame_is_asked_for_that_nobody_waits_for(make, monkeypatch):
    """The host knows when the longest request ends at the latest."""
    backbone, asked = make(streams=2, look=8), []
    run = backbone.loop._graphs.run
    monkeypatch.setattr(backbone.loop._graphs, "run", lambda rows: (asked.append(rows), run(rows)))
    prompts = prompts_of(backbone)[:2]
    backbone.generate(prompts, [Sampling(seed=i, max_frames=n, ignore_eos=True) for i, n in enumerate((4, 12))])
    assert asked == [2] * 8 + [1] * 3  # the first frame of each comes with its prompt


# Who fails, and who is told.


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
@pytest.mark.parametrize("look", [1, 4])
def test_logits_that_are_not_finite_end_one_request(make, alone, look, ahead):
    """After its sound frames; its error names prompt and frame."""
    backbone = make(ahead, streams=5, look=look)

    def sick(logits, settings, seeds, steps, last_seen):
        ill = (seeds == 3) & (steps == 2)
        return REFERENCE.sample(torch.where(ill[:, None, None], torch.nan, logits), settings, seeds, steps, last_seen)

    backbone.ops = replace(backbone.ops, sample=sick)
    prompts, samplings = prompts_of(backbone), samplings_of(5)
    results = backbone.generate(prompts, samplings, return_exceptions=True)
    assert isinstance(results[3], FloatingPointError)
    assert "prompts[3]: the logits of frame 2 are not finite" in str(results[3])
    for i in (0, 1, 2, 4):
        assert torch.equal(results[i].frames, alone[i])
    stream = backbone.stream(prompts[3], samplings[3])
    assert torch.equal(torch.stack([next(stream).codes for _ in range(2)]), alone[3][:2])
    with pytest.raises(FloatingPointError, match="frame 2"):
        next(stream)
    with pytest.raises(FloatingPointError, match=r"prompts\[3\]"):
        backbone.generate(prompts, samplings)
    assert_empty(backbone)


def test_a_callback_that_raises_ends_its_own_request(make, alone):
    backbone, asked = make(streams=5), []

    def progress(i, frame):
        if i == 1:
            asked.append(frame)
            raise LookupError("not interested")

    results = backbone.generate(prompts_of(backbone), samplings_of(5), progress=progress, return_exceptions=True)
    assert isinstance(results[1], LookupError)
    assert len(asked) == 1
    for i in (0, 2, 3, 4):
        assert torch.equal(results[i].frames, alone[i])
    with pytest.raises(LookupError, match="not interested"):
        backbone.generate(prompts_of(backbone), samplings_of(5), progress=progress)
    assert_empty(backbone)


def test_one_caller_s_error_is_not_another_s(make, alone):
    """A stream of somebody else goes on while a call of generate is given up."""
    backbone = make(streams=5)
    prompts, samplings = prompts_of(backbone), samplings_of(5)
    mine = backbone.stream(prompts[3], samplings[3])
    first = next(mine)
    with pytest.raises(ZeroDivisionError):
        backbone.generate(prompts[:2], samplings[:2], progress=lambda i, frame: 1 / 0)
    assert torch.equal(codes([first, *mine]), alone[3])
    assert_empty(backbone)


@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
def test_cancelled_and_forgotten_streams_give_their_places_back(make, alone, ahead):
    backbone = make(ahead, streams=2, positions=256)
    prompts, samplings = prompts_of(backbone), samplings_of(5)
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
    assert_empty(backbone)


def test_a_consumer_that_stops_reading_holds_nobody_up(make, alone):
    """Its frames wait for it, in memory of the host; its row and pages do not."""
    backbone = make(streams=1, look=2)
    prompts, samplings = prompts_of(backbone), samplings_of(5)
    idle, busy = (backbone.stream(prompts[i], samplings[i]) for i in (2, 4))
    first = next(idle)
    assert torch.equal(codes(busy), alone[4])
    assert_empty(backbone)
    assert torch.equal(codes([first, *idle]), alone[2])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_no_memory_for_one_prompt_is_its_own_error(make, alone, monkeypatch, error):
    """The prompts that came with it are tried again without it."""
    backbone = make(streams=5)
    backbone.loop.alone = False
    prompts, samplings = prompts_of(backbone), samplings_of(5)
    forward = reference.forward

    def short_of_memory(model, batch, *more):
        if batch.cu_seqlens is not None and int(batch.cu_seqlens.diff().max()) == len(prompts[3]):
            raise error("no room")
        return forward(model, batch, *more)

    monkeypatch.setattr(reference, "forward", short_of_memory)
    results = backbone.generate(prompts, samplings, return_exceptions=True)
    assert isinstance(results[3], error)
    for i in (0, 1, 2, 4):
        assert torch.equal(results[i].frames, alone[i])
    assert_empty(backbone)


def test_a_cache_for_one_serves_them_one_after_the_other(make, alone):
    backbone = make(streams=5, positions=64 * pages_of(len(prompts_of(make())[3]) + 20))
    for got, want in zip(backbone.generate(prompts_of(backbone), samplings_of(5)), alone, strict=True):
        assert torch.equal(got.frames, want)
    assert_empty(backbone)


@pytest.mark.parametrize("error", [RuntimeError("device lost"), KeyboardInterrupt()], ids=repr)
def test_when_the_loop_itself_fails_everybody_is_told(make, alone, monkeypatch, error):
    backbone = make(streams=5)
    prompts, samplings = prompts_of(backbone), samplings_of(5)
    others = [backbone.stream(prompts[i], samplings[i]) for i in (2, 3)]
    next(others[0])
    with monkeypatch.context() as broken:
        broken.setattr(backbone.loop._frames, "frame", None)
        broken.setattr(backbone.loop._graphs, "frame", lambda rows: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            backbone.generate([prompts[0]], samplings[0])
    for stream in others:
        with pytest.raises(RuntimeError, match=r"device lost|the frame loop was stopped: KeyboardInterrupt"):
            list(stream)
    assert_empty(backbone)
    assert torch.equal(backbone.generate([prompts[4]], samplings[4])[0].frames, alone[4])


def test_threads_share_the_loop(make, alone):
    backbone = make(streams=3)
    prompts, samplings = prompts_of(backbone), samplings_of(5)
    got, errors = {}, []

    def read(i):
        try:
            got[i] = codes(backbone.stream(prompts[i], samplings[i]))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    for i, want in enumerate(alone):
        assert torch.equal(got[i], want)
    assert_empty(backbone)


# What a frame costs the host.


class Seen(TorchDispatchMode):
    """Every operation of torch that runs inside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


class Recorded:
    """In place of CUDA graphs: what was captured, by the number of rows, and what was replayed."""

    def __init__(self):
        self.captured, self.replayed = 0, 0

    def __call__(self, call):
        self.captured += 1

        def replay():
            self.replayed += 1

        return replay


def test_a_frame_is_one_replay_and_nothing_else(weights):
    """No operation, so no allocation and no wait for the device, between two looks; each look waits once."""
    config, tensors = weights
    model, graphs = reference.bind(config, tensors), Recorded()
    loop = Loop(model, REFERENCE, LoopOptions(streams=6, look=8), alone=False, capture=graphs)
    backbone = Backbone(config, tensors, "reference")
    backbone._loop = loop
    streams = [backbone.stream(p, Sampling(seed=1, max_frames=50)) for p in prompts_of(backbone)]
    with loop.exclusive():
        loop._admit()
        with Seen() as first:
            loop._graphs.run(5)
        assert (graphs.captured, graphs.replayed, first.names) == (1, 1, [])
        with Seen() as seen:
            for _ in range(8):
                loop._graphs.run(5)
        assert (graphs.captured, graphs.replayed, seen.names) == (1, 9, [])
        with Seen() as look:
            found = loop._advance()
        assert graphs.replayed == 17
        assert not {"aten::_local_scalar_dense", "aten::nonzero", "aten::item"} & {*look.names}
        assert found is not None
    for stream in streams:
        stream.close()


def test_the_state_is_small_and_stays_where_it_is(make, golden):
    config = Zonos2Config.from_params(golden.json("checkpoint_layout")["params_json"])
    slots = Slots(config, 256, 1, 9, torch.empty(0, dtype=torch.bfloat16, device="meta"))
    state = [value for value in vars(slots).values() if isinstance(value, torch.Tensor)]
    assert len({t.untyped_storage()._cdata for t in state}) == 7
    assert sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in state}.values()) < 12e6
    assert slots.block_table.shape == (256, 96)  # 6,144 positions each

    backbone = make(streams=4, look=2)
    before = {name: t.data_ptr() for name, t in vars(backbone.loop.slots).items() if isinstance(t, torch.Tensor)}
    backbone.generate(prompts_of(backbone), samplings_of(5))
    after = {name: t.data_ptr() for name, t in vars(backbone.loop.slots).items() if isinstance(t, torch.Tensor)}
    assert before == after


def test_buckets():
    assert buckets(1) == [1]
    assert buckets(2) == [1, 2]
    assert buckets(3) == [1, 2, 4]
    assert buckets(9) == [1, 2, 4, 8, 16]
    assert buckets(256) == [1, 2, 4, *range(8, 257, 8)]


def test_graphs_are_captured_once_by_bucket():
    recorded, ran = Recorded(), []
    graphs = Graphs(ran.append, 20, recorded)
    for rows in (1, 3, 4, 9, 16, 17, 3):
        graphs.run(rows)
    assert (recorded.captured, recorded.replayed, ran) == (4, 7, [])
    graphs.capture_all()
    assert recorded.captured == len(buckets(20))
    graphs.forget()
    graphs.run(2)
    assert recorded.captured == len(buckets(20)) + 1


def test_frames_go_on_without_graphs_where_capture_fails(caplog):
    """Rows as they are, with one warning that says why."""

    def refused(call):
        raise RuntimeError("operation not permitted when stream is capturing")

    ran = []
    graphs = Graphs(ran.append, 20, refused)
    for rows in (3, 9, 3):
        graphs.run(rows)
    assert ran == [3, 9, 3]
    assert len(caplog.records) == 1
    assert "RuntimeError: operation not permitted when stream is capturing" in caplog.text


# Bad input.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": 0}, r"streams must be an integer in 1\.\.256, got 0"),
        ({"streams": 257}, r"streams must be an integer in 1\.\.256, got 257"),
        ({"look": 0}, r"look must be an integer in 1\.\.1024, got 0"),
        ({"look": 2.5}, "look must be an integer in .*, got 2.5"),
        ({"prefill_rows": True}, "prefill_rows must be an integer in .*, got True"),
        ({"positions": -1}, "positions must be an integer in .*, got -1"),
        ({"graphs": "never"}, "graphs must be one of lazy, load, off, got 'never'"),
    ],
    ids=str,
)
def test_rejects_options(options, message):
    with pytest.raises(ValueError, match=f"options: {message}"):
        LoopOptions(**options)


def test_rejects_what_the_context_or_the_cache_does_not_hold(make):
    """By the number of the prompt, before anything runs; the default alone is cut to the context."""
    backbone = make(positions=64)
    prompts = prompts_of(backbone)[:3]
    room = backbone.config.max_seqlen - len(prompts[2])
    fine = Sampling(max_frames=2)
    with pytest.raises(ValueError, match=rf"prompts\[2\]: max_frames is {room + 1}, .* holds {room} frames"):
        backbone.generate(prompts, [fine, fine, Sampling(max_frames=room + 1)])
    with pytest.raises(ValueError, match=r"prompts\[1\] and its 60 frames fill .* rows of the cache, which has 64"):
        backbone.generate(prompts, [fine, Sampling(max_frames=60), fine])
    with pytest.raises(TypeError, match=r"sampling\[1\] must be a Sampling object, got None"):
        backbone.generate(prompts, [fine, None, fine])
    with pytest.raises(ValueError, match="sampling must be one for all or one for each of 3 prompts, got 2"):
        backbone.generate(prompts, [fine, fine])
    assert_empty(backbone)
