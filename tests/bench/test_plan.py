"""The planner: floors against figures worked out by themselves, memory by hand, what counts as measured, bad input."""

import argparse
import copy
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from zonos2_triton.bench.planner import footprint
from zonos2_triton.bench.planner.footprint import CODEC, ESTIMATE, MODEL, PRECISIONS, parameters, vocoder_of
from zonos2_triton.bench.planner.forecast import FLOOR, FRAME_US, MEASURED, MEASURED_FLOOR, Forecast, frames_to_sound
from zonos2_triton.bench.planner.plan import command, context_of, plan, usual_prompt
from zonos2_triton.bench.specs.gpus import CARDS, card
from zonos2_triton.model.runtime.batch_state import Slots
from zonos2_triton.model.runtime.vocoder_runner import Speech
from zonos2_triton.reference.sampling import Sampling

H200 = card("h200")
# An H200 as it was measured once: copies, reads and writes counted, and products.
COPYING = replace(H200, gb_per_s=4300, tflop_per_s=790)
STREAMS = (1, 4, 16, 64, 256)
GIGABYTES = (1.79, 4.43, 11.2, 18.7, 30.0)
MILLISECONDS = {
    "bf16": (0.417, 1.03, 2.60, 4.36, 6.97),
    "int8": (0.307, 0.63, 1.50, 2.70, 5.28),
    "int4": (0.256, 0.45, 0.98, 1.92, 4.49),
    "int8-everywhere": (0.215, 0.54, 1.41, 2.61, 5.19),
}
RTF, TIMES = (0.036, 0.089, 0.224, 0.375, 0.600), (28, 45, 71, 171, 426)
FLOORS = [(p, n, ms) for p, row in MILLISECONDS.items() for n, ms in zip(STREAMS, row, strict=True)]


def result(name="NVIDIA H200", rehearsal=False, **parts):
    """A result file's content: parts by name, each {item: what it holds}."""
    return {
        "schema": 2,
        "environment": {
            "card": name, "arch": "sm_90", "memory_gib": 139.8, "commit": "0123456789ab", "torch": "2.11",
            "triton": "3.6", "date": "2026-01-02T03:04:05+00:00", "rehearsal": rehearsal,
        },
        "parts": {
            part: {"items": {name: {"status": "passed", **item} for name, item in items.items()}, "not_run": {}}
            for part, items in parts.items()
        },
    }  # fmt: skip


CALIBRATION = {"copy": {"gb_per_s": 4000.0}, "matmul": {"tflop_per_s": 700.0}}
B16 = {"B16": {"median_us": 3000.0, "streams": 16, "context": 1000}}


@pytest.mark.parametrize(("precision", "streams", "milliseconds"), FLOORS)
def test_floors(precision, streams, milliseconds):
    forecast = Forecast(COPYING, PRECISIONS[precision], 1000, [])
    assert forecast.frame(streams).us / 1e3 == pytest.approx(milliseconds, rel=0.01)


@pytest.mark.parametrize(
    ("streams", "gigabytes", "rtf", "times"), list(zip(STREAMS, GIGABYTES, RTF, TIMES, strict=True))
)
def test_bytes_and_real_time_factors(streams, gigabytes, rtf, times):
    found = plan(COPYING, streams)
    assert found.cost.bytes / 1e9 == pytest.approx(gigabytes, rel=0.01)
    rates = found.rates(found.frame)
    assert rates["rtf"] == pytest.approx(rtf, rel=0.01, abs=5e-4)
    assert rates["times_real_time"] == pytest.approx(times, rel=0.02)
    assert rates["frames_per_s"] == pytest.approx(1e6 / found.frame.us)


