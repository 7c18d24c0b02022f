"""The vocoder on its kernels, interpreted: golden vectors, half precision, and clips that are equal bit for bit however
they come: whole, in steps, in company, as streams. What is planned for them is in test_vocoder.py and
test_exact_streams.py, by the kernels' reference."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model.codecs import (
    AUDIO_ATOL,
    aligned,
    assert_golden,
    assert_golden_frame,
    clip,
    decibels,
    frames_of,
    push_all,
    random_codec,
)
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.bench.proof.invariants import same_bits
from zonos2_triton.bench.proof.poison import poisoned
from zonos2_triton.model import Vocoder, VocoderConfig
from zonos2_triton.model import vocoder as vocoder_module
from zonos2_triton.reference.vocoder import layout
from zonos2_triton.reference.vocoder_layers import OPEN

pytestmark = pytest.mark.interpreter

OF_LIBRARY = 0.75  # error in half precision, of that of the library path; measured 0.36..0.53, stage by stage
HALF_DB = {  # signal to error of the audio in half precision, against fp32 of the same rounded weights
    ("odd", torch.bfloat16): 43,  # measured 45.1
    ("odd", torch.float16): 61,  # 63.3
    ("even", torch.bfloat16): 37,  # 39.1
    ("even", torch.float16): 54,  # 56.8
}


@pytest.fixture(autouse=True)
def launches():
    """Quicker than as it comes; the kernels' own tests check each launch. What nobody wrote is NaN."""
    with checked(bounds=False, undefined=False, races=False) as found, poisoned():
        yield found


@pytest.fixture(scope="module")
def small():
    """Of one block, 5 samples a frame, 3 channels; a clip is one sample shorter. A frame waits for 12 more. Residual
    units are one launch, which the interpreter takes twice as fast as two."""
    vocoder = random_codec((5,), "triton", decoder_dim=6)
    vocoder.decoder.ops = vocoder.decoder.ops._replace(widest_unit=3)
    return vocoder


@pytest.fixture(scope="module")
def mixed():
    """Of two blocks: the units of the first are two launches each, those of the second one."""
    vocoder = random_codec((3, 2), "triton")
    vocoder.decoder.ops = vocoder.decoder.ops._replace(widest_unit=2)
    return vocoder


@pytest.fixture(scope="module")
def real():
    """The 44.1 kHz codec by its shapes: in three precisions, on the meta device."""
    shapes = layout(VocoderConfig())
    return {
        dtype: Vocoder(
            VocoderConfig(), {n: torch.empty(s, dtype=dtype, device="meta") for n, s in shapes.items()}, "triton"
        )
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    }


def relative(got, want):
    return float((got.double() - want).square().mean().sqrt() / want.square().mean().sqrt())


class TestGolden:
    @pytest.mark.parametrize("name", ["odd", pytest.param("even", marks=pytest.mark.slow)])
    def test_stages(self, golden, name):
        assert_golden(golden.vocoder(name, backend="triton"), golden.tensors("dac_tiny", f"{name}."), clips=1)

    @pytest.mark.slow
    def test_one_frame(self, golden):
        assert_golden_frame(golden.vocoder("odd", backend="triton"), golden.tensors("dac_tiny", "odd."))

    @pytest.mark.slow
    def test_overlap(self, golden):
        """The official cross-fade, its first three chunks; test_vocoder_streams.py has it all, by the reference."""
        case = next(c for c in golden.json("vocoder_stream")["cases"] if c["name"] == "small_chunks_overlap_2")
        stored, sizes = golden.tensors("vocoder_stream", f"{case['name']}."), case["chunk_samples_per_message"]
        count = [i for i, size in enumerate(sizes, 1) if size][2]
        vocoder = golden.vocoder("even", backend="triton")
        stream = vocoder.stream("overlap", overlap=case["overlap_frames"], chunk=case["min_decode_chunk"])
        chunks = [stream.push(frame[None]) for frame in stored["codes"][:count]]
        assert [*map(len, chunks)] == sizes[:count]
        torch.testing.assert_close(torch.cat(chunks), stored["stream"][: sum(sizes[:count])], atol=AUDIO_ATOL, rtol=0)


