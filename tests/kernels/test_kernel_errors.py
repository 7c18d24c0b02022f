"""What a wrong argument gets: an error that names operation and argument, before anything is launched."""

import pytest
import torch
from triton.runtime import interpreter

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.kernels._operator import fresh_counters

pytestmark = pytest.mark.interpreter

# Small workloads with every argument; elsewhere: tiny.
FULLEST = {
    "frame_embedding": "speakers", "router": "idle", "experts": "top2", "codebook_sum": "delayed",
    "convolution": "rows", "waveform": "rows",
}  # fmt: skip


def inputs_of(name, workload=None, dtype=torch.float32, **sizes):
    kernel = KERNELS[name]
    found = next(entry for entry in kernel.workloads if entry.name == (workload or FULLEST.get(name, "tiny")))
    return kernel.make("cpu", dtype, **{**found.sizes, **sizes})


ALL = {name: inputs_of(name) for name in KERNELS}  # read only
TENSORS = [
    pytest.param(name, argument, id=f"{name}-{argument}")
    for name, inputs in ALL.items()
    for argument, value in inputs.items()
    if isinstance(value, torch.Tensor)
]
FLOATS = [case for case in TENSORS if ALL[case.values[0]][case.values[1]].is_floating_point()]
STRIDED = {("experts", "gate"), ("experts", "up")}


@pytest.fixture(autouse=True)
def _no_launch(monkeypatch):
    def launched(self, *args, **kwargs):
        pytest.fail(f"{self.fn.__name__} was launched")

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launched)


def refuses(error, name, inputs, message):
    with pytest.raises(error, match=f"^{name}: {message}"):
        KERNELS[name].op(**inputs)


def test_a_launch_would_be_noticed():
    with pytest.raises(pytest.fail.Exception, match="_rotary_kernel was launched"):
        KERNELS["rotary"].op(**ALL["rotary"])


@pytest.mark.parametrize(("name", "argument"), TENSORS)
def test_one_axis_too_many_or_too_few(name, argument):
    tensor = ALL[name][argument]
    for wrong in (tensor[None], tensor.flatten()[0]):
        refuses(ValueError, name, {**ALL[name], argument: wrong}, rf"{argument} must have shape \[.*\], got \[")


@pytest.mark.parametrize(("name", "argument"), TENSORS)
def test_other_kind_of_number(name, argument):
    tensor = ALL[name][argument]
    for dtype in (torch.int16, torch.float64) if tensor.is_floating_point() else (torch.float32, torch.int16):
        wrong = tensor.to(dtype)
        refuses(TypeError, name, {**ALL[name], argument: wrong}, f"{argument} must be torch.*, got {dtype}")


@pytest.mark.parametrize(("name", "argument"), [case for case in FLOATS if case.id != "rotary-x"])
def test_mixed_precision(name, argument):
    """The first float settles the type, so a change to it is seen in the second; rotary's x is its only one."""
    message = rf"(\w+) must be torch.float32( like \w+)?, got torch.bfloat16|(\w+) must be .* like {argument}, got"
    refuses(TypeError, name, {**ALL[name], argument: ALL[name][argument].bfloat16()}, message)


@pytest.mark.parametrize(("name", "argument"), TENSORS)
def test_gaps_in_memory(name, argument):
    tensor = ALL[name][argument]
    apart = torch.stack([tensor, tensor], -1)[..., 0]
    refuses(ValueError, name, {**ALL[name], argument: apart}, rf"{argument} must be contiguous, got strides \(")


@pytest.mark.parametrize(
    ("name", "argument"), [case for case in TENSORS if ALL[case.values[0]][case.values[1]].ndim > 1]
)
def test_transposed(name, argument):
    tensor = ALL[name][argument]
    turned = tensor.mT.contiguous().mT
    if turned.is_contiguous():
        pytest.skip("of one row or column: the same either way")
    refuses(ValueError, name, {**ALL[name], argument: turned}, rf"{argument} must be contiguous, got strides \(")


@pytest.mark.parametrize(("name", "argument"), TENSORS)
def test_other_device(name, argument):
    """One tensor on meta: the dispatcher takes the fake for the kernel. Two real devices meet the kernel's check."""
    inputs = {**ALL[name], argument: ALL[name][argument].to("meta")}
    message = rf"({argument} must be on cpu like \w+, got meta|\w+ must be on meta like {argument}, got cpu)"
    refuses(ValueError, name, inputs, message)
    with pytest.raises(ValueError, match=f"^{name}: {message}"):
        KERNELS[name].op._init_fn(**inputs)