def test_parameters():
    counts = parameters()
    assert sum(counts.values()) == 7_668_118_208
    assert counts["experts"] == 24 * 16 * 3 * 3072 * 2048
    assert counts["dense FFN"] == 4 * 3 * 3072 * 2048
    assert counts["head"] == (9 * 1026 + 1) * 2048
    assert counts["embedding"] == (9 * 1026 + 520) * 2048
    assert counts["attention"] == 28 * ((2 * 16 * 128 + 2 * 4 * 128 + 16 + 1) * 2048 + 16)
    assert counts["speaker"] == 2048 * 1024 + 1024 + 1024 * 2048 + 2048


def test_memory_of_sixteen_streams():
    """1,001 rows are 16 pages of 64; a row is 28 layers' keys and values of 4 heads of 128."""
    found = {part.name: part.bytes for part in plan(H200, 16).memory}
    assert found["weights: experts"] == 2 * 24 * 16 * 3 * 3072 * 2048
    assert found["cache"] == 16 * 16 * 64 * 28 * 2 * 4 * 128 * 2
    assert found["embedding again, as one table"] == found["weights: embedding"] == 2 * (9 * 1026 + 520) * 2048
    assert found["rotary table"] == 6144 * 128 * 4
    # 54.1 M parameters, and all but the convolutions of one tap once more as they are read.
    loaded = 54_247_777 * 2
    assert loaded < found["vocoder, float16, as loaded and packed"] < 2 * loaded + 1e6
    assert 0.3e9 < found["vocoder's rings"] < 1.1e9
    # Most of the state: when each code came last, and samples of two steps of 14 frames, for the host to collect.
    last_seen, samples = 16 * 9 * 1026 * 4, 2 * 16 * 14 * 512 * 4
    assert last_seen + samples < found["state of the loop"] < 1.02 * (last_seen + samples)
    assert sum(found.values()) == pytest.approx(18.19e9, rel=2e-3)


def test_the_loops_state_is_counted_once():
    """Rows of numbers are views of one tensor."""
    slots = Slots(MODEL, 16, 0, 17, torch.empty(0, dtype=torch.bfloat16))
    tensors = (slots.numbers, slots.block_table, slots.ids, slots.settings, slots.seeds, slots.last_seen, slots.frames)
    assert footprint._held(vars(slots)) == sum(tensor.nbytes for tensor in tensors)


def test_sizes_by_precision():
    def experts(name):
        return next(part.bytes for part in plan(H200, 1, name).memory if part.name == "weights: experts")

    full = experts("bf16")
    assert [experts(name) / full for name in PRECISIONS] == [1, 1, 2, 0.5, 4.25 / 16, 0.5]
    attention = {name: plan(H200, 1, name).memory for name in ("int8", "int8-everywhere")}
    sizes = [next(part.bytes for part in memory if part.name == "weights: attention") for memory in attention.values()]
    assert sizes == [parameters()["attention"] * 2, parameters()["attention"]]


def test_only_what_is_no_shape_is_an_estimate():
    kinds = {part.name: part.kind for part in plan(H200).memory}
    assert {name for name, kind in kinds.items() if kind == ESTIMATE} == {
        "activations of a prefill", "context, kernels, allocator",
    }  # fmt: skip


def needs(**arguments):
    found = plan(**{"card": H200, **arguments})
    return found.needed, found.both.us, found.first_audio.total.us


# Which of bytes, time of a frame and first audio rise. A prompt's rows are in the context already.
RISING = {
    "streams": ((1, 2, 16, 17, 256), slice(3)),
    "context": ((100, 1000, 6144), slice(2)),
    "prompt": ((1, 10, 900), slice(2, 3)),
    "precision": (("int4", "int8", "bf16", "fp32"), slice(3)),
}


@pytest.mark.parametrize(("argument", "values", "which"), [(name, *row) for name, row in RISING.items()])
def test_more_of_anything_costs_more(argument, values, which):
    for less, more in pairwise(needs(**{argument: value})[which] for value in values):
        assert all(a < b for a, b in zip(less, more, strict=True))


