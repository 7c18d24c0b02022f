"""Values of warp-wide PTX instructions against layouts written out by hand and sums in fp64."""

import numpy as np
import pytest
import torch

from zonos2_triton.bench.compiler.ptx import matrix
from zonos2_triton.bench.compiler.ptx.parse import PtxError, UnknownInstruction

ALL = np.uint32(0xFFFFFFFF)
EVERY = np.ones((1, 32), bool)
BF16, F16 = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"


def split(opcode):
    return tuple(opcode.split("."))


def exchange(opcode, *sources, active=EVERY):
    with np.errstate(all="ignore"):
        return matrix.exchange(split(opcode)).function(active, *sources)


def multiply(opcode, a, b, c):
    with np.errstate(all="ignore"):
        return matrix.mma(split(opcode)).function(a, b, c)


# The PTX ISA's figure of the fragment of A for m16n8k16 with 16-bit elements, written out: which element of A,
# (row, column), is the lower half of registers 0 .. 3 of some lanes.
A_BY_HAND = {
    0: [(0, 0), (8, 0), (0, 8), (8, 8)],
    1: [(0, 2), (8, 2), (0, 10), (8, 10)],
    3: [(0, 6), (8, 6), (0, 14), (8, 14)],
    4: [(1, 0), (9, 0), (1, 8), (9, 8)],
    30: [(7, 4), (15, 4), (7, 12), (15, 12)],
    31: [(7, 6), (15, 6), (7, 14), (15, 14)],
}
# Of B, (row, column), registers 0 and 1; of C, the four numbers.
B_BY_HAND = {0: [(0, 0), (8, 0)], 1: [(2, 0), (10, 0)], 5: [(2, 1), (10, 1)], 31: [(6, 7), (14, 7)]}
C_BY_HAND = {0: [(0, 0), (0, 1), (8, 0), (8, 1)], 6: [(1, 4), (1, 5), (9, 4), (9, 5)]}


def halves(x, bits=16):
    """Numbers as bits of bf16, fp16, tf32 or fp8."""
    return x.view({16: torch.int16, 32: torch.int32, 8: torch.int8}[bits]).numpy().view(f"uint{bits}")


