"""The one cache layout that the engine uses."""

from enum import Enum


class KVCacheLayout(Enum):
    LayerFirst = 0
