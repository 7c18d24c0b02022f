"""The vocoder on its kernels, interpreted: golden vectors, half precision, and clips that are equal bit for bit however
they come: whole, in steps, in company, as streams. What streams do beyond that is in test_streams.py."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.bench.proof.poison import poisoned
from zonos2_triton.model import Vocoder, VocoderConfig
from zonos2_triton.model import vocoder as vocoder_module
from zonos2_triton.model.vocoder_decoder import Decoder
from zonos2_triton.model.weights.tiny import codec_weights
from zonos2_triton.reference.delay import shear_up
from zonos2_triton.reference.vocoder import layout
from zonos2_triton.reference.vocoder_layers import OPEN

pytestmark = pytest.mark.interpreter

STAGE_ATOL, AUDIO_ATOL = 3e-4, 1e-4  # of the golden vectors; measured 9.1e-6 and 5.1e-6
OF_LIBRARY = 0.75  # error in half precision, of that of the library path; measured 0.36..0.53, stage by stage
HALF_DB = {  # signal to error of the audio in half precision, against fp32 of the same rounded weights
    ("odd", torch.bfloat16): 43,  # measured 45.1
    ("odd", torch.float16): 61,  # 63.3
    ("even", torch.bfloat16): 37,  # 39.1
    ("even", torch.float16): 54,  # 56.8
}
PAD = 17  # of the codecs here


@pytest.fixture(autouse=True)
def launches():
    """Quicker than as it comes; the kernels' own tests check each launch. What nobody wrote is NaN."""
    with checked(bounds=False, undefined=False, races=False) as found, poisoned():
        yield found


def tiny(rates, decoder_dim, widest_unit=None):
    """Random weights; widest_unit: channels up to which a residual unit is one launch."""
    config = VocoderConfig(
        latent_dim=8, decoder_dim=decoder_dim, decoder_rates=rates, n_codebooks=3, codebook_size=16, codebook_dim=4
    )
    vocoder = Vocoder(config, codec_weights(config, torch.Generator().manual_seed(0)), "triton")
    if widest_unit is not None:
        vocoder.decoder.ops = vocoder.decoder.ops._replace(widest_unit=widest_unit)
    return vocoder


@pytest.fixture(scope="module")
def small():
    """Of one block, 5 samples a frame, 3 channels; a clip is one sample shorter. A frame waits for 12 more."""
    return tiny((5,), 6)


@pytest.fixture(scope="module")
def mixed():
    """Of two blocks: the units of the first are two launches each, those of the second one."""
    return tiny((3, 2), 8, widest_unit=2)


@pytest.fixture(scope="module")
def real():
    """The 44.1 kHz codec by its shapes: in three precisions, on the meta device."""
    config = VocoderConfig()
    return {
        dtype: Vocoder(
            config, {n: torch.empty(s, dtype=dtype, device="meta") for n, s in layout(config).items()}, "triton"
        )
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    }


def frames_of(n, seed=0):
    return torch.randint(18, (n, 3), generator=torch.Generator().manual_seed(seed))


def aligned(frames, eos_frame=None):
    return shear_up(frames, PAD)[:eos_frame].T


def alone(vocoder, frames, eos_frame=None):
    return vocoder.decode(aligned(frames, eos_frame)[None])[0]


def same_bits(a, b):
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def db(got, want):
    got, want = got.double(), want.double()
    error = float((got - want).square().sum())
    return 10 * math.log10(float(want.square().sum()) / error) if error else math.inf


def relative(got, want):
    return float((got.double() - want).square().mean().sqrt() / want.square().mean().sqrt())