class TestPrecision:
    @pytest.mark.parametrize(
        ("name", "frames", "dtype"),
        [
            ("odd", 13, torch.bfloat16),
            ("odd", 13, torch.float16),
            pytest.param("even", 3, torch.bfloat16, marks=pytest.mark.slow),
            pytest.param("even", 3, torch.float16, marks=pytest.mark.slow),
        ],
        ids=str,
    )
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
        assert decibels(got["audio"], single.trace(codes)["audio"]) > HALF_DB[name, dtype]

    @pytest.mark.parametrize(
        ("dtype", "tf32", "floor_db"),  # measured 40.7, 62.7, 61.4
        [
            (torch.bfloat16, False, 38),
            pytest.param(torch.float16, False, 60, marks=pytest.mark.slow),
            (torch.float32, True, 58),
        ],
        ids=str,
    )
    def test_steps_and_company(self, small, dtype, tf32, floor_db):
        """Near IEEE fp32, and not the same; of itself the same bits as streams and together."""
        state = {name: tensor.to(dtype) for name, tensor in small.state.items()}
        vocoder, clips = Vocoder(small.config, state, "triton", tf32), [frames_of(n, seed=n) for n in (18, 3)]
        vocoder.decoder.ops = vocoder.decoder.ops._replace(widest_unit=3)
        wanted = [clip(vocoder, frames) for frames in clips]
        assert floor_db < decibels(wanted[0], clip(small, clips[0])) < 100
        streams = vocoder.streams(2, chunk=4)
        first = streams.push([clips[0][:15], clips[1]], last=[False, True])
        second = streams.push([clips[0][15:], None], last=[True, False])
        assert all(map(same_bits, map(torch.cat, zip(first, second, strict=True)), wanted))
        assert all(map(same_bits, vocoder.decode([aligned(vocoder, frames) for frames in clips]), wanted))

    @pytest.mark.parametrize(
        ("backend", "dtype"), [("reference", "float32"), ("triton", "bfloat16"), ("triton", "float16")]
    )
    def test_tf32_is_of_fp32_on_kernels(self, golden, backend, dtype):
        with pytest.raises(ValueError, match=f"tf32 is a way of the kernels to .*, got .*{backend}.*{dtype}"):
            golden.vocoder("odd", backend=backend, dtype=dtype, tf32=True)


TALK = [(0, 14, None, False), *[(i, i + 1, None, False) for i in range(14, 18)], (18, 22, 21, True)]


