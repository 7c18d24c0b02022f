"""The names that the engine looks up when it is built."""

from zonos2.attention import create_attention_backend
from zonos2.engine.graph import GraphRunner

__all__ = ["GraphRunner", "create_attention_backend"]
