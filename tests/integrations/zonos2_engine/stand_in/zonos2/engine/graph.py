"""Captures nothing, but keeps the attributes of the model at its construction."""


class GraphRunner:
    def __init__(self, model, attn_backend, max_seq_len):
        self.captured = dict(vars(model)), attn_backend, max_seq_len