def test_a_faster_memory_and_a_larger_one():
    by_name = {name: plan(card(name)) for name in ("l4", "a10", "rtx4090", "h100", "h200", "b200")}
    times = [found.frame.us for found in by_name.values()]
    assert times == sorted(times, reverse=True)
    assert by_name["l4"].real_time < by_name["h100"].real_time <= by_name["b200"].real_time == 256
    assert [plan(card(name)).fit for name in ("rtx4090", "rtx5090", "h100")] == [107, 246, 256]


def test_how_many_fit_is_the_most_that_fit():
    found = plan(card("rtx4090"))
    assert plan(card("rtx4090"), found.fit).fits
    assert not plan(card("rtx4090"), found.fit + 1).fits


def test_how_many_are_in_real_time():
    l4 = card("l4")
    most = plan(l4).real_time
    assert 1 <= most < 256
    assert plan(l4, most).both.us <= FRAME_US < plan(l4, most + 1).both.us
    assert any("not in real time" in note for note in plan(l4, most + 1).notes())


def test_what_does_not_fit_says_what_would():
    found = plan(card("rtx4090"), 128)
    assert not found.fits
    assert found.advice[0] == "107 streams of this context"
    assert found.advice[1] == "precision int8 (no kernels yet), int4 (no kernels yet), int8-everywhere (no kernels yet)"
    assert found.advice[2] == "a card of 32 GB: rtx5090"
    assert plan(card("rtx4090"), 107).advice == ()
    alone = plan(card("l4"), 1, "fp32", 6144)
    assert alone.fit == 0
    assert alone.advice[0].startswith("precision bf16, fp16, ")


def test_where_only_another_card_would_do():
    small = replace(card("l4"), memory_gb=1)
    found = plan(small, 256, "fp32", 6144)
    assert found.fit == 0
    assert found.advice == ("a card of 256 GB: mi325x",)


def test_first_audio_by_hand():
    """All weights but embedding and speaker once, 24 frames, and the sound of 25."""
    found = plan(COPYING, prompt=94)
    first = found.first_audio
    read = 2 * (7_668_118_208 - parameters()["embedding"] - parameters()["speaker"])
    assert first.prefill.us == pytest.approx(read / 4.3e6, rel=0.01)
    # Experts are drawn at random: 94 rows leave a fraction of (15/16)^94 of them unread.
    assert first.frames == 25
    assert first.frames_time.us == pytest.approx(24 * plan(COPYING, context=94).frame.us)
    assert first.vocoder.us == pytest.approx(25 * found.vocoder.us)
    assert first.total.us == pytest.approx(first.prefill.us + first.frames_time.us + first.vocoder.us)


def test_prompts_of_many_streams_come_in_pieces():
    """Four times 2,000 rows are two pieces of 4,096 at most; each reads the weights, or takes its operations' time."""
    one, four = (plan(H200, n, prompt=1000).first_audio.prefill.us for n in (1, 8))
    assert 2 * one < four


def test_frames_until_there_is_sound():
    """The loop's own vocoder, with the widths of the real one but no arithmetic."""
    decoder, _ = vocoder_of(torch.float16)
    silent = SimpleNamespace(
        lag=decoder.lag, lookahead=decoder.lookahead, config=CODEC, finished=decoder.finished, room=lambda *_: 0,
        rings=lambda *_: SimpleNamespace(of=lambda rows: None),
        step=lambda rings, codes, spans, frames, delayed: torch.zeros(len(spans), frames * CODEC.hop),
    )  # fmt: skip
    slots = Slots(MODEL, 1, 0, footprint.LOOK + 9, torch.empty(0))
    speech = Speech(silent, slots, footprint.LOOK + 1)
    slots.enter(0, [], 94, 1000, -1, Sampling().row(), 0)
    heard = []
    for frames in (1, 9, 17, 25):
        slots.steps.fill_(frames)
        speech.advance(1)
        heard.append(len(speech.samples(speech.collect(1), 0)))
    assert heard[:-1] == [0, 0, 0]
    assert heard[-1] > 0
    assert frames_to_sound() == 25