@pytest.mark.parametrize(("name", "argument"), FLOATS)
def test_misaligned(name, argument):
    tensor = ALL[name][argument]
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    shifted = room[1:].view(tensor.shape).copy_(tensor)
    message = f"{argument} must start at a multiple of 16 bytes, got an address that is 4 beyond one; clone it"
    refuses(ValueError, name, {**ALL[name], argument: shifted}, message)


def less(name, **rows):
    """The inputs with so many rows of some arguments."""
    return {**ALL[name], **{argument: ALL[name][argument][:n] for argument, n in rows.items()}}


EMPTY = {
    "frame_embedding": less("frame_embedding", ids=0, speaker_index=0),
    "add_rms_norm": less("add_rms_norm", x=0, residual=0),
    "rotary": less("rotary", x=0, positions=0),
    "qkv_projection": less("qkv_projection", x=0),
    "decode_attention": less("decode_attention", qkvg=0, block_table=0, positions=0),
    "prefill_attention": less("prefill_attention", qkvg=0),
    "output_projection": less("output_projection", y=0, residual=0),
    "router": less("router", x=0, state=0),
    "experts": less("experts", x=0, order=0, expert_weights=0),
    "head": less("head", x=0),
    "sample": less("sample", logits=0),
    "advance": less("advance", codes=0),
    "codebook_sum": less("codebook_sum", codes=0),
    "convolution": less("convolution", x=0),
    "transposed_convolution": less("transposed_convolution", x=0),
    "residual_unit": less("residual_unit", x=0),
    "waveform": less("waveform", x=0),
}


@pytest.mark.parametrize("name", KERNELS)
def test_empty_batch(name):
    refuses(ValueError, name, EMPTY[name], r"\w+ is empty: (M|B|T) must be at least 1, got shape \[0, ")


# Rows of so many elements do not begin at multiples of 16 bytes.
ODD = {
    "frame_embedding": {"D": 50},
    "add_rms_norm": {"D": 50},
    "qkv_projection": {"D": 50},
    "output_projection": {"K": 50},
    "router": {"R": 34},
    "experts": {"I": 42},
    "head": {"D": 50},
}


@pytest.mark.parametrize("name", ODD)
def test_odd_width(name):
    (axis, width), *_ = ODD[name].items()
    message = f"{axis} must be a multiple of {{}} for {{}}, got {width}"
    refuses(ValueError, name, inputs_of(name, **ODD[name]), message.format(4, torch.float32))
    even = width + (4 - width % 4)  # enough for fp32, not for bf16
    inputs = inputs_of(name, dtype=torch.bfloat16, **{axis: even})
    refuses(ValueError, name, inputs, f"{axis} must be a multiple of 8 for torch.bfloat16, got {even}")


@pytest.mark.parametrize("name", ["qkv_projection", "output_projection", "experts", "head"])
def test_too_many_rows_to_decode(name):
    refuses(
        ValueError, name, inputs_of(name, M=257), "at most 256 rows decode together, got 257; prefill=True takes any"
    )


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("qkv_projection", {"normed": True}),
        ("output_projection", {"residual": False}),
        ("experts", {"normed": True, "residual": False}),
    ],
    ids=["qkv_projection", "output_projection", "experts"],
)
def test_too_many_rows_for_another_engine(name, variant):
    refuses(ValueError, name, inputs_of(name, M=257, **variant), "at most 256 rows decode together, got 257")


def test_too_many_sequences_to_decode():
    refuses(ValueError, "decode_attention", inputs_of("decode_attention", B=257), "at most 256 rows decode .*, got 257")


def wrong(name, message, **changes):
    """The inputs with other values, which are functions of the old ones, and what is said of them."""
    return name, {**ALL[name], **{key: change(ALL[name][key]) for key, change in changes.items()}}, message


def sized(name, message, **sizes):
    """Inputs of other sizes."""
    return name, inputs_of(name, **sizes), message


def at(index, value):
    """A copy with one element changed."""

    def change(tensor):
        changed = tensor.clone()
        changed[index] = value
        return changed

    return change


