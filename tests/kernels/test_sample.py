"""The draw of a frame and what follows from it, on their kernels, interpreted."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.kernels.advance import advance
from zonos2_triton.kernels.sample import sample
from zonos2_triton.model import Sampling
from zonos2_triton.reference import advance as reference_advance
from zonos2_triton.reference import sampling as reference_sampling
from zonos2_triton.reference.advance import FAULTY, OUT
from zonos2_triton.reference.philox import philox
from zonos2_triton.reference.sampling import NEVER, distributions, probabilities
from zonos2_triton.reference.stopping import EndDetector

pytestmark = pytest.mark.interpreter

OFF = Sampling(temperature=1, top_k=1026, min_p=0, repetition_window=0)  # the softmax of the logits


@pytest.fixture(scope="module", autouse=True)
def interpreter():
    """Quicker than as it comes; the kernels' own tests check each launch."""
    with checked(bounds=False, undefined=False, races=False) as launches:
        yield launches


def int32(numbers):
    return torch.tensor(numbers, dtype=torch.int32)


def seen_in(history, V):
    """history [H, C], oldest first -> [C, V]: the frame in which a code came last, or NEVER."""
    last_seen = torch.full((history.shape[1], V), NEVER, dtype=torch.int32)
    for frame, ids in enumerate(history.tolist()):
        for codebook, code in enumerate(ids):
            last_seen[codebook, code] = frame
    return last_seen


def request(logits, samplings, seeds, steps, last_seen):
    """The arguments of `sample`; seeds 0 .. 2^64 - 1."""
    return {
        "logits": logits, "settings": torch.tensor([s.row() for s in samplings]),
        "seeds": torch.tensor([seed - 2**64 if seed >= 2**63 else seed for seed in seeds]), "steps": int32(steps),
        "last_seen": last_seen,
    }  # fmt: skip


def rows(inputs, chosen):
    """Of the same arguments, some requests in some order."""
    return {name: value[chosen].contiguous() for name, value in inputs.items()}


def agreed(inputs):
    """What kernel and reference both draw."""
    codes, faults = sample(**inputs)
    want = reference_sampling.sample(**inputs)
    assert torch.equal(codes, want[0])
    assert torch.equal(faults, want[1])
    return codes, faults


def test_golden_distributions(golden):
    vectors, tensors, seeds = golden.json("sampling"), golden.tensors("sampling"), (0, 7, 2**63 + 5)
    cases = vectors["cases"]
    assert len(cases) == 36
    samplings = [Sampling(**{key: case[key] for key in vectors["defaults"]}) for case in cases]
    lengths = [case["history_len"] for case in cases]
    last_seen = torch.stack([seen_in(h[:n], 1026) for h, n in zip(tensors["history"], lengths, strict=True)])
    logits = tensors["logits"][[case["logits_index"] for case in cases]]
    inputs = rows(request(logits, samplings, [0] * 36, lengths, last_seen), [*range(36)] * len(seeds))
    inputs["seeds"] = request(logits, [], seeds, [], last_seen)["seeds"].repeat_interleave(36)
    codes, faults = agreed(inputs)
    assert not faults.any()
    probs = tensors["probs"].repeat(len(seeds), 1, 1)
    assert (probs.gather(-1, codes[..., None].long()) > 0).all()
    one_hot = (probs > 0).sum(-1) == 1
    assert one_hot.any()
    assert torch.equal(codes[one_hot], probs.argmax(-1)[one_hot].int())


