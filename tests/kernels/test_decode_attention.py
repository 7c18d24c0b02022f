import pytest
import torch

from tests.kernels.operator_suite import (
    CountingTests,
    PagedTests,
    assert_same_bits,
    at,
    interpreted,
    run,
    wrong,
    wrong_attention,
)
from zonos2_triton.kernels.decode_attention import _programs

DECODED = {"B": 6, "context": 80, "contexts": (80, 64, 47, 48, 20, 33), "HQ": 8, "HKV": 2, "DH": 64, "page_size": 64}


class TestDecodeAttention(CountingTests, PagedTests):
    name = "decode_attention"
    forms = ["no-preamble"]
    counted = "split-edges"
    accuracy = [DECODED]
    costs = {
        # keys and values of 4 heads at 1001 positions; the row in (3088) and out (2048); 64 cosines, 64 sines
        "decode-B1": ((2 * 4 * 128 * 1001 + 3088 + 2048) * 2 + 128 * 4, 2 * 2 * 16 * 128 * 1001),
        # of 16 sequences the same, but rows without 16 gates (3072), and no angles
        "no-preamble-B16": (16 * (2 * 4 * 128 * 1001 + 3072 + 2048) * 2, 16 * 2 * 2 * 16 * 128 * 1001),
    }
    wrong = [
        wrong(r"v_cache must have shape \[pages=6, page_size=8, HKV=2, DH=16\], got \[1, ", v_cache=lambda v: v[:1]),
        *wrong_attention(slice(128)),
        wrong("qk_temperature must have a multiple of the cache's HKV=2 heads, got 5", sizes={"HQ": 5}),
        wrong("the head dimension must be a power of two .*, got 48", sizes={"DH": 48}),
        wrong("at most 256 tokens decode .*, got 257; prefill_attention takes any number", sizes={"B": 257}),
        wrong(r"positions must be in -2147483648\.\.23, what .* hold, or negative: idle; got 24", positions=at(0, 24)),
        wrong(r"positions must be in -2147483648\.\.19, .*got 20", cos_sin_cache=lambda t: t[:20].clone()),
        wrong(r"positions must be in -2147483648\.\.39, .*; got 40", "no-preamble", positions=at(0, 40)),
        wrong(r"block_table must be in 0\.\.5, the cache's pages; got 6", block_table=at((1, 0), 6)),
    ]

    @interpreted
    def test_bits_do_not_depend_on_the_width_of_the_table(self):
        case = self.case("joins")
        wide = torch.nn.functional.pad(case.inputs["block_table"], (0, 40))
        assert_same_bits(run(case), run(case, block_table=wide))


@pytest.mark.parametrize(
    ("heads", "blocks", "programs"),
    [(4, 96, 32), (16, 96, 32), (64, 96, 8), (256, 96, 2), (1024, 96, 1), (4, 1, 1), (4, 7, 4), (256, 1, 1)],
)
def test_programs_fill_a_gpu_whatever_the_batch(heads, blocks, programs):
    assert _programs(512 // heads, 32, blocks) == programs
