"""Captures nothing; remembers what it would have captured."""


class GraphRunner:
    def __init__(self, model, attn_backend, max_seq_len):
        self.captured = dict(vars(model)), attn_backend, max_seq_len
