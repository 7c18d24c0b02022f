"""Sizes, by the names of the official ModelConfig, from those of params.json."""

from types import SimpleNamespace

from zonos2_triton.reference.config import Zonos2Config

RENAMED = {
    "num_layers": "n_layers", "hidden_size": "dim", "num_qo_heads": "heads", "num_kv_heads": "kv_heads",
    "intermediate_size": "ffn_dim", "moe_intermediate_size": "ffn_dim", "rms_norm_eps": "norm_eps",
    "num_experts_per_tok": "moe_router_topk",
}  # fmt: skip


class ModelConfig(SimpleNamespace):
    @classmethod
    def from_checkpoint_config(cls, given):
        c = Zonos2Config.from_params(vars(given))
        rotary = {"head_dim": c.head_dim, "rotary_dim": c.head_dim, "max_position": c.max_seqlen, "base": c.rope_theta}
        made = cls(**vars(c), **{name: getattr(c, own) for name, own in RENAMED.items()})
        made.quality_buckets, made.special_topk_layers = given.quality_buckets, dict(c.special_topk_layers)
        made.rotary_config, made.hidden_act = SimpleNamespace(**rotary, scaling=None), "silu"
        return made
