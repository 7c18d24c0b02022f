"""Keys and values by layer and page."""

import torch
from zonos2.distributed import info

from tests.integrations.zonos2_engine import torch_ops


class MHAKVCache:
    def __init__(self, num_kv_heads, num_layers, head_dim, num_pages, dtype, kv_layout, device):
        heads = num_kv_heads // info._TP_INFO.size
        self._kv_buffer = torch.empty(2, num_layers, num_pages, 1, heads, head_dim, dtype=dtype, device=device)

    def k_cache(self, layer):
        return self._kv_buffer[0, layer]

    def v_cache(self, layer):
        return self._kv_buffer[1, layer]

    def store_kv(self, k, v, out_loc, layer):
        torch_ops.store_cache(self.k_cache(layer), self.v_cache(layer), out_loc, k, v)