class TestGolden:
    @pytest.mark.parametrize("name", ["odd", "even"])
    def test_stages_and_decode(self, golden, name):
        vocoder, codes = golden.vocoder(name, backend="triton"), golden.tensors("dac_tiny")[f"{name}.codes"]
        stored, trace = golden.tensors("dac_tiny", f"{name}.out."), vocoder.trace(codes)
        assert {"z", "conv_in", "block_0", "pre_tanh", "audio"} <= trace.keys() & stored.keys()
        for stage in stored.keys() & trace.keys():
            atol = AUDIO_ATOL if stage == "audio" else STAGE_ATOL
            torch.testing.assert_close(
                trace[stage], stored[stage], atol=atol, rtol=0, msg=lambda m, s=stage: f"{s}: {m}"
            )
        if name == "odd":  # half the time
            assert same_bits(vocoder.decode(codes), trace["audio"])

    def test_one_frame_and_fewer_codebooks(self, golden):
        vocoder, stored = golden.vocoder("odd", backend="triton"), golden.tensors("dac_tiny", "odd.")
        audio = vocoder.decode(stored["codes"][:1, :, :1])
        torch.testing.assert_close(audio, stored["single_frame.audio"], atol=AUDIO_ATOL, rtol=0)
        trace = vocoder.trace(stored["codes"][:, :4])
        torch.testing.assert_close(trace["z"], stored["first_4_codebooks.z"], atol=STAGE_ATOL, rtol=0)
        assert same_bits(vocoder.decode(stored["codes"][:, :4]), trace["audio"])

    @pytest.mark.parametrize("name", ["small_chunks_overlap_2"])
    def test_overlap(self, golden, name):
        """The official cross-fade; test_streams.py has the other cases, by the reference of the kernels."""
        case = next(case for case in golden.json("vocoder_stream")["cases"] if case["name"] == name)
        stored = golden.tensors("vocoder_stream", f"{name}.")
        vocoder = golden.vocoder("even", backend="triton")
        stream = vocoder.stream("overlap", overlap=case["overlap_frames"], chunk=case["min_decode_chunk"])
        count = len(stored["codes"])
        chunks = [stream.push(frame[None], last=i == count - 1) for i, frame in enumerate(stored["codes"])]
        assert [*map(len, chunks)] == case["chunk_samples_per_message"]
        torch.testing.assert_close(torch.cat(chunks), stored["stream"], atol=AUDIO_ATOL, rtol=0)


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize(("name", "frames"), [("odd", 13), ("even", 3)])
    def test_half(self, golden, name, frames, dtype):
        """Each stage against fp64 of the same rounded weights: twice as near as the library, as sums stay in fp32."""
        codes = golden.tensors("dac_tiny")[f"{name}.codes"][:1, :, :frames]
        library = golden.vocoder(name, dtype=dtype, backend="reference")
        got = Vocoder(library.config, library.state, "triton").trace(codes)
        exact, single = (
            Vocoder.from_state(library.config, library.state, dtype=wide) for wide in (torch.float64, torch.float32)
        )
        true, theirs = exact.trace(codes), library.trace(codes)
        errors = {stage: (relative(got[stage], true[stage]), relative(theirs[stage], true[stage])) for stage in true}
        assert all(ours < OF_LIBRARY * bound for ours, bound in errors.values()), errors
        assert db(got["audio"], single.trace(codes)["audio"]) > HALF_DB[name, dtype]

    def test_tf32(self, golden):
        """Near IEEE fp32, and not the same."""
        codes = golden.tensors("dac_tiny")["odd.codes"][:1, :, :3]
        plain, fast = (golden.vocoder("odd", backend="triton", tf32=tf32).decode(codes) for tf32 in (False, True))
        assert 50 < db(fast, plain) < 100

    @pytest.mark.parametrize(
        ("backend", "dtype"), [("reference", "float32"), ("triton", "bfloat16"), ("triton", "float16")]
    )
    def test_tf32_is_of_fp32_on_kernels(self, golden, backend, dtype):
        with pytest.raises(ValueError, match=f"tf32 is a way of the kernels to .*, got .*{backend}.*{dtype}"):
            golden.vocoder("odd", backend=backend, dtype=dtype, tf32=True)


@st.composite
def talks(draw):
    frames = frames_of(draw(st.integers(0, 40)), seed=draw(st.integers(0, 9)))
    cuts = [0, *sorted(draw(st.lists(st.integers(0, len(frames)), max_size=4))), len(frames)]
    eos_frame = draw(st.none() | st.integers(max(cuts[-2] - 2, 0), len(frames)))  # said with the last message
    return frames, cuts, eos_frame


