"""The rank on which a model is built."""

from collections import namedtuple

DistributedInfo = namedtuple("DistributedInfo", "rank size")
_TP_INFO = DistributedInfo(0, 1)
