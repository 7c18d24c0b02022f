"""The names that the engine looks up when it is built."""

from zonos2.attention import create_attention_backend  # noqa: F401
from zonos2.engine.graph import GraphRunner  # noqa: F401
