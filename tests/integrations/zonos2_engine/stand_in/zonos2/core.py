"""Requests, batches and the context of the stand-in package: the attributes that the official ones have."""

from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

_GLOBAL_CTX = None
TTSSamplingParams = SimpleNamespace


class Context:
    def __init__(self, page_size, attn_backend):
        self.page_size, self.attn_backend, self._batch = page_size, attn_backend, None

    @property
    def batch(self):
        return self._batch

    @contextmanager
    def forward_batch(self, batch):
        self._batch = batch
        try:
            yield
        finally:
            self._batch = None


@dataclass
class TTSReq:
    input_ids: Any
    table_idx: int
    cached_len: int
    output_len: int
    uid: int
    sampling_params: Any
    cache_handle: Any
    total_generated: int = 0

    def __post_init__(self):
        self.device_len = len(self.input_ids)

    @property
    def extend_len(self):
        return self.device_len - self.cached_len

    def complete_one(self):
        self.cached_len = self.device_len
        self.device_len += 1
        self.total_generated += 1

    def append_host(self, row):
        self.input_ids = self.input_ids.new_tensor([*self.input_ids.tolist(), row.tolist()])


class TTSBatch:
    speaker_emb_values = speaker_token_positions = None
    size = property(lambda batch: len(batch.reqs))
    padded_size = property(lambda batch: len(batch.padded_reqs))

    def __init__(self, reqs, phase):
        self.reqs, self.is_prefill, self.is_decode = reqs, phase == "prefill", phase == "decode"