def mixed(B, V, C=9):
    """Settings of every kind, ties, and codes that came at any distance."""
    pick, generator = random.Random(V), torch.Generator().manual_seed(V)
    samplings = [
        Sampling(
            temperature=pick.choice([1e-6, 0.3, 1.15, 40]), top_k=pick.choice([1, 2, V // 2, V, 5000]),
            top_p=pick.choice([0, 1e-6, 0.5, 0.95, 1]), min_p=pick.choice([0, 0.05, 0.18, 1, 2]),
            repetition_window=pick.choice([0, 1, 50, 10**9]), repetition_penalty=pick.choice([1, 1.2, 30]),
            repetition_codebooks=pick.choice([-1, 0, 1, 8, 9]),
        )
        for _ in range(B)
    ]  # fmt: skip
    seeds = [pick.choice([0, 2**64 - 1, 2**63, pick.randrange(2**64), pick.randrange(2**31)]) for _ in range(B)]
    steps = [pick.choice([0, 1, 60, 5000]) for _ in range(B)]
    logits = 15 * torch.tanh(torch.randn(B, C, V, generator=generator))
    logits[::3] = logits[::3].round()
    ago = torch.randint(1, 120, (B, C, V), generator=generator, dtype=torch.int32)
    last_seen = int32(steps)[:, None, None] - ago
    return request(logits, samplings, seeds, steps, torch.where((last_seen < 0) | (ago > 70), NEVER, last_seen))


@pytest.mark.parametrize(("B", "V"), [(25, 3), (25, 100), (30, 1026), (2, 8192)], ids="{}".format)
def test_mixed_settings_draw_the_reference_codes(B, V):
    agreed(mixed(B, V))


def test_ties_of_nearly_everything():
    """Numbers between which only the sign of zero, the last bits, or nothing at all decides."""
    kinds = [[0.0, -0.0], [1.0, 1.0 + 2**-23], [-3.0], [3e38, -3e38, 0.0], [2e-45, 1e-45, 0.0]]
    logits = torch.stack([torch.tensor((kind * 40)[:40]) for kind in kinds])[:, None].repeat(5, 2, 1)
    chosen = [(1, 0, 1), (17, 0, 1), (17, 0.3, 1), (40, 0.99, 1), (40, 0, 1e-6)]  # the last: quotients beyond fp32
    samplings = [replace(OFF, top_k=k, top_p=p, temperature=t) for k, p, t in chosen for _ in kinds]
    last_seen = torch.full_like(logits, NEVER, dtype=torch.int32)
    agreed(request(logits, samplings, range(25), range(25), last_seen))


def test_the_least_and_the_largest_word_draw_codes_of_the_support():
    """Seeds found by search: codebook 0 of frame 0 draws the second and the second last of 2^32 words."""
    seeds = [760393872, 67750675]
    assert [philox(seed, (0, 0, 0, 0))[0].item() for seed in seeds] == [1, 2**32 - 2]
    logits = torch.full((2, 1, 100), -torch.inf)
    logits[..., 40:60] = 0
    codes, _ = agreed(request(logits, [OFF] * 2, seeds, [0, 0], torch.full((2, 1, 100), NEVER, dtype=torch.int32)))
    assert codes.flatten().tolist() == [40, 59]


def test_a_code_does_not_depend_on_its_place():
    inputs = mixed(6, 100)
    codes, _ = sample(**inputs)
    order = [4, 1, 1, 5, 0, 3, 2, 4, 0]
    assert torch.equal(sample(**rows(inputs, order))[0], codes[order])
    for b in range(6):
        assert torch.equal(sample(**rows(inputs, [b]))[0][0], codes[b])
    fewer = {name: inputs[name][:, :4].contiguous() for name in ("logits", "last_seen")}
    assert torch.equal(sample(**{**inputs, **fewer})[0], codes[:, :4])


def test_rows_of_whole_numbers_may_begin_anywhere():
    """As those of some requests among others do: behind another, at no multiple of 16 bytes."""

    def behind(values):
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        return {name: torch.cat([value[:1], value])[1:] for name, value in tensors.items() if name not in aligned}

    aligned, inputs = ("logits", "settings"), mixed(3, 25)
    codes, faults = sample(**inputs)
    assert torch.equal(sample(**{**inputs, **behind(inputs)})[0], codes)
    state = before([9] * 3, [4] * 3, C=9, V=25)
    shifted = {**state, **behind(state)}
    for each in (state, shifted):
        advance(codes, faults, **each)
    assert differ(state, shifted) == []


def test_another_key_is_another_code():
    """Of seed, frame or codebook, among 1026 codes that are equally likely."""
    keys = [(5, 3), (6, 3), (5 + 2**32, 3), (5 + 2**63, 3), (5, 4), (5, 3 + 2**20)]
    logits = torch.zeros(len(keys), 9, 1026)
    last_seen = torch.full_like(logits, NEVER, dtype=torch.int32)
    codes, _ = agreed(request(logits, [OFF] * len(keys), *zip(*keys, strict=True), last_seen))
    assert all((other != codes[0]).sum() >= 8 for other in codes[1:])
    assert all(len(set(one.tolist())) >= 8 for one in codes)


def test_rows_that_are_not_finite():
    inputs = mixed(3, 100)
    inputs["settings"][0] = torch.tensor(OFF.row())
    clean, faults = agreed(inputs)
    assert not faults.any()
    nan, inf = float("nan"), float("inf")
    dirty = inputs["logits"].clone()
    dirty[1, 0, 99] = nan
    dirty[1, 2, 7], dirty[1, 2, 8] = nan, inf
    dirty[1, 4, 0] = inf
    dirty[2, 1] = -inf
    dirty[2, 3] = nan
    dirty[2, 5] = torch.where(torch.arange(100) == 98, inf, -inf)
    dirty[0, 6, :90] = -inf
    dirty[0, 8, torch.arange(100) != 42] = -inf
    codes, faults = agreed({**inputs, "logits": dirty})
    assert faults.nonzero().tolist() == [[1, 0], [1, 2], [1, 4], [2, 1], [2, 3], [2, 5]]
    assert (codes[faults == 1] == 99).all()
    assert codes[0, 6] >= 90
    assert codes[0, 8] == 42
    same = faults == 0
    same[0, 6] = same[0, 8] = False
    assert torch.equal(codes[same], clean[same])


def before(limits, eoa_ids, C=9, V=1026, N=4):
    """Arguments of `advance` but the first two: requests whose prompts are of 3, 4, ... rows."""
    B = len(limits)
    return {
        "positions": torch.arange(3, 3 + B, dtype=torch.int32), "steps": int32([0] * B), "limits": int32(limits),
        "eoa_ids": int32(eoa_ids), "eos_frames": int32([-1] * B), "ids": int32([[7] * (C + 1)] * B),
        "last_seen": torch.full((B, C, V), NEVER, dtype=torch.int32),
        "frames": torch.full((B, N, C + 1), -9, dtype=torch.int32), "text_id": 519,
    }  # fmt: skip


def copied(state):
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}


def differ(a, b):
    """The names of what is not the same in two states."""
    return [name for name in a if name != "text_id" and not torch.equal(a[name], b[name])]


def push(state, codes, faults=None):
    """One frame, by kernel and reference; state is changed."""
    codes, twin = int32(codes), copied(state)
    faults = torch.zeros_like(codes) if faults is None else faults
    advance(codes, faults, **state)
    reference_advance.advance(codes, faults, **twin)
    assert differ(state, twin) == []


def test_golden_ends(golden):
    """All cases in one batch, frame by frame; one whose frames have run out goes on with padding, not looked at."""
    vectors = golden.json("eos")
    cases = vectors["cases"]
    assert len(cases) == 21
    eoa_ids = [-1 if case["ignore_eos"] else vectors["eoa_id"] for case in cases]
    state = before([case["max_tokens"] for case in cases], eoa_ids)
    for step in range(max(len(case["frames"]) for case in cases)):
        push(state, [case["frames"][step] if step < len(case["frames"]) else [1025] * 9 for case in cases])
        for b, case in enumerate(cases):
            if step < len(case["frames"]):
                seen = case["trace"][min(step, len(case["trace"]) - 1)]  # of columns: end, countdown, finished
                got = int(state["eos_frames"][b]), bool(state["positions"][b] == OUT)
                assert got == (seen[0], seen[2]), (case["name"], step)
            if step == len(case["frames"]) - 1:
                got = int(state["steps"][b]), int(state["eos_frames"][b])
                assert got == (case["frames_consumed"], case["final_eos_frame"]), case["name"]


some_frames = st.integers(1, 5).flatmap(
    lambda C: st.lists(st.lists(st.integers(0, 3), min_size=C, max_size=C), min_size=1, max_size=16)
)


@settings(deadline=None)
@given(some_frames, st.integers(1, 16), st.booleans())
def test_the_reference_ends_where_the_serial_rule_does(frames, limit, ignore_eos):
    detector, C = EndDetector(3, limit, ignore_eos), len(frames[0])
    state = before([limit], [-1 if ignore_eos else 3], C, V=4)
    for frame in frames:
        last = detector.push(frame)
        reference_advance.advance(int32([frame]), int32([[0] * C]), **state)
        assert state["steps"].item() == detector.step
        assert state["eos_frames"].item() == (-1 if detector.eos_frame is None else detector.eos_frame)
        assert (state["positions"].item() == OUT) == last
        if last:
            return
    assert state["positions"].item() == 3 + len(frames)


def test_what_a_frame_leaves():
    """The row that is fed back, and the newest four frames with the end as known by each."""
    state = before([50], [3], C=3, V=9)
    frames = [[s % 3, 4 + s % 4, 8] for s in range(6)]
    frames[4][1] = 3
    for frame in frames:
        push(state, [frame])
    assert state["ids"].tolist() == [[*frames[5], 519]]
    assert state["frames"].tolist() == [[[*frames[4], 3], [*frames[5], 3], [*frames[2], -1], [*frames[3], -1]]]
    assert (state["positions"].item(), state["steps"].item(), state["limits"].item()) == (9, 6, 8)
    assert torch.equal(state["last_seen"][0], seen_in(int32(frames), 9))


def test_the_code_that_ends_may_be_zero():
    """Which is what lanes beyond the codebooks hold."""
    state = before([50], [0], C=3, V=9)
    for code in (8, 8, 0):
        assert state["eos_frames"].item() == -1
        push(state, [[1, code, 2]])
    assert state["eos_frames"].item() == 1


def test_idle_and_faulty_rows_stay_as_they_are():
    state = before([50] * 4, [3] * 4, C=3, V=9)
    push(state, [[0, 1, 2]] * 4)
    state["positions"][1], state["positions"][2] = OUT, FAULTY
    old, faults = copied(state), torch.zeros(4, 3, dtype=torch.int32)
    faults[0, 2] = faults[2, 0] = 1
    push(state, [[3, 3, 8]] * 4, faults)
    assert state["positions"].tolist() == [FAULTY, OUT, FAULTY, 8]
    for name in ("steps", "limits", "eos_frames", "ids", "last_seen", "frames"):
        assert torch.equal(state[name][:3], old[name][:3])
        assert not torch.equal(state[name][3], old[name][3])


def test_last_seen_stands_for_the_whole_history(seeded):
    """After 0, 1, 2 and 60 frames; and the window of it is all that counts."""
    windows, V, lengths = (0, 1, 50, 1000), 40, (0, 1, 2, 60)
    samplings = [replace(OFF, repetition_window=w, repetition_penalty=3, repetition_codebooks=9) for w in windows]
    history = torch.randint(0, V, (60, 4, 9), generator=torch.Generator().manual_seed(1))
    history[20:, :, 0] = 5  # others came long ago
    state, logits = before([99] * 4, [-1] * 4, V=V), 4 * seeded(4, 9, V)
    numbers = torch.tensor([s.row() for s in samplings])
    for n in range(61):
        if n in lengths:
            got = distributions(logits, numbers, state["steps"], state["last_seen"])
            for b, (sampling, w) in enumerate(zip(samplings, windows, strict=True)):
                past = history[:n, b]
                assert torch.equal(got[b], probabilities(logits[b], sampling, past))
                recent = past[max(n - w, 0) :]
                assert torch.equal(got[b], probabilities(logits[b], samplings[-1], recent))
                penalised = not torch.equal(got[b], probabilities(logits[b], sampling, past[:0]))
                assert penalised == (min(n, w) > 0)
        if n < 60:
            push(state, history[n].tolist())
