"""Every kernel on every small workload of the catalogue, in the interpreter: exact, in bounds, free of races.

"Exact" is what `bench.verify` says. The programs of a launch run shuffled and in reverse; memory that was not written
is NaN; what lies beside an allocation must stay as it was.
"""

from functools import cache

import pytest
import torch
from torch.utils import _pytree as pytree

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.bench.proof.poison import poisoned
from zonos2_triton.bench.proof.verify import RATIO, Case, Mismatch, verify
from zonos2_triton.bench.specs.spec import Workload
from zonos2_triton.reference import vocoder_layers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# fp32 shows a change of order that half precision would round away, so that is where two orders are compared.
ORDERS = {"float32": ("reversed", 0), "bfloat16": (1,), "float16": (2,)}

pytestmark = pytest.mark.interpreter


def small(name):
    return [workload for workload in KERNELS[name].workloads if not workload.real]


@cache
def case(name, workload, dtype):
    """Read only."""
    found = next(entry for entry in KERNELS[name].workloads if entry.name == workload)
    return Case(KERNELS[name], found, dtype=DTYPES[dtype])


def run(of, order=None, **more):
    with checked(order=order) as checks, poisoned():
        outputs = of.run(**more)
    assert checks.launches
    return outputs


def assert_same_bits(ours, others):
    assert ours.keys() == others.keys()
    for name in ours:
        assert torch.equal(ours[name], others[name]), f"{name} has other bits"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "workload"),
    [pytest.param(name, entry.name, id=f"{name}-{entry.name}") for name in KERNELS for entry in small(name)],
)
def test_matches_the_reference_in_any_order(name, workload, dtype):
    of = case(name, workload, dtype)
    first, *others = [run(of, order) for order in ORDERS[dtype]]
    of.compare(first)
    for outputs in others:
        assert_same_bits(first, outputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_is_the_same_again(name, dtype):
    """With other memory under its results: nothing of what lay there before may be seen."""
    of = case(name, "tiny", dtype)
    assert_same_bits(run(of), of.run())


def spoiled(name, **changes):
    """The reference with other arguments: an operation that is a little wrong."""
    return lambda **inputs: KERNELS[name].reference(**{**inputs, **changes})


def touched(name, output, where, value):
    """The reference with one wrong element in a result, or in an argument that it changes."""

    def op(**inputs):
        results = KERNELS[name].reference(**inputs)
        target = inputs[output] if isinstance(output, str) else results if output is None else results[output]
        target[where] = value(target[where])
        return tuple(results) if isinstance(results, tuple) else results

    return op


WRONG = {
    "norm-epsilon": ("head", spoiled("head", eps=1e-6), "result: .*ratio to plain PyTorch"),
    "no-cap": ("head", spoiled("head", softcap=0.0), "result"),
    "one-element": ("experts", touched("experts", None, (2, 7), lambda x: x + 0.01), r"first at \(2, 7\).*oracle"),
    "nan": ("rotary", touched("rotary", None, (0, 0, 0), lambda x: x * float("nan")), r"first at \(0, 0, 0\): nan"),
    "not-a-copy": ("add_rms_norm", spoiled("add_rms_norm", residual=None), "sum"),
    "precision": (
        "add_rms_norm",
        lambda **inputs: KERNELS["add_rms_norm"].reference(
            **{key: value.bfloat16() if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
        ),
        "sum has dtype torch.bfloat16",
    ),
    "shape": ("rotary", lambda **inputs: inputs["x"][:1], "result has shape"),
    "cache-of-another": (
        "decode_attention",
        touched("decode_attention", "v_cache", (0, 0, 0, 0), lambda x: x + 1e-6),
        "must keep what it was",
    ),
    "cached-key": (
        "decode_attention",
        touched("decode_attention", "k_cache", slice(None), lambda x: x * 1.00001),
        "k_cache",
    ),
    "missing-key": (
        "decode_attention",
        lambda **inputs: KERNELS["decode_attention"].reference(**{**inputs, "positions": inputs["positions"] - 1}),
        "result",
    ),
    "router-choice": ("router", touched("router", 0, (1, 0), lambda x: (x + 1) % 4), "expert_ids"),
    "router-weight": ("router", touched("router", 1, (1, 0), lambda x: x * 1.000001), "expert_weights"),
    "router-order": ("router", touched("router", 4, slice(None), lambda x: x.flip(0)), "order"),
    "router-offsets": ("router", touched("router", 5, 0, lambda x: x + 1), "offsets"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_verification_notices(wrong):
    name, op, message = WRONG[wrong]
    with pytest.raises(Mismatch, match=f"^{name} tiny float32: .*{message}"):
        verify(KERNELS[name], small(name)[0], op=op)


def test_verification_reports():
    report = verify(KERNELS["decode_attention"], small("decode_attention")[0], op=KERNELS["decode_attention"].reference)
    assert [error.output for error in report.errors] == ["result", "k_cache", "v_cache"]
    assert [error.ratio for error in report.errors] == [1.0, 1.0, 0.0]  # values are copied
    assert (report.kernel, report.workload, report.ratio) == ("decode_attention", "tiny", 1.0)


# Workloads where programs do wait for one another.
COUNTED = [("decode_attention", "split-edges"), ("router", "two-tiles"), ("experts", "top2"), ("experts", "prefill"),
           ("decode_attention", "idle"), ("router", "idle"), ("experts", "idle-top2"), ("decode_attention", "plain"),
           ("experts", "sum-top2")]  # fmt: skip


@pytest.mark.parametrize(("name", "workload"), COUNTED, ids=["-".join(pair) for pair in COUNTED])
def test_counters_are_left_at_zero(name, workload):
    of = case(name, workload, "float32")
    counters = torch.zeros(1000, dtype=torch.int32)
    for order in (None, "reversed"):  # the second finds the counters as the first left them
        assert_same_bits(run(of, order, counters=counters), run(of, order))
        assert not counters.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("residual", [True, False], ids=["added", "alone"])
def test_no_weight_is_read_where_all_rows_are_idle(residual, k, dtype):
    """A product with a weight of NaN would be NaN, whatever else it is multiplied by."""
    kernel = KERNELS["experts"]
    inputs = kernel.make("cpu", DTYPES[dtype], M=17, D=64, I=48, E=4, k=k, idle=tuple(range(17)), residual=residual)
    weights = {name: inputs[name].fill_(torch.nan) for name in ("norm_weight", "gate", "up", "down")}
    want = inputs["x"] if residual else torch.zeros_like(inputs["x"])
    with checked(), poisoned():
        assert torch.equal(kernel.op(**{**inputs, **weights}), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["decode_attention", "prefill_attention"])
def test_a_page_table_of_positions_is_one_of_pages(name, dtype):
    """Engines number positions where this project numbers pages; the bits are the same, without temp and table too."""
    for workload in ("tiny", "plain"):
        of = case(name, workload, dtype)
        pages, size = of.inputs["block_table"], of.inputs["k_cache"].shape[1]
        single = {key: of.inputs[key].flatten(0, 1)[:, None] for key in of.kernel.mutates}
        single["block_table"] = (pages[..., None] * size + torch.arange(size, dtype=torch.int32)).flatten(1)
        want, got = run(of), run(of, **single)
        got |= {key: got[key].view(want[key].shape) for key in of.kernel.mutates}
        assert_same_bits(want, got)


@pytest.mark.parametrize("name", vocoder_layers.OPERATIONS)
def test_offsets_of_64_bits_are_the_same(name, monkeypatch):
    """As if a ring had 2^31 elements."""
    of = case(name, "delayed" if name == "codebook_sum" else "rows", "float32")
    want = run(of)
    monkeypatch.setattr("zonos2_triton.kernels._ring_conv.LONG_FROM", 0)
    assert_same_bits(want, run(of))


def test_a_ring_of_more_than_31_bits():
    """4 GiB of memory that nobody touches, but for the last places of a ring."""
    kernel, size = KERNELS["convolution"], {"B": 1, "frames": 2, "rate": 4, "Ci": 16, "Co": 16, "taps": 3}
    long = 2**27 + 64
    done = long // 4 - 4
    inputs = kernel.make("cpu", torch.float16, **size, rows=((done, 2, vocoder_layers.OPEN, 0),))
    at = torch.arange(4 * done - 2, 4 * done + 8)
    ring, count = torch.empty(1, long, 16, dtype=torch.float16), inputs["x"].shape[1]
    ring[:, at] = inputs["x"][:, at % count]
    got = {**inputs, "x": ring, "act": inputs["act"].clone()}
    with checked(races=False):
        kernel.op(**inputs)
        kernel.op(**got)
    assert torch.equal(got["act"], inputs["act"])


# The share of plain PyTorch's error that is a kernel's own, on samples so large that luck has no part in it.
# Sizes: the 8B model's, divided until the interpreter takes about a second.
D, HEADS = 256, {"HQ": 8, "HKV": 2, "DH": 64, "page_size": 64}
QKV = {"M": 32, "D": D, "NQ": 512, "NKV": 128, "G": 8}
OUT = {"M": 32, "K": 512, "D": D}
MIXTURE = {"D": D, "I": 128, "E": 4, "k": 2}
DENSE = {"D": D, "I": 256, "E": 1, "k": 1, "routed": False}
LOGITS = {"M": 32, "D": D, "N": 513, "codebooks": 9}
STEP = {"B": 2, "frames": 8, "rate": 8}
TAPS = {**STEP, "Ci": 96, "Co": 96, "taps": 7, "dilation": 3, "y": True}
FRAMES = {"M": 64, "D": 128, "columns": 10, "V": 64, "text": 20, "voices": 2}
DECODED = {"B": 6, "context": 80, "contexts": (80, 64, 47, 48, 20, 33), **HEADS}
PROMPTS = {"T": 70, "context": 0, "B": 2, "rows": (50, 20), "contexts": (0, 64), **HEADS}
CHOICE = {"M": 64, "D": D, "R": 64, "E": 16, "k": 2}
SUM = {"normed": True, "residual": False}
SAMPLES = {
    "frame_embedding": FRAMES,
    "frame_embedding no-norm": {**FRAMES, "norm": False},
    "add_rms_norm": {"M": 64, "D": 512},
    "rotary": {"M": 32, "H": 20, "DH": 64, "P": 6144},
    "qkv_projection": QKV,
    "qkv_projection normed": {**QKV, "normed": True},
    "qkv_projection prefill": {**QKV, "prefill": True},
    "decode_attention": DECODED,
    "decode_attention plain": {**DECODED, "plain": True},
    "prefill_attention": PROMPTS,
    "prefill_attention plain": {**PROMPTS, "plain": True},
    "output_projection": OUT,
    "output_projection no-residual": {**OUT, "residual": False},
    "output_projection prefill": {**OUT, "prefill": True},
    "router": CHOICE,
    "router normed": {**CHOICE, "M": 32, "normed": True},
    "experts": {"M": 24, **MIXTURE},
    "experts sum": {"M": 24, **MIXTURE, **SUM},
    "experts dense-sum": {"M": 32, **DENSE, **SUM},
    "experts dense": {"M": 32, **DENSE},
    "experts prefill": {"M": 40, "prefill": True, **MIXTURE},
    "head": LOGITS,
    "head prefill": {**LOGITS, "prefill": True},
    "codebook_sum": {"B": 2, "frames": 32, "C": 9, "V": 64, "K": 8, "D": 128},
    "convolution": {**TAPS, "residual": True},
    "convolution tf32": {**TAPS, "tf32": True},
    "transposed_convolution": {**STEP, "rate": 4, "Ci": 192, "Co": 48, "stride": 4},
    "residual_unit": {**STEP, "C": 96, "dilation": 3},
    "waveform": {**STEP, "rate": 32, "Ci": 96, "y": True},
}
# The interpreter sums each block of a product in fp64, which flatters fp32 alone.
SAME = 1.05  # the sums are plain PyTorch's or better ones; 5 % for what such a sample leaves to chance
ACCURACY = {  # the bound; then the worst output's ratio in fp32, bf16, fp16 (Triton 3.9's interpreter, x86, 2026-11-25)
    "frame_embedding": (SAME, 0.98, 1.00, 1.00),
    "frame_embedding no-norm": (SAME, 1.00, 1.00, 1.00),
    "add_rms_norm": (SAME, 1.00, 1.00, 1.00),
    "rotary": (SAME, 1.00, 1.00, 1.00),
    "qkv_projection": (SAME, 0.43, 1.00, 1.00),
    "qkv_projection normed": (SAME, 0.24, 1.00, 1.00),
    "qkv_projection prefill": (SAME, 0.35, 1.00, 1.00),
    "decode_attention": (RATIO, 1.29, 1.17, 1.16),  # softmax weights are rounded; fp32: 12 new keys are few
    "decode_attention plain": (RATIO, 0.37, 1.16, 1.16),  # keys are copied
    "prefill_attention": (RATIO, 0.95, 1.03, 1.07),  # softmax weights are rounded
    "prefill_attention plain": (RATIO, 0.44, 1.16, 1.17),
    "output_projection": (SAME, 0.30, 0.78, 0.77),
    "output_projection no-residual": (SAME, 0.26, 1.00, 1.00),
    "output_projection prefill": (SAME, 0.30, 0.78, 0.77),
    "router": (SAME, 0.48, 0.73, 0.78),
    "router normed": (SAME, 0.44, 0.92, 0.91),
    "experts": (SAME, 0.48, 0.84, 0.85),
    "experts sum": (SAME, 0.29, 0.60, 0.61),
    "experts dense-sum": (SAME, 0.26, 0.68, 0.67),
    "experts dense": (SAME, 0.46, 0.81, 0.80),
    "experts prefill": (SAME, 0.40, 0.85, 0.85),
    "head": (SAME, 0.50, 0.75, 0.75),
    "head prefill": (SAME, 0.44, 0.75, 0.75),
    "codebook_sum": (SAME, 0.15, 1.00, 1.00),
    "convolution": (SAME, 0.41, 0.80, 0.78),  # plain PyTorch rounds before the activation
    "convolution tf32": (SAME, 1.00, 0.68, 0.68),
    "transposed_convolution": (SAME, 0.29, 0.69, 0.46),
    "residual_unit": (SAME, 0.41, 0.72, 0.74),
    "waveform": (SAME, 0.21, 0.00, 0.00),  # in half precision plain PyTorch alone rounds
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sample", ACCURACY)
def test_accuracy(sample, dtype, record_property):
    bound, *measured = ACCURACY[sample]
    assert max(measured) <= bound <= RATIO
    of = Case(KERNELS[sample.split()[0]], Workload(sample, SAMPLES[sample]), dtype=DTYPES[dtype])
    report = of.compare(of.run())
    record_property("ratio", report.ratio)
    for error in report.errors:
        assert error.ratio <= bound, f"{error.output}: {error.ratio:.3f} of plain PyTorch's error"


# Operations with an argument less.
VARIANTS = [("frame_embedding", "no-norm"), ("qkv_projection", "normed"), ("decode_attention", "plain"),
            ("prefill_attention", "plain"), ("output_projection", "no-residual"), ("router", "normed"),
            ("experts", "sum"), ("experts", "dense-sum")]  # fmt: skip
FORMS = [*((name, "tiny") for name in KERNELS), *VARIANTS]
OF_EACH_FORM = pytest.mark.parametrize(("name", "workload"), FORMS, ids=["-".join(form) for form in FORMS])


@OF_EACH_FORM
def test_opcheck(name, workload):
    """Schema, what it says of changed arguments, fake results with static and symbolic sizes."""
    inputs = case(name, workload, "float32").inputs
    torch.library.opcheck(KERNELS[name].op, (), inputs)


@pytest.mark.parametrize("name", ["decode_attention", "router", "experts"])
def test_opcheck_with_counters(name):
    inputs = {**case(name, "tiny", "float32").inputs, "counters": torch.zeros(64, dtype=torch.int32)}
    torch.library.opcheck(KERNELS[name].op, (), inputs, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("dtype", DTYPES)
@OF_EACH_FORM
def test_meta_results_look_like_real_ones(name, workload, dtype):
    of = case(name, workload, dtype)
    meta = {key: value.to("meta") if isinstance(value, torch.Tensor) else value for key, value in of.inputs.items()}
    fake = of.kernel.op(**meta)
    fake = fake if isinstance(fake, tuple) else (fake,) if fake is not None else ()
    real = [value for key, value in run(of).items() if key not in of.kernel.mutates]
    assert [(x.shape, x.dtype, x.stride()) for x in fake] == [(x.shape, x.dtype, x.stride()) for x in real]


# Looked up beforehand: a compiler need not follow how the catalogue is made.
OPS = {name: kernel.op for name, kernel in KERNELS.items()}


class Everything(torch.nn.Module):
    """One call of each operation."""

    def forward(self, inputs):
        return {name: op(**inputs[name]) for name, op in OPS.items()}


def all_inputs():
    """Of `Everything`, copied: some are changed."""
    originals = {name: case(name, "tiny", "float32").inputs for name in KERNELS}
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, originals)


@pytest.mark.parametrize("way", ["compile", "export"])
def test_compilers_take_every_operation(way):
    """As one graph, with the same results and the same changes to the caches."""
    module, inputs, ours = Everything(), all_inputs(), all_inputs()
    want = module(inputs)
    if way == "compile":
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    else:
        compiled = torch.export.export(module, (all_inputs(),)).module()
    results = pytree.tree_leaves((want, inputs)), pytree.tree_leaves((compiled(ours), ours))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
