"""The planner: floors against figures worked out by themselves, memory by hand, bad input, the table of GPUs."""

import json
import sys
from dataclasses import asdict, replace

import pytest

from zonos2_triton import _settings
from zonos2_triton.bench.compiler.cubin_stats import TARGETS
from zonos2_triton.bench.planner.footprint import CODEC, ESTIMATE, MODEL, PRECISIONS, decoder, parameters
from zonos2_triton.bench.planner.plan import FRAME_US, Forecast, as_text, context_of, frames_to_sound, plan
from zonos2_triton.bench.specs.frame_cost import frame_cost
from zonos2_triton.bench.specs.gpus import GPUS, find_gpu, recognised
from zonos2_triton.model import cli

H200 = find_gpu("h200")
# An H200 as it was measured once: copies, reads and writes counted, and products.
COPYING = replace(H200, gb_per_s=4300, tflop_per_s=790)
BATCH_SIZES = (1, 4, 16, 64, 256)
GIGABYTES = (1.79, 4.43, 11.2, 18.7, 30.0)
MILLISECONDS = {
    "bf16": (0.417, 1.03, 2.60, 4.36, 6.97),
    "int8": (0.307, 0.63, 1.50, 2.70, 5.28),
    "int4": (0.256, 0.45, 0.98, 1.92, 4.49),
}
# Of one sequence.
MEGABYTES = {("qkv_projection", "output_projection"): 587, ("moe_experts",): 944, ("moe_experts (dense)",): 151}
MEGABYTES |= {("codebook_head",): 38, ("moe_router",): 14, ("decode_attention",): 57}
RTF, TIMES = (0.036, 0.089, 0.224, 0.375, 0.600), (28, 45, 71, 171, 426)


@pytest.mark.parametrize(("precision", "row"), MILLISECONDS.items())
def test_floors(precision, row):
    forecast = Forecast(COPYING, precision, 1000)
    assert [forecast.frame(n) / 1e3 for n in BATCH_SIZES] == pytest.approx(row, rel=0.01)


def test_bytes_and_real_time_factors():
    for batch_size, gigabytes, rtf, times in zip(BATCH_SIZES, GIGABYTES, RTF, TIMES, strict=True):
        frame = plan(COPYING, batch_size)["frame"]
        assert frame["bytes"] / 1e9 == pytest.approx(gigabytes, rel=0.01)
        assert frame["backbone"]["rtf"] == pytest.approx(rtf, rel=0.01, abs=5e-4)
        assert frame["backbone"]["times_real_time"] == pytest.approx(times, rel=0.02)
        assert frame["backbone"]["frames_per_s"] == pytest.approx(1e6 / frame["backbone"]["us"])
        assert frame["both"]["us"] == frame["backbone"]["us"] + frame["vocoder"]["us"]


def test_parts_of_a_frame():
    costs = frame_cost(MODEL, 1, 1000)
    found = {ops: sum(costs[op].bytes for op in ops) / 1e6 for ops in MEGABYTES}
    assert found == pytest.approx(MEGABYTES, rel=0.01, abs=0.5)


def test_parameters():
    counts = parameters()
    assert sum(counts.values()) == 7_668_118_208
    assert counts["experts"] == 24 * 16 * 3 * 3072 * 2048
    assert counts["dense FFN"] == 4 * 3 * 3072 * 2048
    assert counts["head"] == (9 * 1026 + 1) * 2048
    assert counts["embedding"] == (9 * 1026 + 520) * 2048
    assert counts["attention"] == 28 * ((2 * 16 * 128 + 2 * 4 * 128 + 16 + 1) * 2048 + 16)
    assert counts["speaker"] == 2048 * 1024 + 1024 + 1024 * 2048 + 2048


def memory(**options):
    return {each["name"]: each["bytes"] for each in plan(H200, **options)["memory"]["components"]}


