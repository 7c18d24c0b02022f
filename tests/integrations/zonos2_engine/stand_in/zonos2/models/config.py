"""Sizes, by the names of the official ModelConfig, from those of params.json."""

from types import SimpleNamespace


class ModelConfig(SimpleNamespace):
    @classmethod
    def from_checkpoint_config(cls, config):
        return cls(**_sizes(vars(config)))


def _sizes(p):
    dim, heads = p["dim"], p["n_heads"] or p["dim"] // p["head_dim"]
    width = -(-int(p["ffn_dim_multiplier"] * dim) // p["multiple_of"]) * p["multiple_of"]
    same = (
        "head_dim", "n_codebooks", "codebook_size", "eoa_id", "audio_pad_id", "text_vocab", "loss_softcap",
        "speaker_enabled", "speaker_embedding_dim", "speaker_lda_dim", "speaker_background_token_enabled",
        "accurate_mode_token_enabled", "speaking_rate_num_buckets", "quality_features", "quality_buckets",
        "moe_n_experts", "moe_router_dim", "moe_start_from_layer", "moe_end_from_layer",
    )  # fmt: skip
    rotary = SimpleNamespace(
        head_dim=p["head_dim"], rotary_dim=p["head_dim"], max_position=p["max_seqlen"], base=p["rope_theta"],
        scaling=None,
    )  # fmt: skip
    special = p.get("special_topk_layers") or {}
    return dict(
        {name: p[name] for name in same},
        num_layers=p["n_layers"], hidden_size=dim, num_qo_heads=heads, num_kv_heads=p["n_kv_heads"] or heads,
        intermediate_size=width, moe_intermediate_size=width, hidden_act="silu", rms_norm_eps=p["norm_eps"],
        rotary_config=rotary, num_experts_per_tok=p["moe_router_topk"], norm_topk_prob=False,
        special_topk_layers={int(layer): k for layer, k in special.items()},
        moe_balancing_strategy=p.get("moe_balancing_strategy", "legacy"),
    )  # fmt: skip
