"""All public ways to change the weight of a module."""

from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_model, save_file
from torch import nn
from torch.nn.utils import parametrizations, prune, vector_to_parameters


def fixed(tensor):
    return nn.Parameter(tensor, requires_grad=False)


def optimised(module):
    module.weight.requires_grad_(True)
    module.weight.grad = torch.ones_like(module.weight)
    torch.optim.SGD([module.weight], lr=0.5).step()
    module.weight.requires_grad_(False)


def in_inference_mode(module):
    with torch.inference_mode():
        module.weight.mul_(2)


def doubled(module):
    return {name: tensor * 2 for name, tensor in module.state_dict().items()}


def from_a_file(module):
    with TemporaryDirectory() as folder:
        save_file(doubled(module), f"{folder}/other.safetensors")
        load_model(module, f"{folder}/other.safetensors")


def from_a_vector(module):
    weights = [*module.parameters()]
    vector_to_parameters(torch.cat([weight.flatten() * 2 for weight in weights]), weights)


def array(module):
    """NumPy's view, which counts no writes."""
    return module.weight.detach().numpy().reshape(-1)


def parametrised(module):
    parametrizations.weight_norm(module)
    module.parametrizations.weight.original0.data.mul_(2)


WRITES = {
    "mul_": lambda m: m.weight.mul_(2),
    "an item": lambda m: m.weight.__setitem__(0, 1.0),
    "data.mul_": lambda m: m.weight.data.mul_(2),
    "data.neg_": lambda m: m.weight.data.neg_(),
    "data.copy_ of an order": lambda m: m.weight.data.copy_(m.weight.flip(0)),
    "one number of data": lambda m: m.weight.data.view(-1)[-1:].add_(1),
    "data =": lambda m: setattr(m.weight, "data", m.weight.data * 2),
    "detach().mul_": lambda m: m.weight.detach().mul_(2),
    "numpy": lambda m: array(m).__imul__(2),
    "memoryview": lambda m: memoryview(array(m)).__setitem__(0, 3.0),
    "from_numpy": lambda m: torch.from_numpy(array(m)).fill_(0.5),
    "storage.copy_": lambda m: m.weight.untyped_storage().copy_((m.weight * 2).untyped_storage()),
    "storage.fill_": lambda m: m.weight.untyped_storage().fill_(0),
    "set_": lambda m: m.weight.set_(m.weight.detach() * 2),
    "swap_tensors": lambda m: torch.utils.swap_tensors(m.weight, fixed(m.weight * 2)),
    "load_state_dict": lambda m: m.load_state_dict(doubled(m)),
    "assign": lambda m: m.load_state_dict(doubled(m), assign=True),
    "an optimiser": optimised,
    "inference mode": in_inference_mode,
    "init": lambda m: nn.init.constant_(m.weight, 0.1),
    "safetensors": from_a_file,
    "vector_to_parameters": from_a_vector,
    "setattr": lambda m: setattr(m, "weight", fixed(m.weight * 2)),
    "register_parameter": lambda m: m.register_parameter("weight", fixed(m.weight * 2)),
    "vars": lambda m: vars(m).update(weight=m.weight * 2),
    "vars of parameters": lambda m: vars(m).update(_parameters={**m._parameters, "weight": fixed(m.weight * 2)}),
    "prune": lambda m: prune.l1_unstructured(m, "weight", 0.5),
    "weight norm": parametrised,
    "half": lambda m: m.half(),
}