def test_memory_by_default_is_that_of_loading():
    """A batch of 16, four contexts of 6,144 tokens; a token is 28 layers' keys and values of 4 heads of 128."""
    found = plan(H200)
    assert (found["max_batch_size"], found["kv_cache_tokens"], found["vocoder_dtype"]) == (16, 4 * 6144, "float32")
    components = memory()
    assert components["weights: experts"] == 2 * 24 * 16 * 3 * 3072 * 2048
    assert components["cache"] == 4 * 6144 * 28 * 2 * 4 * 128 * 2
    assert components["speaker encoder"] == 4 * 12_001_088
    assert components["rotary table"] == 6144 * 128 * 4
    embedding = 2 * (9 * 1026 + 520) * 2048
    assert components["embedding again, as one table"] == components["weights: embedding"] == embedding
    # All but the convolutions of one tap once more, as they are read.
    assert 0.9 < components["vocoder, packed"] / components["vocoder, as loaded"] < 1.01
    assert 0.3e9 < components["vocoder's rings"] < 1.1e9
    # Most of the state: when each code came last, and samples for the host to collect, of 27 frames or few more.
    last_seen, samples = 16 * 9 * 1026 * 4, 16 * 27 * 512 * 4
    assert last_seen + samples < components["state of the scheduler"] < 1.1 * (last_seen + samples)
    assert sum(components.values()) == found["memory"]["bytes"] == pytest.approx(19.25e9, rel=2e-3)
    estimates = [each["name"] for each in found["memory"]["components"] if each["kind"] == ESTIMATE]
    assert estimates == ["activations of a prefill", "context, kernels, graphs, allocator"]


def test_memory_follows_the_options():
    row = 28 * 2 * 4 * 128
    assert memory(kv_cache_tokens=100, max_batch_size=2)["cache"] == 2 * 64 * row * 2
    assert memory(max_batch_size=2)["cache"] == 2 * 6144 * row * 2
    assert memory(precision="fp32")["cache"] == 2 * memory()["cache"]
    assert memory(precision="fp32")["weights: experts"] == 2 * memory(precision="fp16")["weights: experts"]
    assert memory(vocoder_dtype="float16")["vocoder, as loaded"] == 54_247_777 * 2
    assert memory(vocoder_dtype="tf32") == memory()


def test_only_experts_shrink():
    full = memory()
    for name, share in (("int8", 0.5), ("int4", 4.25 / 16)):
        assert memory(precision=name) == full | {"weights: experts": share * full["weights: experts"]}


def test_a_faster_memory_and_a_larger_one():
    gpus = {name: plan(find_gpu(name)) for name in ("l4", "rtx4090", "rtx5090", "h100", "h200", "b200")}
    times = [found["frame"]["backbone"]["us"] for found in gpus.values()]
    assert times == sorted(times, reverse=True)
    assert [found["largest_batch"]["fit"] for found in gpus.values()] == [103, 103, 235, 256, 256, 256]


def test_how_many_are_in_real_time():
    l4 = find_gpu("l4")
    most = plan(l4, 1)["largest_batch"]["real_time"]
    assert 1 <= most < 256
    assert plan(l4, most)["frame"]["both"]["us"] <= FRAME_US < plan(l4, most + 1)["frame"]["both"]["us"]


@pytest.mark.parametrize("gb", [8, 12, 16])
def test_cards_that_the_weights_do_not_fit(gb):
    """The backbone in bf16 alone has 15.3 GB."""
    gpus = [each for each in GPUS if each.memory_gb == gb]
    assert gpus
    for each in gpus:
        assert plan(each)["largest_batch"]["fit"] == 0
        found = plan(each)["memory"]
        assert not found["fits"]
        assert not found["less"]["fits"]
        assert 16e9 < found["less"]["bytes"] < 17e9


