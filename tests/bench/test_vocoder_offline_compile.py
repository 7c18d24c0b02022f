"""The vocoder for a GPU that need not be there: the launches of a step, and that the host asks the device nothing.

Unchanged host code on tensors without storage, at the 44.1 kHz codec's sizes: reading a value of one would fail. It
runs in a process of its own, where Triton compiles.
"""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json
from collections import Counter
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from zonos2_triton.bench.compiler.cubin_stats import TARGETS, statistics
from zonos2_triton.bench.suite.device_checks import layer_chain
from zonos2_triton.bench.compiler.offline_compile import dry_run, fake_tensors
from zonos2_triton.model.vocoder_decoder import Decoder, VocoderOps
from zonos2_triton.model.ops import vocoder_ops
from zonos2_triton.model.runtime.batch_state import Slots
from zonos2_triton.model.runtime.vocoder_runner import Speech
from zonos2_triton.reference.vocoder import VocoderConfig, layout


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def counted(launches):
    return sum((Counter({launch.function: launch.count}) for launch in launches), Counter())


device, config, backbone = torch.device("cuda"), VocoderConfig(), layer_chain()
with fake_tensors(), dry_run("sm_90") as launches, torch.no_grad():
    shapes = layout(config).items()
    state = {name: torch.empty(shape, dtype=torch.bfloat16, device=device) for name, shape in shapes}
    # For tensors without storage the dispatcher would take what only tells the results' shapes.
    ops = vocoder_ops(torch.bfloat16)._asdict()
    ops = {name: getattr(op, "_init_fn", op) for name, op in ops.items()}
    decoder = Decoder(config, state, VocoderOps(**ops))
    rings = decoder.rings(4, 16)
    codes = torch.zeros(4, 32, 9, dtype=torch.int32, device=device)
    spans = torch.zeros(4, 4, dtype=torch.int32, device=device)
    with Seen() as seen:
        samples = decoder.step(rings, codes, spans, 16)
    of_a_step, step = counted(launches), Counter(seen.names)
    speech = Speech(decoder, Slots(backbone, 8, 64, 17, torch.empty(1, dtype=torch.bfloat16, device=device)), 9)
    with Seen() as seen:
        speech.advance(4)
print(json.dumps({
    "step": of_a_step,
    "errors": [launch.error for launch in launches if launch.error],
    "spills": [launch.function for launch in launches if statistics(launch.kernel, TARGETS["sm_90"]).spills],
    "operations": step,
    "samples": [list(samples.shape), str(samples.dtype)],
    "steps": speech.steps,
    "look": {name: count - of_a_step[name] for name, count in counted(launches).items()},
    "planning": Counter(seen.names),
}))
"""

# What needs no device: memory from the allocator (of a graph: its own), and other views of it.
QUIET = ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided", "aten::slice", "aten::select",
         "aten::as_strided", "aten::view", "aten::unbind", "aten::alias", "prim::device")  # fmt: skip
# What the loop's numbers become spans by: a launch each, of as many numbers as there are rows.
PLANNING = ("aten::lt", "aten::gt", "aten::ge", "aten::eq", "aten::where", "aten::scalar_tensor", "aten::sub",
            "aten::add", "aten::add_", "aten::clamp", "aten::minimum", "aten::bitwise_or", "aten::bitwise_not",
            "aten::stack")  # fmt: skip


@pytest.fixture(scope="module")
def found():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_a_step_launches_its_kernels_and_asks_the_device_nothing(found):
    """Two blocks whose units are two launches each, two whose units are one."""
    assert found["errors"] == found["spills"] == []
    assert found["step"] == {
        "_codebook_sum_kernel": 1, "_convolution_kernel": 1 + 2 * 3 * 2, "_transposed_convolution_kernel": 4,
        "_residual_unit_kernel": 2 * 3, "_waveform_kernel": 1,
    }  # fmt: skip
    assert sum(found["step"].values()) == 25
    assert {*found["operations"]} <= {*QUIET}
    assert found["samples"] == [[4, 16 * 512], "torch.float32"]


def test_a_look_plans_its_step_on_the_device(found):
    """What it takes beside the step's kernels are launches that a graph holds: no value comes to the host."""
    assert found["steps"] == 1
    assert found["look"] == found["step"]
    planning = {name: count for name, count in found["planning"].items() if name not in QUIET}
    assert planning.keys() <= {*PLANNING}
    assert sum(planning.values()) <= 24