def to(value):
    return lambda _: value


NONE = to(None)
# Columns of settings: the name, the range in the message, and numbers on both sides of it.
SETTINGS = (
    ("temperature", r"1e-07\.\.3\.4\d*e\+38", 0, float("inf")), ("top_k", r"1\.\.16777216", 0.5, 2**24 + 2),
    ("top_p", r"0\.\.1", -0.1, 1.5), ("min_p", r"0\.\.3\.4\d*e\+38", -1, float("inf")),
    ("window", r"0\.\.16777216", -1, 2**24 + 2), ("penalty", r"1\.\.3\.4\d*e\+38", 0.5, float("inf")),
    ("penalised codebooks", r"0\.\.16777216", -1, 2**24 + 2),
)  # fmt: skip
# Those that go through clips a step at a time.
STEPS = ("codebook_sum", "convolution", "transposed_convolution", "residual_unit", "waveform")
LAYERS = STEPS[1:]
SPANS = (
    (0, r"frames before the step \(spans\[:, 0\]\) must be in 0\.\.\d+, frames of a clip; got"),
    (1, r"frames of the step \(spans\[:, 1\]\) must be in 0\.\.\d, at most `frames`; got"),
    (2, r"frames of the clip \(spans\[:, 2\]\) must be in 0\.\.2147483647, or OPEN; got"),
)
PACKED = inputs_of("prefill_attention", "packed")
ATTENTIONS = ("decode_attention", "prefill_attention")


def plain(name, message, **changes):
    """`wrong` of an attention without temp and table."""
    inputs = inputs_of(name, "plain")
    return name, {**inputs, **{key: change(inputs[key]) for key, change in changes.items()}}, message


