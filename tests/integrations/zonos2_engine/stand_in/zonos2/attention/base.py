"""The interface of a backend, and a backend that combines two."""

from abc import ABC, abstractmethod


class BaseAttnBackend(ABC):
    @abstractmethod
    def forward(self, q, k, v, layer_id, batch): ...

    @abstractmethod
    def prepare_metadata(self, batch): ...

    @abstractmethod
    def init_capture_graph(self, max_seq_len, bs_list, frame_width=1): ...

    @abstractmethod
    def prepare_for_capture(self, batch): ...

    @abstractmethod
    def prepare_for_replay(self, batch): ...


class HybridBackend:
    def __init__(self, prefill_backend, decode_backend):
        self.prefill_backend, self.decode_backend = prefill_backend, decode_backend

    def _of(self, batch):
        return self.prefill_backend if batch.is_prefill else self.decode_backend

    def forward(self, q, k, v, layer_id, batch):
        return self._of(batch).forward(q, k, v, layer_id, batch)

    def prepare_metadata(self, batch):
        self._of(batch).prepare_metadata(batch)