class TestStreams:
    @pytest.mark.parametrize("chunk", [1, pytest.param(3, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("codec", ["small", "mixed"])
    def test_exact(self, request, codec, chunk):
        vocoder, frames = request.getfixturevalue(codec), frames_of(22)
        assert same_bits(push_all(vocoder.stream(chunk=chunk), (frames, TALK)), clip(vocoder, frames, 21))

    @pytest.mark.slow
    def test_golden_codec(self, golden):
        """Odd rates, nine codebooks."""
        vocoder, frames = golden.vocoder("odd", backend="triton"), frames_of(36, codebooks=9, top=1026)
        stream = vocoder.stream(chunk=5)
        emitted = [stream.push(part) for part in (frames[:30], frames[30:35])]
        assert len(emitted[0]) == 22 * 24 - vocoder.decoder.lag
        emitted.append(stream.push(frames[35:], 33, last=True))
        assert same_bits(torch.cat(emitted), clip(vocoder, frames, 33))

    def test_rows(self, small, launches):
        """One begins late, one sits out, one ends early, one begins again: one chain of launches a step for all."""
        clips = [frames_of(n, seed=n) for n in (24, 33, 20, 17)]
        streams = small.streams(3, chunk=6)
        got, counts = {i: [] for i in range(4)}, []

        def push(*messages, rows=(0, 1, 2)):
            """A message: a clip, and from where to where of it; with its last one, where the audio ends."""
            before = launches.launches
            parts = [m and clips[m[0]][m[1] : m[2]] for m in messages]
            ends = [m[3] if m and len(m) > 3 else None for m in messages]
            ready = streams.push(parts, ends, [bool(m) and len(m) > 3 for m in messages])
            counts.append(launches.launches - before)
            for i, samples in zip(rows, ready, strict=True):
                got[i].append(samples)

        push((0, 0, 16), (1, 0, 19), None)
        push(None, (1, 19, 20), (2, 0, 15))
        push((0, 16, 18, 15), (1, 20, 26), None)
        streams.restart(0)
        push((3, 0, 15), None, (2, 15, 20, None), rows=(3, 1, 2))
        push(None, (1, 26, 33, None), None, rows=(3, 1, 2))
        push((3, 15, 17, None), None, None, rows=(3, 1, 2))
        push(None, None, None, rows=(3, 1, 2))
        chain = 2 + 4 + 1  # the codes and the first convolution; a block; the last convolution
        assert counts == [chain * steps for steps in (2, 1, 1, 2, 2, 2, 0)]
        for i, eos_frame in enumerate((15, None, None, None)):
            assert same_bits(torch.cat(got[i]), clip(small, clips[i], eos_frame)), i

    def test_lookahead(self, small):
        """Samples that come early are decoded again; the reported error is what was heard."""
        frames, stream = frames_of(24), small.stream(lookahead=6, chunk=5)
        emitted, true = [stream.push(frames[:20])], clip(small, frames)
        early = range(18 * 5 - small.decoder.lag, (18 - 6) * 5)
        assert len(emitted[0]) == early.stop
        emitted.append(stream.push(frames[20:], last=True))
        assert same_bits(torch.cat(emitted)[early.stop :], true[early.stop :])
        assert same_bits(emitted[0][: early.start], true[: early.start])
        want = decibels(emitted[0][early], true[early])
        assert 0 < stream.signal_to_error == pytest.approx(want, rel=1e-9)

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


class TestBatches:
    def test_rows_depend_on_themselves_alone(self, mixed):
        """Clips of different lengths, in any company, in one step or several."""
        lengths = (5, 0, 1)
        clips = [aligned(mixed, frames_of(n, seed=n)) for n in lengths]
        wanted = [mixed.decode(codes[None])[0] for codes in clips]
        assert [*map(len, wanted)] == [mixed.config.samples(n) for n in lengths]
        got = mixed.decode([clips[i] for i in (2, 1, 0, 2)])
        assert all(same_bits(audio, wanted[i]) for audio, i in zip(got, (2, 1, 0, 2), strict=True))
        traced = mixed.trace(torch.stack([clips[0]] * 2))["audio"]
        assert all(same_bits(audio, wanted[0]) for audio in traced)

    @pytest.mark.parametrize("frames", [3, pytest.param(7, marks=pytest.mark.slow)])
    def test_steps(self, small, monkeypatch, frames):
        """However many frames a step takes, and however many rows go together."""
        clips = [aligned(small, frames_of(n, seed=n)) for n in (5, 0, 1, 3)]
        wanted = small.decode(clips)
        monkeypatch.setattr(vocoder_module, "ACTIVATIONS", small.decoder.room(3, frames))
        monkeypatch.setattr(vocoder_module, "ROWS_TOGETHER", 3)
        assert all(map(same_bits, small.decode(clips), wanted))


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

    @pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16], ids=str)
    def test_ten_minutes(self, real, dtype):
        frames = 600 * 44100 // 512
        with Calls() as calls:
            audio = real[dtype].decode(torch.zeros(1, 9, frames, dtype=torch.int64))
        assert audio.shape == (1, frames * 512)
        assert calls.allocated < 2**30 + 4 * frames * 512  # the samples of its steps

    def test_all_that_a_trace_keeps(self, real):
        trace = real[torch.float16].trace(torch.zeros(2, 9, 3, dtype=torch.int64))
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