class TestStreams:
    @settings(deadline=None, max_examples=6, derandomize=True)
    @given(talks(), st.integers(1, 20), st.integers(1, 4))
    @example((frames_of(21), [0, *range(14, 22)], None), 1, 1)
    def test_exact(self, small, talk, chunk, first_chunk):
        frames, cuts, eos_frame = talk
        stream, emitted = small.stream(chunk=chunk, first_chunk=first_chunk), [torch.zeros(0)]
        for i in range(1, len(cuts)):
            last = i == len(cuts) - 1
            emitted.append(stream.push(frames[cuts[i - 1] : cuts[i]], eos_frame if last else None, last))
        assert same_bits(torch.cat(emitted), alone(small, frames, eos_frame))

    @pytest.mark.parametrize(
        ("dtype", "tf32"), [(torch.bfloat16, False), (torch.float16, False), (torch.float32, True)], ids=str
    )
    def test_other_precisions(self, small, dtype, tf32):
        """In steps and in company too."""
        state = {name: tensor.to(dtype) for name, tensor in small.state.items()}
        vocoder, clips = Vocoder(small.config, state, "triton", tf32), [frames_of(n, seed=n) for n in (20, 6)]
        wanted = [alone(vocoder, frames) for frames in clips]
        assert all(20 < db(audio, alone(small, frames)) < 100 for audio, frames in zip(wanted, clips, strict=True))
        streams = vocoder.streams(2, chunk=5)
        first = streams.push([clips[0][:16], clips[1]], last=[False, True])
        second = streams.push([clips[0][16:], None], last=[True, False])
        assert all(map(same_bits, map(torch.cat, zip(first, second, strict=True)), wanted))
        assert all(map(same_bits, vocoder.decode([*map(aligned, clips)]), wanted))

    @pytest.mark.parametrize("chunk", [3, 11])
    def test_launches_of_both_kinds(self, mixed, chunk):
        frames, stream = frames_of(40), mixed.stream(chunk=chunk)
        emitted = [stream.push(part) for part in (frames[:27], *frames[27:].split(6))]
        emitted.append(stream.push(frames[:0], last=True))
        assert same_bits(torch.cat(emitted), alone(mixed, frames))

    def test_golden_codec(self, golden):
        """Odd rates, nine codebooks."""
        vocoder, frames = golden.vocoder("odd", backend="triton"), torch.randint(1026, (36, 9))
        stream = vocoder.stream(chunk=5)
        emitted = [stream.push(part) for part in (frames[:30], frames[30:35])]
        assert len(emitted[0]) == 22 * 24 - vocoder.decoder.lag
        emitted.append(stream.push(frames[35:], 33, last=True))
        assert same_bits(torch.cat(emitted), vocoder.decode(shear_up(frames, 1025)[:33].T[None])[0])

    def test_rows(self, small, launches):
        """One begins late, one sits out, one ends early, one begins again: one chain of launches a step for all."""
        clips = [frames_of(n, seed=n) for n in (24, 33, 20, 17)]
        streams = small.streams(3, chunk=6)
        got, counts = {clip: [] for clip in range(4)}, []

        def push(*messages, rows=(0, 1, 2)):
            """A message: a clip, and from where to where of it; with its last one, where the audio ends."""
            before = launches.launches
            parts = [m and clips[m[0]][m[1] : m[2]] for m in messages]
            ends = [m[3] if m and len(m) > 3 else None for m in messages]
            ready = streams.push(parts, ends, [bool(m) and len(m) > 3 for m in messages])
            counts.append(launches.launches - before)
            for clip, samples in zip(rows, ready, strict=True):
                got[clip].append(samples)

        push((0, 0, 16), (1, 0, 19), None)
        push(None, (1, 19, 20), (2, 0, 15))
        push((0, 16, 18, 15), (1, 20, 26), None)
        streams.restart(0)
        push((3, 0, 15), None, (2, 15, 20, None), rows=(3, 1, 2))
        push(None, (1, 26, 33, None), None, rows=(3, 1, 2))
        push((3, 15, 17, None), None, None, rows=(3, 1, 2))
        push(None, None, None, rows=(3, 1, 2))
        chain = 2 + 7 + 1  # the codes and the first convolution; a block, in fp32; the last convolution
        assert counts == [chain * steps for steps in (2, 1, 1, 2, 2, 2, 0)]
        for clip, eos_frame in enumerate((15, None, None, None)):
            assert same_bits(torch.cat(got[clip]), alone(small, clips[clip], eos_frame)), clip

    def test_lookahead(self, small):
        """Fewer frames than the last samples need: the reported error is what was heard, and falls."""
        frames, reported = frames_of(34), []
        true = alone(small, frames)
        for lookahead in (0, 6, 12):
            stream = small.stream(lookahead=lookahead, chunk=5)
            emitted = [stream.push(frames[:20])]
            early = range(max(18 * 5 - small.decoder.lag, 0), min((18 - lookahead) * 5, 18 * 5 - 1))
            assert len(emitted[0]) == max(early.stop, early.start)
            emitted.append(stream.push(frames[20:], last=True))
            assert same_bits(torch.cat(emitted)[early.stop :], true[early.stop :])
            want = db(torch.cat(emitted)[early], true[early]) if early else math.inf
            assert stream.signal_to_error == pytest.approx(want, rel=1e-9)
            reported.append(stream.signal_to_error)
        assert reported == sorted(reported)
        assert reported[0] < 16 < reported[1] < math.inf
        assert reported[-1] == math.inf

    def test_far_into_a_clip(self, small):
        """Positions beyond 2**31: what a row emits depends on what lies in its rings alone."""
        decoder, heard = small.decoder, []
        rows = small.decoder.lookahead + 4
        for base in (1000, 2**30):
            made, codes = decoder.rings(1, rows), torch.zeros(1, rows + 2, 3, dtype=torch.int32)
            for ring in made.tensors():
                ring.zero_()
            codes[0, (base + torch.arange(rows + 2)) % (rows + 2)] = frames_of(rows + 2).int()
            spans = torch.tensor([[base, rows, OPEN, base + rows + 2]], dtype=torch.int32)
            heard.append(decoder.step(made, codes, spans, rows, True))
        assert heard[0].std() > 0.1
        assert same_bits(*heard)


