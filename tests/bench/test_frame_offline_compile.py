"""A frame for a GPU that need not be there: how many kernels it launches, and that the host asks the device nothing.

Unchanged host code on tensors without storage, at the 8B model's sizes: reading a value of one would fail. It runs in a
process of its own, where Triton compiles.
"""

import json
import os
import subprocess
import sys

SCRIPT = """
import json
from collections import Counter
from functools import partial
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from zonos2_triton.bench.suite.device_checks import layer_chain
from zonos2_triton.bench.compiler.offline_compile import dry_run, fake_tensors
from zonos2_triton.model.runtime.model_runner import Frames
from zonos2_triton.model.ops import ops_of
from zonos2_triton.model.runtime.batch_state import Slots
from zonos2_triton.reference import backbone as reference
from zonos2_triton.reference.ops import Ops


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def launching(op):  # for tensors without storage the dispatcher would take what only tells the results' shapes
    return partial(op.func._init_fn, **op.keywords) if isinstance(op, partial) else op._init_fn


device, config = torch.device("cuda"), layer_chain()
with fake_tensors(), dry_run("sm_90") as launches, torch.no_grad():
    shapes = reference.layout(config).items()
    weights = {name: torch.empty(shape, dtype=torch.bfloat16, device=device) for name, shape in shapes}
    model = reference.bind(config, weights)
    ops = ops_of("triton", config, device, torch.bfloat16)
    ops = Ops(**{name: launching(op) for name, op in vars(ops).items()})
    frames = Frames(model, ops, Slots(config, 8, 64, 9, model.table), alone=False)
    with Seen() as seen:
        frames.frame(4)
print(json.dumps({
    "launches": [[launch.function, launch.count] for launch in launches],
    "errors": [launch.error for launch in launches if launch.error],
    "operations": Counter(seen.names),
    "fused": [launch.function for launch in launches if launch.kernel and "fma." in launch.kernel.asm["ptx"]],
}))
"""

# What needs no device: memory from the allocator (of a graph: its own), and other views of it.
QUIET = ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided", "aten::slice", "aten::select",
         "aten::as_strided", "aten::view", "aten::unbind", "prim::device")  # fmt: skip


def test_a_frame_launches_its_kernels_and_asks_the_device_nothing():
    """Two dense layers of 5 launches, two mixtures of 6; embedding, head, draw, and what follows from it."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["errors"] == []
    assert sum(count for _, count in found["launches"]) == 1 + 2 * 5 + 2 * 6 + 3
    assert ["_sample_kernel", 1] in found["launches"]
    assert ["_advance_kernel", 1] in found["launches"]
    assert {*found["operations"]} <= {*QUIET}
    assert "_sample_kernel" not in found["fused"]  # a product and a sum rounded as one would draw other codes
