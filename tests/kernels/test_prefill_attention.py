import torch

from tests.kernels.operator_suite import PagedTests, at, wrong, wrong_attention

HEADS = {"HQ": 8, "HKV": 2, "DH": 64, "page_size": 64}
PROMPTS = {"T": 70, "context": 0, "B": 2, "rows": (50, 20), "contexts": (0, 64), **HEADS}


class TestPrefillAttention(PagedTests):
    name = "prefill_attention"
    forms = ["no-preamble"]
    accuracy = [PROMPTS]
    costs = {
        # 32 * 33 / 2 pairs of positions; keys and values of 32; 32 rows in and out; 32 angles of 128
        "prefill-32": ((2 * 4 * 128 * 32 + 32 * (3088 + 2048)) * 2 + 32 * 128 * 4, 2 * 2 * 16 * 128 * 528),
        # 2048 * 2049 / 2 pairs; rows without gates, no angles
        "no-preamble-2048": ((2 * 4 * 128 * 2048 + 2048 * (3072 + 2048)) * 2, 2 * 2 * 16 * 128 * 2098176),
    }
    wrong = [
        *wrong_attention(slice(4, None)),
        wrong("qk_temperature must have a multiple of the cache's HKV=2 heads", sizes={"HQ": 3}),
        wrong(
            "qk_temperature must have at most 32 heads for each of .* HKV=2, got 66", sizes={"HQ": 66}, launch_only=True
        ),
        wrong("qkvg must have at most 32 heads .*, got 66", sizes={"HQ": 66, "no_preamble": True}, launch_only=True),
        wrong(r"cu_seqlens must have shape \[B\+1=2\], got \[3\]", cu_seqlens=lambda c: torch.cat([c, c[-1:]])),
        wrong("the head dimension must be a power of two .*, got 24", sizes={"DH": 24}),
        wrong(r"cache_seqlens \+ tokens must be in 1\.\.40, .*; got 41", "no-preamble", cache_seqlens=at(2, 19)),
        wrong(r"block_table must be in 0\.\.2, .*got -1", block_table=at((0, 0), -1)),
        wrong(r"cache_seqlens must be in 0\.\.23, .*; got 24", cache_seqlens=at(0, 24)),
        wrong(r"cache_seqlens \+ tokens must be in 1\.\.24, .*; got 25", cache_seqlens=at(0, 5)),
        wrong(r"max_seqlen_q must be in 1\.\.20, .*, got 0", max_seqlen_q=0),
        wrong(r"max_seqlen_q must be in 1\.\.20, .*, got 21", max_seqlen_q=21),
        wrong(r"tokens of a sequence must be in 1\.\.19, .*; got 20", max_seqlen_q=19),
        wrong(r"tokens of a sequence must be in 1\.\.22, .*; got 0", "packed", cu_seqlens=at(2, 17)),
        wrong(r"the last of cu_seqlens must be in 20\.\.20, the tokens of qkvg; got 19", cu_seqlens=at(1, 19)),
        wrong(r"the first of cu_seqlens must be in 0\.\.0, the first token of qkvg; got 1", cu_seqlens=at(0, 1)),
    ]
