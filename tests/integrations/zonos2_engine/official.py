"""The official zonos2 package on a CPU, if it is importable: its own classes, with plain PyTorch for GPU-only parts.

It is read from PYTHONPATH: the folder python/ of Zyphra/ZONOS2; checked with commit 8fee419.
"""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tests.integrations.zonos2_engine import torch_ops
from zonos2_triton.model import Zonos2Config
from zonos2_triton.model.weights.tiny import backbone_weights

# A dense layer, mixtures of one expert and of two, a dense layer: beside the golden params_b.
SIZES = {
    "n_layers": 4, "dim": 32, "head_dim": 16, "n_heads": 4, "n_kv_heads": 2, "ffn_dim_multiplier": 1.5,
    "multiple_of": 16, "codebook_size": 30, "eoa_id": 30, "audio_pad_id": 31, "moe_router_dim": 16,
    "max_seqlen": 64, "special_topk_layers": {"2": 2}, "speaker_embedding_dim": 8,
}  # fmt: skip
STAND_IN = Path(__file__).parent / "stand_in"
PAGES = 128  # of the cache, one position each


@contextmanager
def imported():
    """The imported package; afterwards it is removed from sys.modules."""
    official = _module
    with pytest.MonkeyPatch.context() as patch:
        for name, module in _stand_ins().items():
            patch.setitem(sys.modules, name, module)
        patch.setattr(torch.cuda.nvtx, "range", lambda *_: nullcontext())
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        try:
            patch.setattr(official("kernel"), "indexing", torch_ops.indexing)
            patch.setattr(official("kernel"), "store_cache", torch_ops.store_cache)
            patch.setattr(official("layers.moe.fused_moe.layer"), "fused_experts", torch_ops.fused_experts)
            patch.setattr(official("layers.attention"), "get_rope", _rope(official("layers.rotary")))
            yield official
        finally:
            _forget()


@contextmanager
def standing_in():
    """The package `stand_in` instead: the same names, attributes and shapes, without official code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STAND_IN)
        try:
            yield _module
        finally:
            _forget()


def _module(path):
    return import_module(f"zonos2.{path}")


def _forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "zonos2"]:
        del sys.modules[name]


def _stand_ins():
    names = ["sgl_kernel", "flashinfer"]
    names += [name for name in ("zmq", "msgpack") if find_spec(name) is None]
    made = {name: ModuleType(name) for name in names}
    if "zmq" in made:
        made["zmq.asyncio"] = made["zmq"].asyncio = ModuleType("zmq.asyncio")
    for name in ("gelu_and_mul", "silu_and_mul", "moe_align_block_size", "topk_softmax"):
        setattr(made["sgl_kernel"], name, None)  # named at import, called by fused_experts alone
    for name in ("rmsnorm", "fused_add_rmsnorm", "apply_rope_with_cos_sin_cache_inplace"):
        setattr(made["flashinfer"], name, getattr(torch_ops, name))
    return made


def _rope(module):
    """get_rope, for any even head dimension, and on the CPU while a model is built on the meta device."""
    original = module.get_rope

    @cache
    def get_rope(head_dim, rotary_dim, max_position, base, rope_scaling=None):
        with torch.device("cpu"):
            if head_dim in (64, 128, 256, 512):
                return original(head_dim, rotary_dim, max_position, base, rope_scaling)
            made = object.__new__(module.RotaryEmbedding)
            made.head_size, made._cos_sin_cache = head_dim, torch_ops.cos_sin_cache(head_dim, max_position, base)
            made.apply_rope_with_cos_sin_cache_inplace = torch_ops.apply_rope_with_cos_sin_cache_inplace
            return made

    return get_rope


def random_weights(params):
    return backbone_weights(Zonos2Config.from_params(params), torch.Generator().manual_seed(7))


def build(official, params, weights, dtype=torch.float32, rank=0, ranks=1, device="cpu"):
    """Zonos2ForCausalLM of a checkpoint, as the engine builds it, or one rank's part.

    device: not a CPU is for the stand-in alone.
    """
    stored = official("utils.hf").Zonos2Config
    known = {key: value for key, value in params.items() if hasattr(stored, key)} or params
    config = official("models.config").ModelConfig.from_checkpoint_config(stored(**known))
    official("distributed.info")._TP_INFO = official("distributed.info").DistributedInfo(rank, ranks)
    plain = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device("meta"):
            model = official("models.zonos2").Zonos2ForCausalLM(config)
    finally:
        torch.set_default_dtype(plain)
    state = dict(weights)
    if ranks > 1:  # the official loader slices the head too, which its class expects whole
        head = {"multi_output.weight": weights["multi_output.weight"]}
        state = official("models.weight")._shard_state_dict(state) | head
    model.load_state_dict({name: tensor.to(device, dtype).clone() for name, tensor in state.items()})
    for layer in model.layers.op_list:
        layer.attention.attn.rotary._cos_sin_cache = layer.attention.attn.rotary._cos_sin_cache.to(device)
    return model


class PlainAttention:
    """An attention backend of a few lines: whole sequences by torch's attention."""

    def __init__(self, config, kvcache, page_table):
        self.kvcache, self.page_table = kvcache, page_table

    def prepare_metadata(self, batch):
        rows = [torch.arange(req.cached_len, req.device_len, dtype=torch.int32) for req in batch.padded_reqs]
        batch.attn_metadata = SimpleNamespace(positions=torch.cat(rows), rows=[len(row) for row in rows])

    def forward(self, q, k, v, layer_id, batch):
        self.kvcache.store_kv(k, v, batch.out_loc, layer_id)
        found = []
        for req, rows in zip(batch.padded_reqs, q.split(batch.attn_metadata.rows), strict=True):
            pages = self.page_table[req.table_idx, : req.device_len].long()
            keys, values = self.kvcache.k_cache(layer_id)[pages, 0], self.kvcache.v_cache(layer_id)[pages, 0]
            mask = torch.ones(len(rows), len(keys), dtype=torch.bool).tril(len(keys) - len(rows))
            heads = (x.transpose(0, 1)[None] for x in (rows, keys, values))
            y = F.scaled_dot_product_attention(*heads, attn_mask=mask, enable_gqa=True)
            found.append(y[0].transpose(0, 1))
        return torch.cat(found)


