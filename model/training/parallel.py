"""Data parallel training: one process per device, as torchrun starts them."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int = 0
    count: int = 1

    def mean_(self, tensors: Iterable[Tensor]) -> None:
        """Each tensor becomes its mean over the processes, the same bits in all of them."""
        tensors = list(tensors)
        if self.count > 1:
            flat = torch.cat([tensor.flatten().float() for tensor in tensors])
            dist.all_reduce(flat)
            flat /= self.count
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))


def local_device(device: torch.device) -> torch.device:
    """The device of this process: torchrun numbers the processes of a machine."""
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun has started, joined by NCCL on GPUs and gloo on CPUs; else this one alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
