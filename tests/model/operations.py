"""Records of the operations that torch runs, for tests of launches, allocations and synchronisations."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::item", "aten::_to_copy"}  # for the device, or may


class Operations(TorchDispatchMode):
    """The operations that run inside: names, and bytes of the largest result of each."""

    def __init__(self):
        super().__init__()
        self.names, self.bytes = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [t for t in (out if isinstance(out, list | tuple) else [out]) if isinstance(t, torch.Tensor)]
        self.names.append(func._schema.name)
        self.bytes.append(max((min(t.nbytes, t.untyped_storage().nbytes()) for t in made), default=0))
        return out
