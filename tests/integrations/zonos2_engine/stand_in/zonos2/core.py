"""Requests, batches and the context of the stand-in package: the attributes that the official ones have."""

from contextlib import contextmanager


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


_GLOBAL_CTX = None


def get_global_ctx():
    return _GLOBAL_CTX


class TTSSamplingParams:
    def __init__(self, **given):
        self.temperature, self.topk, self.top_p, self.min_p = 1.15, 106, 0.0, 0.18
        self.repetition_window, self.repetition_penalty, self.repetition_codebooks, self.seed = 50, 1.2, 8, None
        vars(self).update(given)


class TTSReq:
    def __init__(self, input_ids, table_idx, cached_len, output_len, uid, sampling_params, cache_handle):
        self.input_ids, self.table_idx, self.cached_len, self.uid = input_ids, table_idx, cached_len, uid
        self.sampling_params, self.device_len, self.total_generated = sampling_params, len(input_ids), 0

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

    def __init__(self, reqs, phase):
        self.reqs, self.phase = reqs, phase

    @property
    def is_prefill(self):
        return self.phase == "prefill"

    @property
    def is_decode(self):
        return self.phase == "decode"

    @property
    def size(self):
        return len(self.reqs)

    @property
    def padded_size(self):
        return len(self.padded_reqs)