def test_a_data_sheets_floor_says_so():
    found = plan(H200)
    assert {found.frame.kind, found.vocoder.kind, found.real_time_kind, found.first_audio.total.kind} == {FLOOR}
    assert found.capacity.kind == "by its label"
    assert "not yet measured on a GPU" in found.notes()[-1]


def test_measured_rates_come_before_the_data_sheets():
    found = plan(H200, 16, results=[result(calibration=CALIBRATION)])
    sheet = plan(H200, 16)
    assert found.frame.kind == found.vocoder.kind == found.real_time_kind == MEASURED_FLOOR
    assert found.frame.us == pytest.approx(sheet.frame.us * 4800 / 4000)
    assert found.capacity.bytes == 139.8 * 2**30
    assert found.used == ("0123456789ab of 2026-01-02",)


def test_a_measured_frame_comes_before_its_floor():
    measured = [result(calibration=CALIBRATION, frames=B16)]
    found = plan(H200, 16, results=measured)
    assert found.frame == (3000.0, MEASURED)
    assert found.floor.kind == MEASURED_FLOOR
    assert found.both.kind == f"{MEASURED} + {MEASURED_FLOOR}"
    assert "at best" in found.as_text()
    # No other number of streams, context or precision was measured.
    for other in ({"streams": 17}, {"streams": 16, "context": 999}, {"streams": 16, "precision": "fp16"}):
        assert plan(H200, results=measured, **other).frame.kind == MEASURED_FLOOR


def test_the_newest_result_that_has_a_figure_counts():
    older, newer = result(frames=B16), result(frames=copy.deepcopy(B16))
    newer["parts"]["frames"]["items"]["B16"]["median_us"] = 2900.0
    assert plan(H200, 16, results=[newer, older]).frame.us == 2900.0
    assert plan(H200, 16, results=[result(), older]).frame.us == 3000.0


@pytest.mark.parametrize(
    "other",
    [
        result(name="NVIDIA H100 80GB HBM3", calibration=CALIBRATION, frames=B16),
        result(name="NVIDIA H200 MIG 1g.18gb", calibration=CALIBRATION, frames=B16),
        result(rehearsal=True, calibration=CALIBRATION, frames=B16),
        result(frames={"B16": {**B16["B16"], "status": "failed"}}),
    ],
    ids=["another card", "a part of one", "a rehearsal", "a failure"],
)
def test_what_does_not_count(other):
    assert plan(H200, 16, results=[other]).frame.kind == FLOOR
    assert plan(H200, 16, results=[other]).used == ()


def test_measured_sound_prefill_and_first_audio():
    vocoder = {"streams-16/float16": {"median_us": 1600.0, "rows": 16, "frames": 16},
               "streams-16/bfloat16": {"median_us": 1.0, "rows": 16, "frames": 16},
               "clips-16/float16": {"median_us": 2.0, "rows": 16, "frames": 861}}  # fmt: skip
    first = {"median_ms": 31.5, "streams": 16, "prompt_rows": usual_prompt(), "frames": 16}
    whole = {"prefill-128": {"median_us": 4000.0, "rows": 128}, "first-audio/16": first}
    results = [result(frames=B16, vocoder=vocoder, whole=whole)]
    found = plan(H200, 16, results=results)
    assert found.vocoder == (100.0, MEASURED)
    assert found.both == (3100.0, MEASURED)
    assert found.first_audio.total == (31500.0, MEASURED)
    assert found.first_audio.prefill.kind == FLOOR
    assert plan(H200, 1, prompt=128, results=results).first_audio.prefill == (4000.0, MEASURED)
    assert plan(H200, 16, prompt=128, results=results).first_audio.total.kind != MEASURED