LENGTHS = (9, 0, 1, 14, 6)


class TestBatches:
    @pytest.mark.parametrize("codec", ["small", "mixed"])
    def test_rows_depend_on_themselves_alone(self, request, codec):
        """Clips of different lengths, in any order, in any company."""
        vocoder = request.getfixturevalue(codec)
        clips = [aligned(frames_of(n, seed=n)) for n in LENGTHS]
        wanted = [vocoder.decode(clip[None])[0] for clip in clips]
        assert [*map(len, wanted)] == [vocoder.config.samples(n) for n in LENGTHS]
        for order in ((3, 4, 1, 0, 2), (2, 2), (1,)):
            got = vocoder.decode([clips[i] for i in order])
            assert all(same_bits(got[k], wanted[i]) for k, i in enumerate(order)), order
        assert same_bits(vocoder.decode(torch.stack([clips[0]] * 2))[1], wanted[0])
        assert vocoder.decode([]) == []

    @pytest.mark.parametrize("frames", [3, 7])
    def test_steps(self, small, monkeypatch, frames):
        """However many frames a step takes, and however many rows go together."""
        clips = [aligned(frames_of(n, seed=n)) for n in LENGTHS]
        wanted = small.decode(clips)
        monkeypatch.setattr(vocoder_module, "ACTIVATIONS", small.decoder.room(3, frames))
        monkeypatch.setattr(vocoder_module, "ROWS_TOGETHER", 3)
        assert small._frames_together(3) == frames
        seen, step = [], Decoder.step

        def counting(self, rings, codes, spans, *args):
            seen.append(spans[:, :2].tolist())
            return step(self, rings, codes, spans, *args)

        monkeypatch.setattr(Decoder, "step", counting)
        assert all(map(same_bits, small.decode(clips), wanted))
        assert all(any(count for _, count in spans) for spans in seen), "no step is for nothing"
        assert max(count for spans in seen if len(spans) == 3 for _, count in spans) == frames
        for row in range(3):  # of the first batch: every frame once
            spans = [spans[row] for spans in seen if len(spans) == 3]
            made = [frame for done, count in spans for frame in range(done, done + count)]
            assert made == [*range(LENGTHS[row] + small.decoder.lookahead if LENGTHS[row] else 0)]

    @pytest.mark.parametrize(
        ("wrong", "error", "message"),
        [
            (torch.zeros(4, 2, dtype=torch.int64), ValueError, r"codes\[1\] must be a tensor \[3, T\], got \[4, 2\]"),
            (torch.zeros(1, 3, 2, dtype=torch.int64), ValueError, r"codes\[1\] must be .*, got \[1, 3, 2\]"),
            (torch.zeros(3, dtype=torch.int64), ValueError, r"codes\[1\] must be a tensor \[3, T\], got \[3\]"),
            (torch.zeros(0, 2, dtype=torch.int64), ValueError, r"codes\[1\] must be a tensor \[3, T\], got \[0, 2\]"),
            (torch.zeros(3, 2), TypeError, r"codes\[1\] must be integers, got torch.float32"),
            (torch.tensor([[0], [18], [0]]), ValueError, r"codes\[1\].*1, 0\] must be in 0..17, got 18"),
            (torch.tensor([[0], [0], [-1]]), ValueError, r"codes\[1\].*2, 0\] must be in 0..17, got -1"),
            ([[0]] * 3, ValueError, r"codes\[1\] must be a tensor \[3, T\], got list"),
            (torch.zeros(1, 2, dtype=torch.int64), ValueError, r"codes\[1\] must have the 3 codebooks of .*, got 1"),
        ],
        ids=["many", "rank-3", "rank-1", "none", "float", "above", "negative", "list", "fewer"],
    )  # fmt: skip
    def test_a_wrong_clip_is_named(self, small, wrong, error, message):
        with pytest.raises(error, match=message):
            small.decode([aligned(frames_of(3)), wrong])

    def test_nothing(self, small):
        assert small.decode(torch.zeros(2, 3, 0, dtype=torch.int64)).shape == (2, 0)
        with pytest.raises(ValueError, match="codes must hold at least one frame to be traced"):
            small.trace(torch.zeros(1, 3, 0, dtype=torch.int64))


