"""Which rank this is, where a model is built."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DistributedInfo:
    rank: int
    size: int


_TP_INFO = DistributedInfo(0, 1)
