"""The draw of a frame's codes, and its consequences: the next ids, the end, the history."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.operator_suite import EXACT, OperatorTests, at, inputs_of, interpreted, wrong
from zonos2_triton.kernels.sample_codes import sample_codes
from zonos2_triton.model import Sampling
from zonos2_triton.reference.advance_frame import SLOT_FREE, SLOT_NONFINITE, advance_frame
from zonos2_triton.reference.philox import philox
from zonos2_triton.reference.sample_codes import sample_codes as reference
from zonos2_triton.reference.sampling import NEVER_SEEN, distributions, probabilities
from zonos2_triton.reference.stopping import EndDetector

# Logits of plus and minus the largest number lie further apart than fp32 holds: exp(-inf) is the 0 that is wanted.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in subtract")

OFF = Sampling(temperature=1, top_k=1026, min_p=0, repetition_window=0)  # the softmax of the logits
# Columns of settings: the name, the range in the message, and numbers on both sides of it.
SETTINGS = (
    ("temperature", r"1e-07\.\.3\.4\d*e\+38", (0, float("inf"))),
    ("top_k", r"1\.\.16777216", (0.5, 2**24 + 2)),
    ("top_p", r"0\.\.1", (-0.1, 1.5)),
    ("min_p", r"0\.\.3\.4\d*e\+38", (-1, float("inf"))),
    ("window", r"0\.\.16777216", (-1, 2**24 + 2)),
    ("penalty", r"1\.\.3\.4\d*e\+38", (0.5, float("inf"))),
    ("penalised codebooks", r"0\.\.16777216", (-1, 2**24 + 2)),
)


class TestSampleCodes(OperatorTests):
    name = "sample_codes"
    accuracy = EXACT
    slow_workloads = ["settings", "ties", "last-bits"]
    # 9 x 1026 logits and as many frames of history in; 8 settings, seed and step; a code and a flag of 9 codebooks.
    # Of the state 4 numbers in; 4 numbers, 9 entries of the history, and two tokens of 10 out.
    costs = {"decode-B1": (2 * 4 * 9 * 1026 + 8 * 4 + 8 + 4 + 2 * 4 * 9 + 4 * (4 + 4 + 9 + 20), 60 * 9 * 1026)}
    wrong = [
        wrong(r"settings must have shape \[B=2, 8\], got \[2, 7\]", settings=lambda s: s[:, :7].clone()),
        wrong(r"seeds must have shape \[B=2\], got \[1\]", seeds=lambda s: s[:1]),
        wrong(r"last_seen must have shape \[B=2, C=3, V=30\], got", last_seen=lambda x: x[..., 1:].clone()),
        wrong(r"eos_frames must have shape \[B=2\], got \[1\]", eos_frames=lambda e: e[:1]),
        wrong(r"ids must have shape \[B=2, C\+1=4\], got \[2, 3\]", ids=lambda i: i[:, :3].clone()),
        wrong(r"frames must have shape \[B=2, N, C\+1=4\], got", frames=lambda f: f[..., :3].clone()),
        wrong("positions, .*, frames must be given together, got no max_frames, ids", max_frames=None, ids=None),
        wrong("counters must hold at least 2 numbers, got 1", counters=torch.zeros(1, dtype=torch.int32)),
        *(wrong(rf"logits must have 3\.\.8192 codes a row, .*, got {n}", sizes={"V": n}) for n in (2, 8193)),
        *(
            wrong(rf"settings\[1\], {name}, must be in {accepted}, got {value}", settings=at((1, column), value))
            for column, (name, accepted, beyond) in enumerate(SETTINGS)
            for value in (*beyond, float("nan"))
        ),
    ]


def seen_in(history, V):
    """history [H, C], oldest first -> [C, V]: the frame in which a code came last, or NEVER_SEEN."""
    last_seen = torch.full((history.shape[1], V), NEVER_SEEN, dtype=torch.int32)
    for frame, ids in enumerate(history.tolist()):
        for codebook, code in enumerate(ids):
            last_seen[codebook, code] = frame
    return last_seen


def request(logits, samplings, seeds, steps, last_seen):
    """The arguments of `sample_codes`; seeds 0 .. 2^64 - 1."""
    return {
        "logits": logits,
        "settings": torch.tensor([sampling.packed() for sampling in samplings]),
        "seeds": torch.tensor([seed - 2**64 if seed >= 2**63 else seed for seed in seeds]),
        "steps": torch.tensor(steps, dtype=torch.int32),
        "last_seen": last_seen,
    }


def agreed(inputs):
    """The codes that kernel and reference both draw."""
    codes, nonfinite = sample_codes(**inputs)
    want = reference(**inputs)
    assert torch.equal(codes, want[0])
    assert torch.equal(nonfinite, want[1])
    return codes, nonfinite


@interpreted
@pytest.mark.usefixtures("quick_interpreter")
class TestDraw:
    @pytest.mark.parametrize("chosen", [slice(0, 36, 6), pytest.param(slice(36), marks=pytest.mark.slow)], ids=str)
    def test_golden_distributions(self, golden, chosen):
        vectors, tensors = golden.json("sampling"), golden.tensors("sampling")
        assert len(vectors["cases"]) == 36
        cases, probs = vectors["cases"][chosen], tensors["probs"][chosen]
        samplings = [Sampling(**{key: case[key] for key in vectors["defaults"]}) for case in cases]
        lengths = [case["history_len"] for case in cases]
        history = zip(tensors["history"][chosen], lengths, strict=True)
        last_seen = torch.stack([seen_in(frames[:n], 1026) for frames, n in history])
        logits, one_hot = tensors["logits"][[case["logits_index"] for case in cases]], (probs > 0).sum(-1) == 1
        assert one_hot.any()
        for seed in (0, 7, 2**63 + 5):
            codes, nonfinite = agreed(request(logits, samplings, [seed] * len(cases), lengths, last_seen))
            assert not nonfinite.any()
            assert (probs.gather(-1, codes[..., None].long()) > 0).all()
            assert torch.equal(codes[one_hot], probs.argmax(-1)[one_hot].int())

    @pytest.mark.slow
    @pytest.mark.parametrize("V", [3, 100, 8192])
    def test_settings_of_every_kind_on_rows_of_any_width(self, V):
        agreed(inputs_of("sample_codes", "settings", state=False, C=9, V=V))

    def test_ties_of_nearly_everything(self):
        """Numbers between which only the sign of zero, the last bits, or nothing at all decides."""
        kinds = [[0.0, -0.0], [1.0, 1.0 + 2**-23], [-3.0], [3e38, -3e38, 0.0], [2e-45, 1e-45, 0.0]]
        logits = torch.stack([torch.tensor((kind * 40)[:40]) for kind in kinds])[:, None].repeat(5, 2, 1)
        chosen = [(1, 0, 1), (17, 0, 1), (17, 0.3, 1), (40, 0.99, 1), (40, 0, 1e-6)]  # the last: quotients beyond fp32
        samplings = [replace(OFF, top_k=k, top_p=p, temperature=t) for k, p, t in chosen for _ in kinds]
        last_seen = torch.full_like(logits, NEVER_SEEN, dtype=torch.int32)
        agreed(request(logits, samplings, range(25), range(25), last_seen))

    def test_the_least_and_the_largest_word_draw_codes_of_the_support(self):
        """Seeds found by search: codebook 0 of frame 0 draws the second and the second last of 2^32 words."""
        seeds = [760393872, 67750675]
        assert [philox(seed, (0, 0, 0, 0))[0].item() for seed in seeds] == [1, 2**32 - 2]
        logits = torch.full((2, 1, 100), -torch.inf)
        logits[..., 40:60] = 0
        codes, _ = agreed(
            request(logits, [OFF] * 2, seeds, [0, 0], torch.full((2, 1, 100), NEVER_SEEN, dtype=torch.int32))
        )
        assert codes.flatten().tolist() == [40, 59]

    def test_a_code_does_not_depend_on_its_place(self):
        """Codes of fewer codebooks, and of rows behind others, at no multiple of 16 bytes."""
        inputs = inputs_of("sample_codes", "settings", state=False, B=4)
        codes, _ = sample_codes(**inputs)
        fewer = {name: inputs[name][:, :2].contiguous() for name in ("logits", "last_seen")}
        assert torch.equal(sample_codes(**{**inputs, **fewer})[0], codes[:, :2])
        behind = {name: torch.cat([inputs[name][:1], inputs[name]])[1:] for name in ("seeds", "steps", "last_seen")}
        assert torch.equal(sample_codes(**{**inputs, **behind})[0], codes)

    def test_rows_that_are_not_finite(self):
        inputs = {**inputs_of("sample_codes", "settings", state=False, B=3, C=9, V=100)}
        inputs["settings"] = torch.cat([torch.tensor([OFF.packed()]), inputs["settings"][1:]])
        clean, nonfinite = agreed(inputs)
        assert not nonfinite.any()
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
        codes, nonfinite = agreed({**inputs, "logits": dirty})
        assert nonfinite.nonzero().tolist() == [[1, 0], [1, 2], [1, 4], [2, 1], [2, 3], [2, 5]]
        assert (codes[nonfinite == 1] == 99).all()
        assert codes[0, 6] >= 90
        assert codes[0, 8] == 42
        same = nonfinite == 0
        same[0, 6] = same[0, 8] = False
        assert torch.equal(codes[same], clean[same])


def int32(numbers):
    return torch.tensor(numbers, dtype=torch.int32)


def before(max_frames, eoa_ids, C=9, V=1026, N=4):
    """The state that `sample_codes` changes: slots whose prompts are of 3, 4, ... tokens."""
    B = len(max_frames)
    return {
        "positions": torch.arange(3, 3 + B, dtype=torch.int32),
        "steps": int32([0] * B),
        "max_frames": int32(max_frames),
        "eoa_ids": int32(eoa_ids),
        "eos_frames": int32([-1] * B),
        "ids": int32([[7] * (C + 1)] * B),
        "last_seen": torch.full((B, C, V), NEVER_SEEN, dtype=torch.int32),
        "frames": torch.full((B, N, C + 1), -9, dtype=torch.int32),
        "text_id": 519,
    }


def copied(state):
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}


def differ(a, b):
    """The names of what is not the same in two states."""
    return [name for name in a if name != "text_id" and not torch.equal(a[name], b[name])]


def push(state, codes, nonfinite=None):
    """A frame of these codes, by kernel and reference; state is changed. nonfinite: rows whose logits are NaN."""
    B, C, V = state["last_seen"].shape
    logits = torch.full((B, C, V), -torch.inf).scatter_(2, torch.tensor(codes)[..., None], 0.0)
    if nonfinite is not None:
        logits[nonfinite == 1] = torch.nan
    drawing = {"settings": torch.tensor([OFF.packed()] * B), "seeds": torch.arange(B)}
    twin = copied(state)
    drawn, _ = sample_codes(logits, **drawing, **state)
    assert nonfinite is not None or drawn.tolist() == codes
    reference(logits, **drawing, **twin)
    assert differ(state, twin) == []


some_frames = st.integers(1, 5).flatmap(
    lambda C: st.lists(st.lists(st.integers(0, 3), min_size=C, max_size=C), min_size=1, max_size=16)
)


@given(some_frames, st.integers(1, 16), st.booleans())
def test_the_reference_ends_where_the_serial_rule_does(frames, limit, ignore_eos):
    detector, C = EndDetector(3, limit, ignore_eos), len(frames[0])
    state = before([limit], [-1 if ignore_eos else 3], C, V=4)
    for frame in frames:
        last = detector.push(frame)
        advance_frame(int32([frame]), int32([[0] * C]), **state)
        assert state["steps"].item() == detector.step
        assert state["eos_frames"].item() == (-1 if detector.eos_frame is None else detector.eos_frame)
        assert (state["positions"].item() == SLOT_FREE) == last
        if last:
            return
    assert state["positions"].item() == 3 + len(frames)


@interpreted
@pytest.mark.usefixtures("quick_interpreter")
class TestEnds:
    def test_what_a_frame_leaves(self):
        """The row that is fed back, and the newest four frames with the end as known by each."""
        state = before([50], [3], C=3, V=9)
        frames = [[s % 3, 4 + s % 4, 8] for s in range(6)]
        frames[4][1] = 3
        for frame in frames:
            push(state, [frame])
        assert state["ids"].tolist() == [[*frames[5], 519]]
        assert state["frames"].tolist() == [[[*frames[4], 3], [*frames[5], 3], [*frames[2], -1], [*frames[3], -1]]]
        assert (state["positions"].item(), state["steps"].item(), state["max_frames"].item()) == (9, 6, 8)
        last_seen = torch.full((3, 9), NEVER_SEEN)
        for step, frame in enumerate(frames):
            last_seen[range(3), frame] = step
        assert torch.equal(state["last_seen"][0], last_seen)

    def test_the_code_that_ends_may_be_zero(self):
        """Which is what lanes beyond the codebooks hold."""
        state = before([50], [0], C=3, V=9)
        for code in (8, 8, 0):
            assert state["eos_frames"].item() == -1
            push(state, [[1, code, 2]])
        assert state["eos_frames"].item() == 1

    def test_idle_and_faulty_slots_stay_as_they_are(self):
        state = before([50] * 4, [3] * 4, C=3, V=9)
        push(state, [[0, 1, 2]] * 4)
        state["positions"][1], state["positions"][2] = SLOT_FREE, SLOT_NONFINITE
        old, nonfinite = copied(state), torch.zeros(4, 3, dtype=torch.int32)
        nonfinite[0, 2] = nonfinite[2, 0] = 1
        push(state, [[3, 3, 8]] * 4, nonfinite)
        assert state["positions"].tolist() == [SLOT_NONFINITE, SLOT_FREE, SLOT_NONFINITE, 8]
        for name in ("steps", "max_frames", "eos_frames", "ids", "last_seen", "frames"):
            assert torch.equal(state[name][:3], old[name][:3])
            assert not torch.equal(state[name][3], old[name][3])

    def test_slots_may_begin_anywhere(self):
        """As those of some requests among others do: behind another, at no multiple of 16 bytes."""
        state = before([9] * 3, [4] * 3, C=3, V=9)
        shifted = {name: x if name == "text_id" else torch.cat([x[:1], x])[1:] for name, x in state.items()}
        for each in (state, shifted):
            push(each, [[1, 4, 8]] * 3)
        assert differ(state, shifted) == []

    def test_last_seen_stands_for_the_whole_history(self, seeded):
        """After 0, 1, 2 and 60 frames; and the window of it is all that counts."""
        windows, V, lengths = (0, 1, 50, 1000), 40, (0, 1, 2, 60)
        off = Sampling(temperature=1, top_k=1026, min_p=0, repetition_penalty=3, repetition_codebooks=9)
        samplings = [replace(off, repetition_window=w) for w in windows]
        history = torch.randint(0, V, (60, 4, 9), generator=torch.Generator().manual_seed(1))
        history[20:, :, 0] = 5  # others came long ago
        state, logits = before([99] * 4, [-1] * 4, V=V), 4 * seeded(4, 9, V)
        numbers = torch.tensor([s.packed() for s in samplings])
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
