"""A frame and a vocoder step for a GPU that need not be there: what they launch, and that they ask the device nothing.

Unchanged host code on tensors without storage, at the real sizes: reading a value of one would fail. Launches are
counted and not made; what the compiler makes of them is the compile gate's.
"""

from collections import Counter
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

from zonos2_triton.bench.compiler.offline_compile import fake_tensors
from zonos2_triton.bench.suite.device_checks import layer_chain
from zonos2_triton.model.ops import ops_of, vocoder_ops
from zonos2_triton.model.runtime.batch_state import BatchState
from zonos2_triton.model.runtime.model_runner import ModelRunner
from zonos2_triton.model.runtime.vocoder_runner import VocoderRunner
from zonos2_triton.model.vocoder_decoder import VocoderDecoder, VocoderOps
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.vocoder import VocoderConfig, layout

pytestmark = pytest.mark.interpreter
CUDA = torch.device("cuda")

# What needs no device: memory from the allocator (of a graph: its own), and other views of it.
QUIET = {"aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided", "aten::slice", "aten::select",
         "aten::as_strided", "aten::view", "aten::unbind", "aten::alias", "prim::device"}  # fmt: skip
# The batch's scalars become a step's metadata by these: a launch each, of one number a slot.
PLANNING = {"aten::lt", "aten::gt", "aten::ge", "aten::eq", "aten::where", "aten::scalar_tensor", "aten::sub",
            "aten::add", "aten::add_", "aten::clamp", "aten::minimum", "aten::bitwise_or", "aten::bitwise_not",
            "aten::stack"}  # fmt: skip
STEP = {"_rvq_decode_kernel": 1, "_conv1d_snake_kernel": 1 + 2 * 3 * 2, "_conv_transpose1d_snake_kernel": 4}
STEP |= {"_residual_unit_kernel": 2 * 3, "_conv1d_tanh_kernel": 1}


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches():
    counts = Counter()
    count = patch.object(interpreter.GridExecutor, "__call__", lambda self, *_, **__: counts.update([self.fn.__name__]))
    with count, fake_tensors(), torch.no_grad():
        yield counts


def launching(op):
    """For tensors without storage the dispatcher would take what only tells the results' shapes."""
    return getattr(op, "_init_fn", op)


def weights(shapes):
    return {name: torch.empty(shape, dtype=torch.bfloat16, device=CUDA) for name, shape in shapes.items()}


def test_a_frame_launches_its_kernels_and_asks_the_device_nothing(launches):
    """Two dense layers of 5 launches, two mixtures of 6; embedding, head, draw."""
    config = layer_chain()
    model = reference.bind(config, weights(reference.layout(config)))
    slots = BatchState(config, 8, 64, 9, model.table)
    frames = ModelRunner(model, ops_of("triton", config, CUDA, torch.bfloat16), slots, per_sequence=False)
    with Seen() as seen:
        frames.frame(4)
    assert launches.total() == 1 + 2 * 5 + 2 * 6 + 2
    assert launches["_sample_codes_kernel"] == 1
    assert seen.counts.keys() <= QUIET


def test_a_vocoder_step_launches_its_kernels_and_is_planned_on_the_device(launches):
    """Two blocks whose units are two launches each, two whose units are one; planning brings no value to the host."""
    config, ops = VocoderConfig(), vocoder_ops(torch.bfloat16)._asdict()
    ops = VocoderOps(**{name: launching(op) for name, op in ops.items()})
    decoder = VocoderDecoder(config, weights(layout(config)), ops)
    codes, step_meta = (torch.zeros(4, *shape, dtype=torch.int32, device=CUDA) for shape in ((32, 9), (4,)))
    rings = decoder.rings(4, 16)
    with Seen() as step:
        samples = decoder.step(rings, codes, step_meta, 16)
    assert launches == STEP
    assert step.counts.keys() <= QUIET
    assert (samples.shape, samples.dtype) == ((4, 16 * 512), torch.float32)
    launches.clear()
    slots = BatchState(layer_chain(), 8, 64, 17, torch.empty(1, dtype=torch.bfloat16, device=CUDA))
    runner = VocoderRunner(decoder, slots, 9)
    with Seen() as seen:
        runner.advance(4)
    assert (runner.steps, launches) == (1, STEP)
    planning = {name: count for name, count in seen.counts.items() if name not in QUIET}
    assert planning.keys() <= PLANNING
    assert sum(planning.values()) <= 24
