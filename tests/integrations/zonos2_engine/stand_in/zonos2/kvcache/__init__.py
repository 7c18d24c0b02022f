"""Of the cache's layouts the only one that the engine uses."""

from enum import Enum


class KVCacheLayout(Enum):
    LayerFirst = 0
