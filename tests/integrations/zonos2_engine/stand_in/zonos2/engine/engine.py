"""What the engine looks up while it is built."""

from zonos2.attention import create_attention_backend
from zonos2.engine.graph import GraphRunner


class Engine:
    def __init__(self, model, kvcache=None, page_table=None, attention_backend="auto"):
        self.attn_backend = create_attention_backend(attention_backend, model.config, kvcache, page_table)
        self.model = model
        self.graph_runner = GraphRunner(model=model, attn_backend=self.attn_backend, max_seq_len=8)