class Calls(TorchDispatchMode):
    """Counts the kernels that are called, and the bytes that are allocated for them."""

    def __init__(self):
        super().__init__()
        self.kernels, self.allocated = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.name()
        if name.startswith("zonos2_triton::"):
            self.kernels.append(name.removeprefix("zonos2_triton::"))
        if name == "aten::new_empty" or name == "zonos2_triton::waveform":
            self.allocated += result.nbytes
        return result


class TestRealSizes:
    """By shapes alone: a chain of launches is checked and counted, and nothing computed."""

    @pytest.mark.parametrize("rows", [1, 64])
    def test_launches(self, real, rows):
        """A push that makes a step is 25 launches, whatever the rows."""
        vocoder = real[torch.bfloat16]
        streams, frames = vocoder.streams(rows), torch.zeros(24, 9, dtype=torch.int64)
        with Calls() as calls:
            ready = streams.push([frames] * rows)
            streams.push([frames[:15]] * rows)  # too few
        units = ["convolution"] * 2 * 3, ["convolution"] * 2 * 3, ["residual_unit"] * 3, ["residual_unit"] * 3
        blocks = [kernel for made in units for kernel in ["transposed_convolution", *made]]
        assert calls.kernels == ["codebook_sum", "convolution", *blocks, "waveform"]
        assert len(calls.kernels) == 25
        assert [len(samples) for samples in ready] == [16 * 512 - vocoder.decoder.lag] * rows

    def test_launches_in_fp32(self, real):
        """Two for each residual unit."""
        with Calls() as calls:
            real[torch.float32].streams(1).push([torch.zeros(24, 9, dtype=torch.int64)])
        assert len(calls.kernels) == 31
        assert "residual_unit" not in calls.kernels

    def test_frames_that_a_sample_waits_for(self, real):
        decoder = real[torch.float32].decoder
        assert (decoder.lookahead, decoder.lag) == (10, 4757)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("rows", [1, 2, 7, 64])
    def test_activations_are_bounded(self, real, dtype, rows):
        """A step takes as many frames as fit, and what is allocated is what was reckoned with."""
        decoder, together = real[dtype].decoder, real[dtype]._frames_together(rows)
        assert together > 1
        room = decoder.room(rows, together)
        assert room <= vocoder_module.ACTIVATIONS < decoder.room(rows, together + 1)
        with Calls() as calls:
            decoder.rings(rows, together)
        assert calls.allocated == room

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_ten_minutes(self, real, dtype):
        frames = 600 * 44100 // 512
        with Calls() as calls:
            audio = real[dtype].decode(torch.zeros(1, 9, frames, dtype=torch.int64))
        assert audio.shape == (1, frames * 512)
        assert calls.allocated < 2**30 + 4 * frames * 512  # the samples of its steps

    def test_all_that_a_trace_keeps(self, real):
        vocoder = real[torch.float16]
        trace = vocoder.trace(torch.zeros(2, 9, 3, dtype=torch.int64))
        assert {stage: tuple(value.shape) for stage, value in trace.items()} == {
            "z": (2, 1024, 3),
            "conv_in": (2, 1536, 3),
            "block_0": (2, 768, 24),
            "block_1": (2, 384, 192),
            "block_2": (2, 192, 768),
            "block_3": (2, 96, 1536),
            "pre_tanh": (2, 1, 1536),
            "audio": (2, 1536),
        }
        assert [stage for stage, value in trace.items() if value.dtype != torch.float32] == ["z"]