@pytest.mark.parametrize(
    ("name", "asked", "less"),
    [
        ("rtx4090", {"max_batch_size": 256, "kv_cache_tokens": 300_000}, ("bf16", "float32", 103)),
        ("l4", {"precision": "fp32"}, ("bf16", "float16", 16)),
        ("rtx5090", {"max_batch_size": 256, "context": 6144, "kv_cache_tokens": 99_999_999}, ("bf16", "float32", 39)),
    ],
)
def test_less_that_fits_is_tried(name, asked, less):
    found = plan(find_gpu(name), **asked)["memory"]["less"]
    dtypes_and_sizes = ("precision", "vocoder_dtype", "max_batch_size", "kv_cache_tokens")
    options = {key: found[key] for key in dtypes_and_sizes} | {"context": asked.get("context", 1000)}
    assert (*options.values(),)[:3] == less
    tried = plan(find_gpu(name), **options)["memory"]
    assert tried["fits"] is found["fits"] is True
    assert tried["bytes"] == found["bytes"]
    if options["kv_cache_tokens"]:  # with a request more it no longer fits
        n = less[2]
        more = options | {"max_batch_size": n + 1, "kv_cache_tokens": options["kv_cache_tokens"] // n * (n + 1)}
        assert not plan(find_gpu(name), **more)["memory"]["fits"]


def test_a_cache_too_small_for_its_streams_says_so():
    """1,001 rows are 16 pages."""
    held = "the cache holds 24 requests of this context at once"
    assert [any(held in note for note in plan(H200, n)["notes"]) for n in (24, 25)] == [False, True]


def test_first_audio_by_hand():
    """All weights but embedding and speaker once, 24 frames, and the sound of 25."""
    found = plan(COPYING, 1, prompt=94)
    first = {name: each["us"] for name, each in found["first_audio"].items() if name != "frames"}
    read = 2 * (7_668_118_208 - parameters()["embedding"] - parameters()["speaker"])
    # Experts are drawn at random: 94 rows leave a fraction of (15/16)^94 of them unread.
    assert first["prefill"] == pytest.approx(read / 4.3e6, rel=0.01)
    assert found["first_audio"]["frames"] == 25
    assert first["frames_time"] == pytest.approx(24 * plan(COPYING, 1, context=94)["frame"]["backbone"]["us"])
    assert first["vocoder"] == pytest.approx(25 * found["frame"]["vocoder"]["us"])
    assert first["total"] == pytest.approx(first["prefill"] + first["frames_time"] + first["vocoder"])
    # Four times 2,000 rows are two pieces of 4,096 at most; each reads the weights, or takes its operations' time.
    one, eight = (plan(H200, n, prompt=1000)["first_audio"]["prefill"]["us"] for n in (1, 8))
    assert 2 * one < eight


def test_estimates_follow_the_switch_of_dependent_launch(run, monkeypatch):
    """Off, or on a GPU without it: launches one after the other alone."""
    monkeypatch.setattr(sys.modules[plan.__module__], "crowded", lambda launches: ["b after a"])
    rows = "frame of dependent launches", "no room to overlap: b after a"
    on, said = plan(H200)["estimate"], run("--gpu", "h200")[1]
    assert on["dependent_frame"]["us"] < on["frame"]["us"]
    assert all(row in said for row in rows)
    monkeypatch.setenv(_settings.PDL, "0")
    off, said = plan(H200)["estimate"], run("--gpu", "h200")[1]
    assert off["frame"] == on["frame"]
    assert (off["dependent_frame"], off["crowded"]) == (None, [])
    assert off["first_audio"]["us"] > on["first_audio"]["us"]
    assert not any(row in said for row in rows)
    monkeypatch.delenv(_settings.PDL)
    assert plan(find_gpu("a100-40gb"))["estimate"]["dependent_frame"] is None


def test_frames_until_there_is_sound():
    """Samples of a stream after n frames, as in tests/model/test_vocoder_runner.py; the host synchronises every 8."""
    heard = [(n - 8) * CODEC.hop - decoder().delay for n in (17, 25)]
    assert heard[0] <= 0 < heard[1]
    assert frames_to_sound() == 25


def test_what_has_no_kernels_says_so():
    for name in PRECISIONS:
        found = plan(H200, precision=name)
        said = any("no kernels in this project yet" in note for note in found["notes"])
        assert said == (not found["has_kernels"]) == name.startswith("int")


def test_a_full_context():
    """6,144 rows are 96 pages; its last frame reads the 6,143 before its own."""
    full, last = plan(H200, 1, context=6144), plan(H200, 1, context=6143)
    assert full["frame"] == last["frame"]
    assert full["memory"] == last["memory"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_batch_size": 0}, r"max_batch_size must be an integer in 1\.\.256, got 0"),
        ({"context": 6145}, r"context must be an integer in 1\.\.6144, got 6145"),
        ({"prompt": 1001}, r"prompt must be an integer in 1\.\.1000 = context, which it is part of, got 1001"),
        ({"precision": "int16"}, r"precision must be one of bf16, .*got 'int16'; did you mean 'int8' or 'int4'\?"),
        ({"kv_cache_tokens": 0}, r"kv_cache_tokens must be an integer in 1\.\.2147483647, got 0"),
        ({"vocoder_dtype": "float46"}, r"vocoder_dtype must be one of float32, .*got 'float46'; did you mean"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(H200, **arguments)


@pytest.fixture
def run(capsys):
    """The command: its exit status and what it prints."""
    return lambda *arguments: (cli.main(["plan", *arguments]), capsys.readouterr().out)


def test_command(run):
    status, said = run("--gpu", "H200")
    assert status == 0
    assert said == as_text(plan(H200)) + "\n"
    assert ["of", "141", "GB", "19.254", "fits"] in [line.split() for line in said.splitlines()]
    status, said = run("--gpu", "rtx4090", "--max-batch-size", "256", "--kv-cache-tokens", "300000")
    assert status == 1
    assert "DOES NOT FIT" in said
    options = "options=BatchingOptions(max_batch_size=103, kv_cache_tokens=105472)"
    assert f'Zonos2.load(..., vocoder_dtype="float32", {options})' in said
    assert ["fit,", "at", "this", "context", "103"] in [line.split() for line in said.splitlines()]
    status, said = run("--gpu", "rtx4080")
    assert status == 1
    assert "No options make it fit" in said
    status, said = run("--gpu", "rtx4060", "--dtype", "int8", "--kv-cache-tokens", "10")
    assert status == 1
    assert "the cache holds no request of this context: raise kv_cache_tokens" in said
    assert "Zonos2.load" not in said, "it takes no int8"
    assert run("--gpu", "")[0] == 2  # an empty name is no card


def test_command_without_a_card(run):
    status, said = run()
    assert status == 0
    lines = [line.split() for line in said.splitlines()]
    verdicts = {words[0]: words[4] for words in lines if words and words[0] in {each.name for each in GPUS}}
    assert verdicts == {each.name: "yes" if each.memory_gb >= 24 else "no" for each in GPUS}
    status, said = run("--max-batch-size", "256", "--kv-cache-tokens", "300000", "--json")
    assert status == 0
    found = json.loads(said)
    assert [each["gpu"] for each in found["gpus"]] == [asdict(each) for each in GPUS]
    assert found["gpus"][0]["frame"] == plan(H200, 256, kv_cache_tokens=300_000)["frame"]["both"]


def test_a_dtype_that_is_not_known_names_the_option(capsys):
    assert cli.main(["plan", "--dtype", "float64"]) == 2
    assert "--dtype must be one of bf16, fp16, fp32, int8, int4, got 'float64'" in capsys.readouterr().err


def test_command_in_json(run):
    status, said = run("--gpu", "mi300x", "--dtype", "int4", "--json")
    assert status == 0
    assert json.loads(said) == plan(find_gpu("mi300x"), precision="int4")
    asked = run("--gpu", "h200", "--dtype", "float16", "--vocoder-dtype", "bfloat16", "--json")[1]
    assert json.loads(asked) == plan(H200, precision="fp16", vocoder_dtype="bfloat16")  # names of load
    assert json.loads(said)["largest_batch"] == {"fit": 256, "real_time": 256, "both": 256, "most": 256}


def test_seconds_in_place_of_context(run):
    """A minute is 5,168 frames."""
    _, said = run("--gpu", "h200", "--seconds", "60", "--prompt", "100", "--json")
    assert json.loads(said)["context"] == 100 + 5168
    assert context_of(FRAME_US / 1e6, 94) == 95
    for wrong in (0.0, -1.0, 72.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"behind a prompt of 94 at most 70\.2, got"):
            context_of(wrong, 94)


def test_text_is_readable_at_100_columns():
    plans = [plan(H200, 256, "int8", 6144), *({**plan(H200), "gpu": asdict(known)} for known in GPUS)]
    assert max(len(line) for found in plans for line in as_text(found).splitlines()) <= 100


# The table of GPUs.

NAMES = {
    "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H100 PCIe": "h100-pcie", "A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-PCIE-40GB": "a100-40gb", "NVIDIA A10G": "a10g", "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "rtx-pro-6000", "AMD Instinct MI300X VF": "mi300x",
}  # fmt: skip
STRANGERS = (
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "Tesla T4",
    "CPU smoke run",
)  # fmt: skip


@pytest.mark.parametrize(("device_name", "name"), NAMES.items())
def test_torchs_names(device_name, name):
    assert recognised(device_name).name == find_gpu(device_name).name == name


def test_other_names():
    names = "RTX 4090", "GeForce RTX4090", "nvidia_rtx_4090", "rtx4090"
    assert {find_gpu(name).name for name in names} == {"rtx4090"}
    assert [recognised(name) for name in STRANGERS] == [None] * len(STRANGERS)


def test_an_unknown_name_is_answered_with_near_ones_and_all():
    known = ", ".join(each.name for each in GPUS)
    for wrong, hint in (("h10", r"; did you mean 'h100'.*"), ("abacus", "")):
        with pytest.raises(ValueError, match=rf"must be one of {known}, got '{wrong}'{hint}$"):
            find_gpu(wrong)


def test_the_table():
    assert len({known.name for known in GPUS}) == len(GPUS)
    assert find_gpu("h200").roofline == (4800, 989.5)
    for known in GPUS:
        assert known.arch in {*TARGETS, "gfx950"}  # the last one as gfx942
        # No GPU reads its memory faster than in 12 ms or slower than in 100; a sparse rate would be out of line.
        assert 0.012 < known.memory_gb / known.gb_per_s < 0.1
        assert 70 <= known.tflop_per_s * 1e3 / known.gb_per_s <= 450
