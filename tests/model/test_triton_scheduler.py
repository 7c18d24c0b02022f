"""The scheduler on the kernels, interpreted: batches that are padded as graphs are, and requests that come and go."""

from dataclasses import fields
from functools import cache

import pytest
import torch

from zonos2_triton.kernels._launch_config import early_loads_are_on
from zonos2_triton.model import Backbone, BatchingOptions, Sampling
from zonos2_triton.model.runtime.scheduler import Scheduler
from zonos2_triton.reference.ops import Ops

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("quick_interpreter")]


def backbone_of(short, padded, **options):
    """A backbone with a scheduler of its own; padded: its batches are those of graphs, with idle slots."""
    backbone = Backbone(*short, "triton", BatchingOptions(**options))
    capture = (lambda call: call) if padded else None
    backbone._scheduler = Scheduler(backbone.model, backbone.ops, backbone.options, per_sequence=False, capture=capture)
    return backbone


def requests(count):
    """Prompts of lengths 1, 4, 7, ..., and settings of their own."""
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(0, 500, (1 + 3 * i % 11, 10), generator=generator) for i in range(count)]
    kinds = ({}, {"top_p": 0.9}, {"temperature": 0.6, "min_p": 0.0}, {"repetition_penalty": 3.0})
    return prompts, [Sampling(seed=2**64 - 1 - i, max_frames=2 + i % 3, **kinds[i % 4]) for i in range(count)]


@pytest.fixture(scope="module")
def alone(two_layers):
    """The frames of request i when it runs alone, without graphs; computed on demand."""
    prompts, samplings = requests(17)
    return cache(lambda i: backbone_of(two_layers, False).generate([prompts[i]], samplings[i])[0].frames)


@pytest.mark.parametrize(
    ("count", "sync_interval"),
    [(3, 8), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((2, 1), (9, 2), (17, 1)))],
)
def test_padded_batches_change_no_bit(two_layers, alone, count, sync_interval):
    """Batch sizes around the borders of buckets, and intervals so long that ended slots stay in the batch."""
    prompts, samplings = requests(count)
    backbone = backbone_of(two_layers, True, max_batch_size=17, sync_interval=sync_interval)
    results = backbone.generate(prompts, samplings)
    assert len(backbone.scheduler.state.free_pages) == backbone.scheduler.pages
    for i in {0, 1, count // 2, count - 1}:
        assert torch.equal(results[i].frames, alone(i))


@pytest.mark.slow
def test_a_prompt_in_pieces_between_frames_is_the_prompt(two_layers):
    """With a speaker, which replaces the first token of the first chunk only."""
    config, _ = two_layers
    prompt = torch.randint(0, 500, (21, 10), generator=torch.Generator().manual_seed(3))
    voice = torch.randn(config.speaker_embedding_dim, generator=torch.Generator().manual_seed(4))
    sampling = Sampling(seed=5, max_frames=3)
    whole = backbone_of(two_layers, False).generate([prompt], sampling, [voice])[0]
    backbone = backbone_of(two_layers, True, max_prefill_tokens=8)
    busy = backbone.stream(requests(2)[0][1], Sampling(seed=1, max_frames=30, ignore_eos=True))
    next(busy)
    late = backbone.stream(prompt, sampling, voice)
    assert torch.equal(torch.stack([frame.codes for frame in late]), whole.frames)
    busy.close()


def test_kernels_load_early_in_prompts_and_frames_alone(two_layers):
    """Where the interpreter checks that the launch before has written none of it."""
    backbone, seen = backbone_of(two_layers, False, sync_interval=1), []

    def watched(op):
        return lambda *args, **kwargs: seen.append(early_loads_are_on()) or op(*args, **kwargs)

    backbone.ops = Ops(**{field.name: watched(getattr(backbone.ops, field.name)) for field in fields(Ops)})
    prompts, samplings = requests(1)
    backbone.generate(prompts, samplings)
    assert len(seen) > 20
    assert all(seen)
    assert not early_loads_are_on()


def test_launches_of_a_frame(two_layers, quick_interpreter):
    """Embedding, 5 for a dense layer, 6 for a mixture, head, sampling with the update of the state."""
    backbone = backbone_of(two_layers, False, sync_interval=1)
    prompts, samplings = requests(3)
    streams = [backbone.stream(p, s) for p, s in zip(prompts, samplings, strict=True)]
    assert len([next(streams[2]) for _ in range(2)]) == 2  # the prompts, and a frame
    before = quick_interpreter.launches
    next(streams[2])
    assert quick_interpreter.launches - before == 1 + 5 + 6 + 2
    for stream in streams:
        stream.close()
