"""The registry of attention backends."""

from zonos2.attention.base import BaseAttnBackend, HybridBackend  # noqa: F401


class Registry:
    def __init__(self):
        self._registry = {"fi": lambda config, kvcache, page_table: "fi"}

    def supported_names(self):
        return list(self._registry)


SUPPORTED_ATTENTION_BACKENDS = Registry()


def create_attention_backend(backend, config, kvcache, page_table):
    if backend == "auto":
        backend = "fi"
    return SUPPORTED_ATTENTION_BACKENDS._registry[backend](config, kvcache, page_table)