class Run:
    """Runs a model with the official batches, cache and context. Frames are given, not sampled."""

    def __init__(self, official, model, attention=PlainAttention, ranks=1):
        config, dtype, self.device = model.config, model.out_norm.weight.dtype, model.out_norm.weight.device
        self.official, self.model = official, model
        layout = official("kvcache").KVCacheLayout.LayerFirst
        self.kvcache = official("kvcache.mha_pool").MHAKVCache(
            config.num_kv_heads, config.num_layers, config.head_dim, PAGES, dtype, layout, self.device
        )
        self.kvcache._kv_buffer.fill_(float("nan"))  # a read of unwritten cache shows
        self.page_table = torch.zeros(8, 64, dtype=torch.int32, device=self.device)
        self.backend = attention(config, self.kvcache, self.page_table)
        self.free = torch.randperm(PAGES, generator=torch.Generator().manual_seed(1)).int()
        self.context = official("core").Context(page_size=1, attn_backend=self.backend)
        self.reqs = []

    def add(self, prompt):
        made = self.official("core").TTSReq(
            input_ids=prompt.int(), table_idx=len(self.reqs), cached_len=0, output_len=20, uid=len(self.reqs),
            sampling_params=self.official("core").TTSSamplingParams(), cache_handle=None,
        )  # fmt: skip
        self.reqs.append(made)
        return made

    def batch(self, reqs, phase, padding=None):
        """A batch as the scheduler prepares it; padding: requests that only pad it."""
        batch = self.official("core").TTSBatch(reqs=reqs, phase=phase)
        batch.padded_reqs = reqs + (padding or [])
        lengths = [req.extend_len for req in reqs]
        out_loc, self.free = self.free[: sum(lengths)], self.free[sum(lengths) :]
        for req, pages in zip(reqs, out_loc.split(lengths), strict=True):
            self.page_table[req.table_idx, req.cached_len : req.device_len] = pages.to(self.device)
        batch.out_loc = F.pad(out_loc, (0, len(padding or []))).to(self.device)
        self.backend.prepare_metadata(batch)
        ids = torch.cat([req.input_ids[req.cached_len : req.device_len] for req in batch.padded_reqs])
        batch.input_ids = ids.to(self.device)
        return batch

    def capture(self, most):
        """The batch of a graph of that many requests: one dummy request, repeated."""
        self.kvcache._kv_buffer[:, :, 0], self.free = 0, self.free[self.free != 0]
        self.backend.init_capture_graph(64, [1, most], 10)
        captured = self.official("core").TTSBatch(reqs=[self.add(torch.zeros(1, 10))] * most, phase="decode")
        self.backend.prepare_for_capture(captured)
        return captured

    def step(self, reqs, phase, speaker=None):
        """Logits of every token [T, C, V]; advances the requests by one token. speaker: of the first request."""
        batch = self.batch(reqs, phase)
        if speaker is not None:
            batch.speaker_emb_values, batch.speaker_token_positions = speaker[None], torch.tensor([0])
        logits = self.forward(batch)
        for req in reqs:
            req.complete_one()
        return logits

    def forward(self, batch):
        with self.active(), self.context.forward_batch(batch):
            return self.model.forward()

    def append(self, reqs, frame):
        """Append a frame [C + 1] to each request."""
        for req, row in zip(reqs, frame, strict=True):
            req.append_host(row.int())

    @contextmanager
    def active(self):
        """Make the package's context this run's."""
        core = self.official("core")
        before, core._GLOBAL_CTX = core._GLOBAL_CTX, self.context
        try:
            yield
        finally:
            core._GLOBAL_CTX = before

    def generate(self, prompts, frames):
        """The prompts in one batch, then the frames [F, len(prompts), C + 1] one by one: the logits of each step."""
        reqs = [self.add(prompt) for prompt in prompts]
        found = [self.step(reqs, "prefill")]
        for frame in frames:
            self.append(reqs, frame)
            found.append(self.step(reqs, "decode"))
        return found


class Ranks:
    """Tensor-parallel ranks as threads that run in turns and wait for each other at every all-reduce."""

    def __init__(self, official, count):
        self.core, self.count = official("core"), count
        self.baton, self.partial = threading.Lock(), {}
        self.meeting = threading.Barrier(count, timeout=300)
        official("distributed.impl").DistributedCommunicator.plugins = [self]

    def all_reduce(self, x):
        context = self.core._GLOBAL_CTX  # each process has its own
        self.partial[int(threading.current_thread().name)] = x.clone()
        self.baton.release()
        self.meeting.wait()
        total = sum(self.partial[rank].double() for rank in range(self.count))
        self.meeting.wait()
        self.baton.acquire()
        self.core._GLOBAL_CTX = context
        return x.copy_(total)

    def run(self, work):
        def process(rank):
            threading.current_thread().name = str(rank)
            with self.baton, torch.inference_mode():
                try:
                    return work(rank)
                except BaseException:
                    self.meeting.abort()
                    raise

        with ThreadPoolExecutor(self.count) as pool:
            return [*pool.map(process, range(self.count))]