def test_a_file_of_make_gpu():
    """The plausible one beside these tests, as if of an H100."""
    content = json.loads((Path(__file__).parent / "results" / "sample.json").read_text(encoding="utf-8"))
    content["environment"]["card"] = "NVIDIA H100 80GB HBM3"
    items = {part: held["items"] for part, held in content["parts"].items()}
    found = plan(card("h100"), 64, results=[content])
    assert found.frame == (items["frames"]["B64"]["median_us"], MEASURED)
    assert found.vocoder == (items["vocoder"]["streams-64/float16"]["median_us"] / 16, MEASURED)
    assert found.floor.us == pytest.approx(found.cost.bytes / items["calibration"]["copy"]["gb_per_s"] / 1e3)
    further = plan(card("h100"), 1, context=6000, prompt=512, results=[content])
    assert further.frame.us == items["frames"]["B1/context-6000"]["median_us"]
    assert further.first_audio.prefill.us == items["whole"]["prefill-512"]["median_us"]
    first = plan(card("h100"), 16, prompt=128, results=[content]).first_audio
    assert first.total == (items["whole"]["first-audio/16"]["median_ms"] * 1e3, MEASURED)


def test_a_slow_measured_frame_limits_real_time():
    slow = {"B64": {"median_us": 20000.0, "streams": 64, "context": 1000}}
    found = plan(H200, results=[result(frames=slow)])
    assert found.real_time == 63
    assert MEASURED in found.real_time_kind


def test_precisions_without_kernels_say_so():
    for name, precision in PRECISIONS.items():
        said = any("no kernels in this project yet" in note for note in plan(H200, precision=name).notes())
        assert said == (not precision.runs) == name.startswith("int")


def test_fp32_has_no_matrix_rate():
    found = plan(H200, 256, "fp32")
    assert found.frame.us == pytest.approx(found.cost.bytes / 4800 / 1e3)
    assert any("fp32" in note for note in found.notes())
    server = plan(card("rtx-pro-6000-server"))
    assert any("no matrix rate" in note for note in server.notes())