def pack(x, registers):
    """The registers [1, 32, n] of a fragment [16 or 8, k] of A, or of B transposed. Written as the ISA's formulas."""
    per = 4 // x.dtype.itemsize
    found = np.zeros((1, 32, registers, per), x.dtype)
    for lane in range(32):
        for i in range(registers * per):
            group, inside = divmod(lane, 4)
            if len(x) == 16:
                row = group if (i // per) % 2 == 0 else group + 8
                column = inside * per + i % per + (0 if i < 2 * per else 4 * per)
            else:
                row, column = group, inside * per + i % per + 4 * per * (i // per)
            found[0, lane, i // per, i % per] = x[row, column]
    return found.reshape(1, 32, -1).view(np.uint32)


def accumulators(c):
    """[1, 32, 4] of [16, 8]."""
    found = np.zeros((1, 32, 4), c.dtype)
    for lane in range(32):
        for i in range(4):
            found[0, lane, i] = c[lane // 4 + 8 * (i >= 2), 2 * (lane % 4) + i % 2]
    return found


def test_layouts_written_out():
    one, zero = np.uint16(0x3F80), np.zeros((1, 32, 4), np.uint32)
    b_ones = np.full((1, 32, 2), 0x3F803F80, np.uint32)
    for lane, places in A_BY_HAND.items():
        for r, (row, column) in enumerate(places):
            for high in (0, 1):
                a = np.zeros((1, 32, 4, 2), np.uint16)
                a[0, lane, r, high] = one
                b = np.zeros((16, 8), np.float32)
                b[column + high] = np.arange(1, 9)
                b = pack(halves(torch.from_numpy(b.T.copy()).bfloat16()), 2)
                d = multiply(BF16, a.reshape(1, 32, 8).view(np.uint32), b, zero)
                expected = np.zeros((16, 8), np.float32)
                expected[row] = np.arange(1, 9)
                assert np.array_equal(d.view(np.float32), accumulators(expected))
    for lane, places in B_BY_HAND.items():
        for r, (row, column) in enumerate(places):
            b = np.zeros((1, 32, 2, 2), np.uint16)
            b[0, lane, r, 0] = one
            a = np.zeros((16, 16), np.float32)
            a[:, row] = np.arange(1, 17)
            a = pack(halves(torch.from_numpy(a).bfloat16()), 4)
            d = multiply(BF16, a, b.reshape(1, 32, 4).view(np.uint32), zero)
            expected = np.zeros((16, 8), np.float32)
            expected[:, column] = np.arange(1, 17)
            assert np.array_equal(d.view(np.float32), accumulators(expected))
    number = np.arange(128, dtype=np.float32).reshape(16, 8)
    d = multiply(BF16, np.zeros((1, 32, 4), np.uint32), b_ones, accumulators(number).view(np.uint32))
    for lane, places in C_BY_HAND.items():
        assert d.view(np.float32)[0, lane].tolist() == [number[place] for place in places]


def case(kind, k, seed=0):
    """Fragments of a random product, and its factors in fp64: a, b, c, A [16, k], B [8, k], C [16, 8]."""
    torch.manual_seed(seed)
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "tf32": torch.float32, "e4m3": torch.float8_e4m3fn}[kind]
    bits = {"bf16": 16, "f16": 16, "tf32": 32, "e4m3": 8}[kind]
    x, y = torch.randn(16, k), torch.randn(8, k)
    if kind == "tf32":
        x, y = ((z.view(torch.int32) & ~0x1FFF).view(torch.float32) for z in (x, y))
    x, y, c = x.to(dtype), y.to(dtype), torch.randn(16, 8)
    registers = 16 * k * bits // 1024, 8 * k * bits // 1024
    a, b = pack(halves(x, bits), registers[0]), pack(halves(y, bits), registers[1])
    return a, b, accumulators(c.numpy()).view(np.uint32), x.double().numpy(), y.double().numpy(), c.double().numpy()


SHAPES = [("bf16", 16), ("bf16", 8), ("f16", 16), ("f16", 8), ("tf32", 8), ("tf32", 4), ("e4m3", 32)]


def wrong(kind, k, exchanged=None, lane=None):
    """How many results are not the rounded sum. exchanged: two registers of A. lane: a neighbour's B instead."""
    a, b, c, x, y, z = case(kind, k)
    if exchanged:
        a = a.copy()
        a[:, :, list(exchanged)] = a[:, :, list(exchanged[::-1])]
    if lane is not None:
        b = b.copy()
        b[:, lane] = b[:, lane ^ 1]
    d = multiply(f"mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32", a, b, c).view(np.float32)
    expected = accumulators((z + x @ y.T).astype(np.float32))
    return int((np.abs(d - expected) > np.spacing(np.abs(expected))).sum())


@pytest.mark.parametrize(("kind", "k"), SHAPES)
def test_products(kind, k):
    assert wrong(kind, k) == 0


def test_misplaced_registers_are_noticed():
    assert wrong("bf16", 16, exchanged=(1, 2)) > 100
    assert wrong("tf32", 8, exchanged=(0, 1)) > 100
    assert wrong("bf16", 16, lane=9) == 16  # the column of that lane


def test_one_rounding_to_nearest():
    """1 + 2^-24 + 2^-24 is no tie; each sum by itself would be one, and truncation would keep 1."""
    a, b = np.zeros((1, 32, 8), np.uint16), np.zeros((1, 32, 4), np.uint16)
    a[..., :2], b[..., :2] = 0x3980, 0x3980  # bf16 2^-12: columns 2t, 2t + 1, so 8 products of 2^-24
    c = np.full((1, 32, 4), 0x3F800000, np.uint32)
    d = multiply(BF16, a.view(np.uint32), b.view(np.uint32), c)
    assert set(d[0, :, 0].tolist()) == {0x3F800000 + 4}
    a[:, 1::4], a[:, 2::4], a[:, 3::4] = 0, 0, 0
    a[..., 1] = 0
    d = multiply(BF16, a.view(np.uint32), b.view(np.uint32), c)
    assert set(d[0, :, 0].tolist()) == {0x3F800000}  # one product of 2^-24: a tie, to even
    c[:] = 0x3F800001
    assert set(multiply(BF16, a.view(np.uint32), b.view(np.uint32), c)[0, :, 0].tolist()) == {0x3F800002}


def test_half_accumulators_and_integers():
    a, b, _, x, y, z = case("f16", 16)
    c = accumulators(z.astype(np.float16))
    d = multiply("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16", a, b, c.view(np.uint32))
    assert np.array_equal(
        d.view(np.float16), accumulators((z.astype(np.float16).astype(float) + x @ y.T).astype(np.float16))
    )
    rng = np.random.default_rng(0)
    x, y, z = rng.integers(-128, 128, (16, 32)), rng.integers(0, 256, (8, 32)), rng.integers(-9, 9, (16, 8))
    fragments = pack(x.astype(np.int8).view(np.uint8), 4), pack(y.astype(np.uint8), 2)
    c = accumulators(z.astype(np.int32)).view(np.uint32)
    d = multiply("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32", *fragments, c)
    assert np.array_equal(d.view(np.int32), accumulators((z + x @ y.T).astype(np.int32)))


def test_warps_do_not_mix():
    one, two = case("bf16", 16, 1), case("bf16", 16, 2)
    together = multiply(BF16, *(np.concatenate(pair) for pair in zip(one[:3], two[:3], strict=True)))
    assert np.array_equal(together, np.concatenate([multiply(BF16, *one[:3]), multiply(BF16, *two[:3])]))


def test_matrix_loads():
    tiles = np.random.default_rng(0).integers(0, 1 << 16, (3, 4, 8, 8)).astype(np.uint16)
    plain, transposed = matrix.fragments(tiles), matrix.fragments(tiles, transposed=True)
    for lane in range(32):
        row, column = lane // 4, 2 * (lane % 4)
        for n in range(4):
            low, high = plain[1, lane, n] & 0xFFFF, plain[1, lane, n] >> 16
            assert (low, high) == (tiles[1, n, row, column], tiles[1, n, row, column + 1])
            low, high = transposed[2, lane, n] & 0xFFFF, transposed[2, lane, n] >> 16
            assert (low, high) == (tiles[2, n, column, row], tiles[2, n, column + 1, row])
    for turned in (False, True):
        assert np.array_equal(matrix.matrices(matrix.fragments(tiles, turned), turned), tiles)
    [moved] = exchange("movmatrix.sync.aligned.m8n8.trans.b16", plain[:, :, 0], active=np.ones((3, 32), bool))
    assert np.array_equal(moved, transposed[:, :, 0])


VALUES = np.random.default_rng(1).integers(0, 1 << 32, (1, 32)).astype(np.uint32)


def shuffled(mode, lane, by, clamp, segment):
    """The lane that is read and whether it is in range, by the pseudocode of the PTX ISA."""
    last = (lane & segment) | (clamp & ~segment)
    if mode == "up":
        source = lane - by
        valid = source >= last
    else:
        source = {"down": lane + by, "bfly": lane ^ by, "idx": (lane & segment) | (by & ~segment)}[mode]
        valid = source <= last
    return (source if valid else lane), valid


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("segment", [0, 0b11000, 0b11100])
def test_shuffles(mode, segment):
    for by in (0, 1, 3, 5, 16, 31):
        for clamp in (0, 7, 31):
            c = np.uint32(clamp | segment << 8)
            value, valid = exchange(f"shfl.sync.{mode}.b32", VALUES, np.uint32(by), c, ALL)
            for lane in range(32):
                source, inside = shuffled(mode, lane, by, clamp, segment)
                assert (value[0, lane], valid[0, lane]) == (VALUES[0, source], inside)


def test_a_wrong_lane_is_noticed():
    sums = []
    for last in (1, 2):  # the last step of a sum over the warp, as it is, and from another lane
        x = np.arange(32, dtype=np.uint32)[None] ** 2
        for by in (16, 8, 4, 2, last):
            x = x + exchange("shfl.sync.bfly.b32", x, np.uint32(by), np.uint32(31), ALL)[0]
        sums.append((x == sum(i * i for i in range(32))).all())
    assert sums == [True, False]


def test_a_shuffle_from_a_lane_that_does_not_execute():
    active = EVERY.copy()
    active[0, 5] = False
    with pytest.raises(PtxError, match="lane 4 reads lane 5, which does not execute"):
        exchange("shfl.sync.bfly.b32", VALUES, np.uint32(1), np.uint32(31), ALL, active=active)


def test_reductions():
    parts = np.where(np.arange(32) < 8, 0x000000FF, 0xFFFFFF00).astype(np.uint32)[None]
    whole, low = VALUES[0], VALUES[0, :8]
    for name, function in (("add", np.sum), ("min", np.min), ("max", np.max)):
        for kind, dtype in (("s32", np.int32), ("u32", np.uint32)):
            [found] = exchange(f"redux.sync.{name}.{kind}", VALUES, ALL)
            assert set(found[0].tolist()) == {int(function(whole.view(dtype)).astype(dtype).view(np.uint32))}
            [found] = exchange(f"redux.sync.{name}.{kind}", VALUES, parts)
            assert set(found[0, :8].tolist()) == {int(function(low.view(dtype)).astype(dtype).view(np.uint32))}
    assert exchange("redux.sync.xor.b32", VALUES, ALL)[0][0, 3] == np.bitwise_xor.reduce(whole)
    floats = np.random.default_rng(0).normal(size=(1, 32)).astype(np.float32)
    floats[0, 3] = np.nan
    for name, function in (("min", np.nanmin), ("max", np.nanmax)):
        [found] = exchange(f"redux.sync.{name}.f32", floats.view(np.uint32), ALL)
        assert set(found.view(np.float32)[0].tolist()) == {float(function(floats))}
        [found] = exchange(f"redux.sync.{name}.NaN.f32", floats.view(np.uint32), ALL)
        assert set(found[0].tolist()) == {0x7FFFFFFF}


def test_votes_and_matches():
    p = VALUES % 3 == 0
    bits = sum(int(each) << lane for lane, each in enumerate(p[0]))
    assert set(exchange("vote.sync.ballot.b32", p, ALL)[0][0].tolist()) == {bits}
    for mode, function in (("all", np.all), ("any", np.any)):
        for q in (p, p | True, p & False):
            assert set(exchange(f"vote.sync.{mode}.pred", q, ALL)[0][0].tolist()) == {bool(function(q))}
    assert exchange("vote.sync.uni.pred", p & False, ALL)[0].all()
    few = VALUES % np.uint32(3)
    found, _ = exchange("match.any.sync.b32", few, ALL)
    for lane in range(32):
        assert found[0, lane] == sum(1 << other for other in range(32) if few[0, other] == few[0, lane])
    assert exchange("match.all.sync.b32", few, ALL)[1].any() == (len(set(few[0].tolist())) == 1)
    active = EVERY & (np.arange(32) >= 7)
    assert exchange("activemask.b32", active=active)[0][0, 9] == 0xFFFFFF80
    leader, elected = exchange("elect.sync", ALL, active=active)
    assert leader[0, 8] == 7
    assert np.flatnonzero(elected[0] & active[0]).tolist() == [7]


@pytest.mark.parametrize(
    "opcode",
    [
        "mma.sync.aligned.m16n8k16.row.row.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k64.row.col.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k32.row.col.f32.s8.s8.f32",
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64",
        "mma.sp.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32",
    ],
)
def test_an_unknown_product(opcode):
    with pytest.raises(UnknownInstruction, match=opcode):
        matrix.mma(split(opcode))


@pytest.mark.parametrize("opcode", ["shfl.up.b32", "redux.sync.add.f32", "vote.ballot.b32", "match.any.b32", "mov.b32"])
def test_an_unknown_exchange(opcode):
    with pytest.raises(UnknownInstruction, match=opcode):
        matrix.exchange(split(opcode))


# wgmma

BY_SWIZZLE = {0: 16, 3: 32, 2: 64, 1: 128}  # mode of a descriptor: bytes of a line


def descriptor(start, leading, stride, mode):
    return np.array([start >> 4 | (leading >> 4) << 16 | (stride >> 4) << 32 | mode << 62], np.uint64)


def test_addresses_of_a_swizzled_tile():
    """With 128 bytes, row r of a group of 8 lies at 128 r, its piece p of 16 bytes at place p ^ r."""
    places = matrix.tile_addresses(descriptor(2048 + 32, 0, 1024, 1), 16, False)[0]
    assert places[0, :9].tolist() == [2080, 2082, 2084, 2086, 2088, 2090, 2092, 2094, 2096]
    assert places[1, 0] == 2048 + 128 + 16 * (2 ^ 1)
    assert places[7, 8] == 2048 + 7 * 128 + 16 * (3 ^ 7)
    assert places[9, 0] == 2048 + 1024 + 128 + 16 * (2 ^ 1)
    along = matrix.tile_addresses(descriptor(0, 2048, 1024, 1), 128, True)[0]
    assert along[:, 0].tolist()[::64] == [0, 2048]
    assert along[8, 3] == 3 * 128 + 16 * (1 ^ 3)
    assert along[0, 9] == 1024 + 128 + 16


@pytest.mark.parametrize("mode", BY_SWIZZLE)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_tile_has_each_element_once(mode, transposed):
    span, rows = BY_SWIZZLE[mode], 64
    leading, stride = {False: (8 * 16 * 8, 128), True: (128, 8 * 16 * 8)}[transposed]
    if span > 16:
        leading, stride = 16 * span, 8 * span
    places = matrix.tile_addresses(descriptor(1024, leading, stride, mode), rows, transposed)[0]
    assert len(np.unique(places)) == 64 * 16
    assert (places % 2 == 0).all()
    assert ((places[:, 1::2] - places[:, ::2] == 2) if not transposed else (places[1::2] - places[::2] == 2)).all()


def test_tiles_that_are_not_known():
    with pytest.raises(UnknownInstruction, match="unlike swizzle"):
        matrix.tile_addresses(np.concatenate([descriptor(0, 0, 0, 1), descriptor(0, 0, 0, 2)]), 8, False)
    with pytest.raises(UnknownInstruction, match="base offset"):
        matrix.tile_addresses(descriptor(0, 0, 0, 1) | np.uint64(1 << 49), 8, False)
    with pytest.raises(UnknownInstruction, match="m64n8k8"):
        matrix.wgmma(split("wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32"))


def test_products_of_a_warpgroup():
    torch.manual_seed(0)
    x, y, c = torch.randn(64, 16).bfloat16(), torch.randn(24, 16).bfloat16(), torch.randn(64, 24)
    a = np.concatenate([pack(halves(x[16 * warp : 16 * warp + 16]), 4) for warp in range(4)])
    assert np.array_equal(matrix.warpgroup_rows(a)[0], halves(x))
    tiles = [[accumulators(c[16 * w : 16 * w + 16, 8 * j : 8 * j + 8].numpy()) for j in range(3)] for w in range(4)]
    before = np.concatenate([np.concatenate(row, 2) for row in tiles]).view(np.uint32)
    function = matrix.wgmma(split("wgmma.mma_async.sync.aligned.m64n24k16.f32.bf16.bf16")).function
    d = function(halves(x)[None], halves(y)[None], before).view(np.float32)
    exact = (c.double() + x.double() @ y.double().T).float()
    for warp in range(4):
        for j in range(3):
            expected = accumulators(exact[16 * warp : 16 * warp + 16, 8 * j : 8 * j + 8].numpy())[0]
            assert (np.abs(d[warp, :, 4 * j : 4 * j + 4] - expected) <= np.spacing(np.abs(expected))).all()