WRONG = [
    # Sizes that do not fit each other.
    wrong("add_rms_norm", r"weight must have shape \[D=48\], got \[47\]", weight=lambda w: w[:-1]),
    wrong("add_rms_norm", r"residual must have shape \[M=3, D=48\], got", residual=lambda x: x[:2]),
    wrong("rotary", r"positions must have shape \[M=5\], got \[4\]", positions=lambda p: p[:4]),
    wrong("rotary", r"table must have shape \[P, 2, DH/2=8\], got", table=lambda t: t[:, :, :4].clone()),
    wrong("rotary", r"table must have shape \[P, 2, DH/2=8\], got", table=lambda t: t[:, :1].clone()),
    wrong("frame_embedding", r"speaker_index must have shape \[M=5\]", speaker_index=lambda i: i[:4]),
    wrong("qkv_projection", r"wkv must have shape \[2, NKV, D=48\], got \[1, ", wkv=lambda w: w[:1]),
    wrong("output_projection", r"residual must have shape \[M=3, D=48\], got \[3, 4\]",
          residual=lambda x: x[:, :4].clone()),
    wrong("router", r"w2 must have shape \[R=24, R=24\], got \[16, 24\]", w2=lambda w: w[:16]),
    wrong("router", r"biases must have shape \[E=4\], got \[3\]", biases=lambda b: b[:3]),
    wrong("router", r"positions must have shape \[M=70\], got \[69\]", positions=lambda p: p[1:]),
    wrong("experts", r"up must have shape \[E=4, I=40, D=48\], got \[2, ", up=lambda w: w[:2]),
    wrong("experts", r"down must have shape \[E=4, D=48, I=40\], got", down=lambda w: w.mT.contiguous()),
    wrong("experts", r"order must have shape \[10\], got \[9\]", order=lambda o: o[:9]),
    wrong("experts", r"offsets must have shape \[5\], got \[4\]", offsets=lambda o: o[:4]),
    wrong("head", r"weight must have shape \[N, D=48\], got \[27, 44\]", weight=lambda w: w[:, :44].clone()),
    wrong("head", "weight must have a multiple of n_codebooks=4 rows, got 27", n_codebooks=to(4)),
    wrong("head", "weight must have a multiple of n_codebooks=0 rows, got 27", n_codebooks=to(0)),
    wrong("decode_attention", r"v_cache must have shape \[pages=6, page_size=8, HKV=2, DH=16\], got \[1, ",
          v_cache=lambda v: v[:1]),
    wrong("decode_attention", r"qkvg must have \(HQ \+ 2 \* HKV\) \* DH \+ HQ = 132 columns, got 128",
          qkvg=lambda x: x[:, :-4].clone()),
    wrong("prefill_attention", r"qkvg must have \(HQ \+ 2 \* HKV\) \* DH \+ HQ = 132 columns, got 128",
          qkvg=lambda x: x[:, 4:].clone()),
    *(plain(name, r"qkvg must have \(HQ \+ 2 \* HKV\) \* DH columns without temp and table, HQ a multiple of the "
            rf"cache's HKV=2 heads of DH=16, got {columns}", qkvg=lambda x, columns=columns: x[:, :columns].clone())
      for name in ATTENTIONS for columns in (127, 112, 64, 16)),
    *(wrong(name, "temp and table must be given together, or neither", **{argument: NONE})
      for name in ATTENTIONS for argument in ("temp", "table")),
    wrong("qkv_projection", r"wq must have shape \[NQ, D=48\], got \[64, 44\]", norm_weight=NONE,
          wq=lambda w: w[:, :44].clone()),
    wrong("output_projection", r"weight must have shape \[D, K=64\], got \[48, 60\]", residual=NONE,
          weight=lambda w: w[:, :60].clone()),
    wrong("router", r"down_weight must have shape \[R, D=48\], got \[24, 44\]", norm_weight=NONE,
          down_weight=lambda w: w[:, :44].clone()),
    wrong("experts", r"gate must have shape \[E, I, D=48\], got", norm_weight=NONE, gate=lambda w: w[..., :44]),
    sized("decode_attention", "temp must have a multiple of the cache's HKV=2 heads, got 5", HQ=5),
    sized("prefill_attention", "temp must have a multiple of the cache's HKV=2 heads", HQ=3),
    sized("prefill_attention", "temp must have at most 32 heads for each of the cache's HKV=2, got 66", HQ=66),
    sized("prefill_attention", "qkvg must have at most 32 heads for each of the cache's HKV=2, got 66", HQ=66,
          plain=True),
    wrong("prefill_attention", r"cu_seqlens must have shape \[B\+1=2\], got \[3\]",
          cu_seqlens=lambda c: torch.cat([c, c[-1:]])),
    wrong("sample", r"settings must have shape \[B=2, 8\], got \[2, 7\]", settings=lambda s: s[:, :7].clone()),
    wrong("sample", r"seeds must have shape \[B=2\], got \[1\]", seeds=lambda s: s[:1]),
    wrong("sample", r"last_seen must have shape \[B=2, C=3, V=30\], got \[2, 3, 29\]",
          last_seen=lambda x: x[..., 1:].clone()),
    wrong("sample", r"logits must have 3\.\.8192 codes a row, two of them end and padding, got 2",
          **dict.fromkeys(("logits", "last_seen"), lambda x: x[..., :2].clone())),
    wrong("sample", r"logits must have 3\.\.8192 codes a row, .*, got 8193",
          **dict.fromkeys(("logits", "last_seen"), lambda x: x[..., :1].repeat(1, 1, 8193))),
    wrong("advance", r"faults must have shape \[B=2, C=5\], got \[2, 4\]", faults=lambda f: f[:, :4].clone()),
    wrong("advance", r"eos_frames must have shape \[B=2\], got \[1\]", eos_frames=lambda e: e[:1]),
    wrong("advance", r"ids must have shape \[B=2, C\+1=6\], got \[2, 5\]", ids=lambda i: i[:, :5].clone()),
    wrong("advance", r"frames must have shape \[B=2, N, C\+1=6\], got", frames=lambda f: f[..., :5].clone()),
    sized("advance", "codes must have fewer than 32 codebooks, got 32", C=32),
    *(wrong(name, r"spans must have shape \[B=\d, 4\], got \[1, 4\]", spans=lambda s: s[:1]) for name in STEPS),
    *(wrong(name, r"spans must have shape \[B=\d, 4\], got \[\d, 3\]", spans=lambda s: s[:, :3].clone())
      for name in STEPS),
    wrong("codebook_sum", r"z must have shape \[B=6, R, D=20\], got \[6, 11, 19\]", z=lambda z: z[..., 1:].clone()),
    wrong("codebook_sum", "weight must have P=16 columns, got 32", weight=lambda w: w.repeat(1, 2)),
    wrong("codebook_sum", "weight must have P=16 columns, got 15", weight=lambda w: w[:, 1:].clone()),
    wrong("codebook_sum", "codes must have at least C=3 columns, got 2", codes=lambda c: c[..., :2].clone()),
    wrong("convolution", r"alpha must have shape \[Co=24\], got \[23\]", alpha=lambda a: a[:23]),
    wrong("convolution", r"residual must have shape \[B=7, Rr, Co=24\], got \[7, 89, 23\]",
          residual=lambda x: x[..., 1:].clone()),
    wrong("transposed_convolution", r"y must have shape \[B=2, Ry, Co=12\], got \[1, 27, 12\]", y=lambda y: y[:1]),
    wrong("residual_unit", r"act must have shape \[B=2, Ra, C=20\], got", act=lambda a: a[..., 1:].clone()),
    wrong("residual_unit", r"inner_weight must have shape \[C=20, C=20\], got \[20, 19\]",
          inner_weight=lambda w: w[:, 1:].clone()),
    wrong("waveform", r"weight must have shape \[1, K\], got \[2, 140\]", weight=lambda w: w.repeat(2, 1)),
    wrong("waveform", r"y must have shape \[B=7, Ry, 1\], got \[7, 83, 2\]", y=lambda y: y.repeat(1, 1, 2)),
    # Taps.
    *(wrong(name, rf"weight must hold an odd number of taps of \w+=20 channels, got {columns} columns",
            weight=lambda w, columns=columns: w[:, :columns].clone())
      for name in ("convolution", "residual_unit", "waveform") for columns in (139, 120, 19)),
    wrong("transposed_convolution", r"weight must have shape \[stride \* Co=36, 2 \* Ci=40\], got \[24, 40\]",
          stride=to(3)),
    wrong("transposed_convolution", r"weight must have shape \[.*=24, 2 \* Ci=40\], got \[24, 39\]",
          weight=lambda w: w[:, 1:].clone()),
    sized("residual_unit", "C must be at most 192, got 193; use two of convolution", C=193, taps=1),
    # Steps.
    *(wrong(name, "frames must be at least 1, got 0", frames=to(0)) for name in STEPS),
    *(wrong(name, f"{number} must be at least {least}, got {least - 1}", **{number: to(least - 1)})
      for name in LAYERS for number, least in (("rate", 1), ("lag", 0), ("short", 0))),
    *(wrong(name, "dilation must be at least 1, got 0", dilation=to(0)) for name in ("convolution", "residual_unit")),
    wrong("transposed_convolution", "stride must be at least 1, got 0", stride=to(0)),
    *(wrong(name, r"a step makes at most 2147418112 positions, got \d rows of \d+ frames of \d+; take fewer frames",
            frames=to(2**31 - 2**16)) for name in STEPS),
    # A step of so many inputs is small enough, but not of their outputs.
    wrong("transposed_convolution", "a step makes at most .*, got 2 rows of 268427265 frames of 8",
          frames=to(2**28 - 2**13 + 1)),
    *(wrong(name, rf"{what} {value}", spans=at((1, column), value))
      for name in STEPS for column, what in SPANS for value in (-1, 6)[: 1 + (column == 1)]),
    *(wrong(name, rf"{SPANS[0][1]} 2147483647", spans=at((1, 0), 2**31 - 1)) for name in STEPS),
    *((name, {**inputs_of(name, dtype=torch.bfloat16), "tf32": True},
       "tf32 is a way to multiply torch.float32, got torch.bfloat16") for name in STEPS),
    # Rings that a step does not fit.
    wrong("codebook_sum", "z must hold 5 positions, those of a step, got 4", z=lambda z: z[:, :4].clone()),
    wrong("codebook_sum", "codes must hold 7 positions, those that came of a step, got 6",
          codes=lambda c: c[:, :6].clone()),
    wrong("convolution", "x must hold 98 positions, those of a step and the taps around them, got 97",
          x=lambda x: x[:, :97].clone()),
    wrong("transposed_convolution", "x must hold 13 positions, those of a step and the one before, got 12",
          x=lambda x: x[:, :12].clone()),
    wrong("residual_unit", "x must hold 18 positions, those of a step and the taps around them, got 17",
          x=lambda x: x[:, :17].clone()),
    wrong("waveform", "x must hold 86 positions, those of a step and the taps around them, got 85",
          x=lambda x: x[:, :85].clone()),
    *(wrong(name, f"{ring} must hold {each} positions, those of a step, got {each - 1}",
            **{ring: lambda x, each=each: x[:, : each - 1].clone()})
      for name, each, *rings in (
          ("convolution", 80, "residual", "y", "act"), ("residual_unit", 12, "residual", "y", "act"),
          ("transposed_convolution", 24, "y", "act"), ("waveform", 80, "y"),
      )
      for ring in rings),
    # Heads that no tile takes.
    sized("rotary", "the head dimension must be a power of two from 16, got 24", DH=24),
    sized("rotary", "the head dimension must be a power of two from 16, got 8", DH=8),
    sized("decode_attention", "the head dimension must be a power of two .*, got 48", DH=48),
    sized("prefill_attention", "the head dimension must be a power of two .*, got 24", DH=24),
    # Numbers out of range.
    wrong("rotary", r"positions must be in 0\.\.39, the table's rows; got 40", positions=at(1, 40)),
    wrong("rotary", r"positions must be in 0\.\.39, the table's rows; got -1", positions=at(1, -1)),
    wrong("frame_embedding", r"ids of codes must be in 0\.\.10, .*; got 11", ids=at((1, 2), 11)),
    wrong("frame_embedding", r"ids of text must be in 0\.\.6, .*; got 7", ids=at((1, -1), 7)),
    wrong("frame_embedding", r"ids of codes must be in 0\.\.10, .*; got -1", ids=at((0, 0), -1)),
    wrong("frame_embedding", r"speaker_index must be in .*\.\.1, .*; got 2", speaker_index=at(0, 2)),
    wrong("frame_embedding", "table must hold more than 9 codebooks of codebook_vocab=12 rows, got 106",
          codebook_vocab=to(12)),
    wrong("frame_embedding", "table must hold more than 9 codebooks", codebook_vocab=to(0)),
    wrong("decode_attention", r"positions must be in -2147483648\.\.23, what .* hold, or negative: idle; got 24",
          positions=at(0, 24)),
    wrong("decode_attention", r"positions must be in -2147483648\.\.19, .*got 20", table=lambda t: t[:20].clone()),
    plain("decode_attention", r"positions must be in -2147483648\.\.39, .*; got 40", positions=at(0, 40)),
    plain("prefill_attention", r"starts \+ rows must be in 1\.\.40, .*; got 41", starts=at(2, 19)),
    wrong("decode_attention", r"block_table must be in 0\.\.5, the cache's pages; got 6", block_table=at((1, 0), 6)),
    wrong("prefill_attention", r"block_table must be in 0\.\.2, .*got -1", block_table=at((0, 0), -1)),
    wrong("prefill_attention", r"starts must be in 0\.\.23, .*; got 24", starts=at(0, 24)),
    wrong("prefill_attention", r"starts must be in 0\.\.23, .*; got -1", starts=at(0, -1)),
    wrong("prefill_attention", r"starts \+ rows must be in 1\.\.24, .*; got 25", starts=at(0, 5)),
    wrong("prefill_attention", r"longest must be in 1\.\.20, .*, got 0", longest=to(0)),
    wrong("prefill_attention", r"longest must be in 1\.\.20, .*, got 21", longest=to(21)),
    wrong("prefill_attention", r"rows of a sequence must be in 1\.\.19, .*; got 20", longest=to(19)),
    ("prefill_attention", {**PACKED, "cu_seqlens": at(2, 17)(PACKED["cu_seqlens"])},
     r"rows of a sequence must be in 1\.\.22, .*; got 0"),
    wrong("prefill_attention", r"the last of cu_seqlens must be in 20\.\.20, the rows of qkvg; got 19",
          cu_seqlens=at(1, 19)),
    wrong("prefill_attention", r"the first of cu_seqlens must be in 0\.\.0, the first row of qkvg; got 1",
          cu_seqlens=at(0, 1)),
    wrong("router", r"k must be in 1\.\.E=4, got 0", k=to(0)),
    wrong("router", r"k must be in 1\.\.E=4, got 5", k=to(5)),
    sized("router", "w3 must have at most 256 rows, one for each expert, got 257", E=257),
    wrong("experts", r"order must be in 0\.\.9, the slots; got 10", order=at(3, 10)),
    wrong("experts", r"order must be in 0\.\.9, the slots; got -1", order=at(3, -1)),
    wrong("experts", r"offsets must be in 0\.\.10, places in order; got 11", offsets=at(1, 11)),
    wrong("experts", r"steps of offsets must be in 0\.\.10, slots of an expert; got -", offsets=at(2, 0)),
    *(
        wrong("sample", rf"settings\[1\], {name}, must be in {accepted}, got {value}", settings=at((1, column), value))
        for column, (name, accepted, *beyond) in enumerate(SETTINGS)
        for value in (*beyond, float("nan"))
    ),
    wrong("advance", r"codes must be in 0\.\.10, the codes that last_seen has room for; got 11", codes=at((1, 1), 11)),
    wrong("advance", r"codes must be in 0\.\.10, .*; got -1", codes=at((1, 0), -1)),
    wrong("codebook_sum", r"codes must be in 0\.\.2147483647, codes; got -1", codes=at((1, 2, 2), -1)),
    # Arguments that only make sense together.
    wrong("frame_embedding", "speakers and speaker_index must be given together", speakers=NONE),
    wrong("frame_embedding", "speakers and speaker_index must be given together", speaker_index=NONE),
    wrong("router", "state and scale must be given together", state=NONE),
    wrong("router", "state and scale must be given together", scale=NONE),
    wrong("experts", r"order, offsets .* together, got \['order', 'expert_weights'\] alone", offsets=NONE),
    *(wrong(name, message, **dict.fromkeys(missing, NONE))
      for name in ("convolution", "transposed_convolution", "residual_unit")
      for message, *missing in (
          ("act and alpha must be given together, got act without alpha", "alpha"),
          ("act and alpha must be given together, got alpha without act", "act"),
          ("y or act must be given, got neither", "y", "act", "alpha"),
      )),
    wrong("experts", r"order, offsets .* together, got \['offsets'\] alone", order=NONE, expert_weights=NONE),
    wrong("experts", "without order, gate must hold one expert, got E=4",
          order=NONE, offsets=NONE, expert_weights=NONE),
    wrong("experts", r"up must have the strides of gate, \(.*\), got \(", up=torch.Tensor.contiguous),
    wrong("experts", "stride 1 of gate must be a multiple of 4 for torch.float32, got 49",
          **dict.fromkeys(("gate", "up"), lambda w: torch.nn.functional.pad(w, (0, 1))[..., :-1])),
    # Counters that programs cannot count in.
    *(
        (name, {**ALL[name], "counters": counters}, message)
        for name in ("decode_attention", "router", "experts")
        for counters, message in (
            (torch.zeros(64), r"counters must be one axis of int32 on cpu, got \[64\] of torch.float32"),
            (torch.zeros(8, 8, dtype=torch.int32), r"counters must be one axis of int32 on cpu, got \[8, 8\]"),
            (torch.zeros(128, dtype=torch.int32)[::2], r"counters must be contiguous, got strides \(2,\)"),
            (torch.zeros(1, dtype=torch.int32), r"counters must hold at least \d+ numbers, got 1"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "inputs", "message"), WRONG, ids=[f"{i}-{case[0]}" for i, case in enumerate(WRONG)])
def test_wrong_values(name, inputs, message):
    refuses(ValueError, name, inputs, message)


def test_counters_on_another_device():
    with pytest.raises(ValueError, match=r"^router: counters must be one axis of int32 on cpu, got .* on meta"):
        fresh_counters(torch.empty(3), 2, torch.zeros(4, dtype=torch.int32, device="meta"), "router")


def of_tiles(name, message):
    """Whether it is a limit of the launch, which the reference does not have."""
    return "at most 32 heads" in message or (name == "experts" and message.startswith("counters"))


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [pytest.param(*case, id=f"{i}-{case[0]}") for i, case in enumerate(WRONG) if not of_tiles(case[0], case[2])],
)
def test_wrong_values_where_the_reference_runs(name, inputs, message, monkeypatch):
    """On a CPU without the interpreter."""
    monkeypatch.setattr("zonos2_triton.kernels._operator.interpreted", lambda: False)
    refuses(ValueError, name, inputs, message)