def test_a_full_context():
    """6,144 rows are 96 pages; its last frame reads the 6,143 before its own."""
    full, last = plan(H200, context=6144), plan(H200, context=6143)
    assert full.cost == last.cost
    assert full.needed == last.needed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"streams": 0}, r"streams must be an integer in 1\.\.256, got 0"),
        ({"streams": 257}, r"in 1\.\.256, got 257"),
        ({"streams": True}, r"in 1\.\.256, got True"),
        ({"streams": 1.5}, r"in 1\.\.256, got 1\.5"),
        ({"context": 0}, r"context must be an integer in 1\.\.6144, got 0"),
        ({"context": 6145}, r"in 1\.\.6144, got 6145"),
        ({"prompt": 0}, r"prompt must be an integer in 1\.\.1000 = context, .*got 0"),
        ({"prompt": 1001}, r"1\.\.1000 = context, which it is part of, got 1001"),
        ({"precision": "int16"}, r"precision must be one of bf16, .*got 'int16'; did you mean 'int8' or 'int4'\?"),
        ({"precision": "zzz"}, r"got 'zzz'$"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(H200, **arguments)


def run(capsys, *arguments):
    parser = argparse.ArgumentParser()
    execute = command(parser)
    status = execute(parser.parse_args([*arguments]))
    return status, capsys.readouterr().out


@pytest.fixture
def stored(tmp_path):
    (tmp_path / "h200.json").write_text(json.dumps(result(calibration=CALIBRATION, frames=B16)), encoding="utf-8")
    return str(tmp_path)


@pytest.fixture
def empty(tmp_path_factory):
    return str(tmp_path_factory.mktemp("empty"))


def test_command(capsys, empty, stored):
    status, said = run(capsys, "--gpu", "H200", "--streams", "16", "--results", empty)
    assert status == 0
    assert "fits" in said
    assert "measured" not in said.replace("not yet measured", "")
    status, said = run(capsys, "--gpu", "h200", "--streams", "16", "--results", stored)
    assert status == 0
    assert "measured + floor (measured bandwidth)" in said
    assert "0123456789ab of 2026-01-02" in said


def test_command_says_what_does_not_fit(capsys, empty):
    status, said = run(capsys, "--gpu", "rtx4090", "--streams", "256", "--results", empty)
    assert status == 1
    assert "DOES NOT FIT" in said
    assert "would fit: 107 streams of this context" in said


def test_command_in_json(capsys, empty):
    status, said = run(capsys, "--gpu", "mi300x", "--precision", "int4", "--json", "--results", empty)
    found, direct = json.loads(said), plan(card("mi300x"), precision="int4")
    assert status == 0
    assert found["memory"]["fits"] is True
    assert found["memory"]["bytes"] == pytest.approx(sum(part["bytes"] for part in found["memory"]["parts"]))
    assert found["frame"]["both"]["us"] == pytest.approx(direct.both.us)
    assert found["frame"]["bytes"] == direct.cost.bytes
    assert found["has_kernels"] is False
    assert found["streams_at_once"] == {"fit": 256, "real_time": 256, "real_time_kind": FLOOR, "both": 256, "most": 256}
    assert found["first_audio"]["total"]["kind"] == FLOOR
    times = [found["frame"][name] for name in ("floor", "backbone", "vocoder", "both")]
    assert all(time["kind"] == FLOOR and time["us"] > 0 for time in times)


def test_seconds_in_place_of_context(capsys, empty):
    """A minute is 5,168 frames."""
    _, said = run(capsys, "--gpu", "h200", "--seconds", "60", "--prompt", "100", "--json", "--results", empty)
    assert json.loads(said)["context"] == 100 + 5168
    assert context_of(FRAME_US / 1e6, 94) == 95
    for wrong in (0.0, -1.0, 72.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"behind a prompt of 94 at most 70\.2, got"):
            context_of(wrong, 94)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "h20"), "did you mean 'h200'"),
        (("--gpu", "h200", "--streams", "0"), "streams"),
        (("--gpu", "h200", "--context", "9999"), "context"),
        (("--gpu", "h200", "--seconds", "nan"), "seconds"),
        (("--gpu", "h200", "--precision", "bf-16"), "did you mean 'bf16'"),
        (("--gpu", "h200", "--results", "no/such/folder"), "--results must be a folder .*'no/such/folder'"),
    ],
)
def test_bad_options(capsys, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(capsys, *arguments)


def test_a_broken_result_is_an_error(capsys, tmp_path):
    (tmp_path / "old.json").write_text('{"schema": 1}', encoding="utf-8")
    with pytest.raises(ValueError, match="schema 1"):
        run(capsys, "--gpu", "h200", "--results", str(tmp_path))


def test_this_machine(capsys, monkeypatch, stored):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch finds no GPU here; name one of h200,"):
        run(capsys, "--gpu", "this")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = SimpleNamespace(name="NVIDIA H200", total_memory=150_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    _, said = run(capsys, "--gpu", "this", "--json", "--results", stored)
    found = json.loads(said)
    assert found["card"]["name"] == "h200"
    assert found["memory"]["capacity"] == {"name": "this card", "bytes": 150e9, "kind": "as it says itself"}
    assert found["frame"]["backbone"]["kind"] == MEASURED_FLOOR
    properties.name = "NVIDIA T4"
    with pytest.raises(ValueError, match="'NVIDIA T4' is not among h200,"):
        run(capsys, "--gpu", "this")


def test_text_is_readable_at_100_columns():
    texts = [plan(known, 256, "int8-everywhere", 6144).as_text() for known in CARDS]
    texts.append(plan(H200, 16, results=[result(calibration=CALIBRATION, frames=B16)]).as_text())
    assert max(len(line) for text in texts for line in text.splitlines()) <= 100
