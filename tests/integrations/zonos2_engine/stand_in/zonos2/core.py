"""Requests, batches and the context of the stand-in package: the attributes that the official ones have."""

from contextlib import contextmanager
from types import SimpleNamespace

_GLOBAL_CTX = None
TTSSamplingParams = SimpleNamespace


class Context(SimpleNamespace):
    _batch = None
    batch = property(lambda context: context._batch)

    @contextmanager
    def forward_batch(self, batch):
        self._batch = batch
        yield
        self._batch = None


class TTSReq(SimpleNamespace):
    total_generated = 0

    def __init__(self, **given):
        super().__init__(**given, device_len=len(given["input_ids"]))

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
