"""The vocoder on its kernels, interpreted. Two other files test the schedule by the reference of the kernels:
test_vocoder.py and test_exact_streams.py."""

import pytest
import torch

from tests.model.codecs import aligned, assert_golden, assert_golden_frame, clip, frames_of, random_codec
from tests.model.operations import Operations
from tests.model.talks import push_all
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.bench.proof.invariants import same_bits
from zonos2_triton.bench.proof.lookahead import decibels
from zonos2_triton.bench.proof.poison import poisoned
from zonos2_triton.model import Vocoder, VocoderConfig
from zonos2_triton.model import vocoder as vocoder_module
from zonos2_triton.reference.vocoder import layout
from zonos2_triton.reference.vocoder_layers import LENGTH_UNKNOWN

pytestmark = pytest.mark.interpreter

OF_LIBRARY = 0.75  # error in half precision, of that of the library path; measured 0.36..0.53, stage by stage
HALF_DB = {torch.bfloat16: 43, torch.float16: 61}  # audio against fp32 of the same rounded weights; measured 45.1, 63.3


@pytest.fixture(autouse=True)
def launches():
    """Without checks of each launch, which the kernels' own tests have. Unwritten memory is NaN."""
    with checked(bounds=False, undefined=False, races=False) as found, poisoned():
        yield found


@pytest.fixture(scope="module")
def small():
    """One block, 5 samples a frame, 3 channels. Units are one launch, twice as fast in the interpreter as two."""
    vocoder = random_codec((5,), "triton", decoder_dim=6)
    vocoder.decoder.ops = vocoder.decoder.ops._replace(widest_unit=3)
    return vocoder


@pytest.fixture(scope="module")
def mixed():
    """Two blocks: units of the first are two launches each, those of the second one."""
    vocoder = random_codec((3, 2), "triton")
    vocoder.decoder.ops = vocoder.decoder.ops._replace(widest_unit=2)
    return vocoder


@pytest.fixture(scope="module")
def real():
    """The 44.1 kHz codec on the meta device, in three precisions."""
    dtypes, shapes = (torch.float32, torch.bfloat16, torch.float16), layout(VocoderConfig())
    states = {dtype: {n: torch.empty(s, dtype=dtype, device="meta") for n, s in shapes.items()} for dtype in dtypes}
    return {dtype: Vocoder(VocoderConfig(), state, "triton") for dtype, state in states.items()}


def relative(got, want):
    return float((got.double() - want).square().mean().sqrt() / want.square().mean().sqrt())


class TestGolden:
    @pytest.mark.parametrize("name", ["odd", pytest.param("even", marks=pytest.mark.slow)])
    def test_stages(self, golden, name):
        assert_golden(golden.vocoder(name, backend="triton"), golden.tensors("dac_tiny", f"{name}."), clips=1)

    @pytest.mark.slow
    def test_one_frame(self, golden):
        assert_golden_frame(golden.vocoder("odd", backend="triton"), golden.tensors("dac_tiny", "odd."))


class TestPrecision:
    @pytest.mark.parametrize("dtype", HALF_DB, ids=str)
    def test_half(self, golden, dtype):
        """Each stage against fp64 of the same rounded weights: twice as near as the library, as sums stay in fp32."""
        codes = golden.tensors("dac_tiny")["odd.codes"][:1]
        library = golden.vocoder("odd", dtype=dtype, backend="reference")
        got = Vocoder(library.config, library.state, "triton").trace(codes)
        fp64, fp32 = torch.float64, torch.float32
        exact, single = (Vocoder.from_state(library.config, library.state, dtype=wide) for wide in (fp64, fp32))
        true, theirs = exact.trace(codes), library.trace(codes)
        errors = {stage: (relative(got[stage], true[stage]), relative(theirs[stage], true[stage])) for stage in true}
        assert all(ours < OF_LIBRARY * bound for ours, bound in errors.values()), errors
        assert decibels(got["audio"], single.trace(codes)["audio"]) > HALF_DB[dtype]

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
        """Near IEEE fp32 but not equal; streams and batches have the same bits as whole clips."""
        state = {name: tensor.to(dtype) for name, tensor in small.state.items()}
        vocoder, clips = Vocoder(small.config, state, "triton", tf32), [frames_of(n, seed=n) for n in (18, 3)]
        vocoder.decoder.ops = vocoder.decoder.ops._replace(widest_unit=3)
        wanted = [clip(vocoder, frames) for frames in clips]
        assert floor_db < decibels(wanted[0], clip(small, clips[0])) < 100
        streams = vocoder.streams(2, chunk=4)
        first = streams.push([clips[0][:15], clips[1]], last=[False, True])
        streams.restart(1)
        second = streams.push([clips[0][15:], clips[1][:0]], last=[True, False])
        third = streams.push([None, clips[1]], last=[False, True])
        assert same_bits(torch.cat([first[0], second[0]]), wanted[0])
        assert same_bits(first[1], wanted[1])
        assert same_bits(third[1], wanted[1])
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

    def test_lookahead(self, small):
        """Early samples are decoded again; the reported error is the difference."""
        frames, stream = frames_of(24), small.stream(lookahead=6, chunk=5)
        emitted, true = [stream.push(frames[:20])], clip(small, frames)
        early = range(18 * 5 - small.decoder.delay, (18 - 6) * 5)
        assert len(emitted[0]) == early.stop
        emitted.append(stream.push(frames[20:], last=True))
        assert same_bits(torch.cat(emitted)[early.stop :], true[early.stop :])
        assert same_bits(emitted[0][: early.start], true[: early.start])
        want = decibels(emitted[0][early], true[early])
        assert 0 < stream.signal_to_error == pytest.approx(want, rel=1e-9)

    def test_far_into_a_clip(self, small):
        """Positions beyond 2**31: the samples of a slot depend on its rings only."""
        decoder, heard = small.decoder, []
        rows = small.decoder.right_context + 4
        for base in (1000, 2**30):
            made, codes = decoder.rings(1, rows), torch.zeros(1, rows + 2, 3, dtype=torch.int32)
            for ring in made.tensors():
                ring.zero_()
            codes[0, (base + torch.arange(rows + 2)) % (rows + 2)] = frames_of(rows + 2).int()
            step_meta = torch.tensor([[base, rows, LENGTH_UNKNOWN, base + rows + 2]], dtype=torch.int32)
            heard.append(decoder.step(made, codes, step_meta, rows, True))
        assert heard[0].std() > 0.1
        assert same_bits(*heard)


class TestBatches:
    def test_rows_depend_on_themselves_alone(self, mixed):
        lengths = (5, 0, 1)
        clips = [aligned(mixed, frames_of(n, seed=n)) for n in lengths]
        wanted = [mixed.decode(codes[None])[0] for codes in clips]
        assert [*map(len, wanted)] == [mixed.config.samples(n) for n in lengths]
        got = mixed.decode([clips[i] for i in (2, 1, 0, 2)])
        assert all(same_bits(audio, wanted[i]) for audio, i in zip(got, (2, 1, 0, 2), strict=True))
        traced = mixed.trace(torch.stack([clips[0]] * 2))["audio"]
        assert all(same_bits(audio, wanted[0]) for audio in traced)


class TestRealSizes:
    """On the meta device: launches are checked and counted, nothing is computed."""

    @pytest.mark.parametrize(("n", "dtype"), [(1, torch.bfloat16), (64, torch.bfloat16), (1, torch.float32)], ids=str)
    def test_launches(self, real, n, dtype):
        """A step is 25 launches for any number of slots; 31 in fp32."""
        vocoder, wide = real[dtype], [["conv1d_snake"] * 6] * 2
        units = wide + (wide if dtype == torch.float32 else [["residual_unit"] * 3] * 2)
        streams, frames = vocoder.streams(n), torch.zeros(24, 9, dtype=torch.int64)
        with Operations() as seen:
            ready = streams.push([frames] * n)
            streams.push([frames[:15]] * n)  # too few
        blocks = [kernel for made in units for kernel in ["conv_transpose1d_snake", *made]]
        kernels = [name.removeprefix("zonos2_triton::") for name in seen.names if name.startswith("zonos2_triton::")]
        assert kernels == ["rvq_decode", "conv1d_snake", *blocks, "conv1d_tanh"]
        assert len(kernels) == (31 if dtype == torch.float32 else 25)
        assert [len(samples) for samples in ready] == [16 * 512 - vocoder.decoder.delay] * n

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("rows", [1, 2, 7, 64])
    def test_activations_are_bounded(self, real, dtype, rows):
        decoder, together = real[dtype].decoder, real[dtype]._frames_per_step(rows)
        assert together > 1
        room = decoder.ring_bytes(rows, together)
        assert room <= vocoder_module.MAX_ACTIVATION_BYTES < decoder.ring_bytes(rows, together + 1)
        with Operations() as seen:
            decoder.rings(rows, together)
        made = zip(seen.names, seen.bytes, strict=True)
        assert sum(size for name, size in made if name == "aten::new_empty") == room


class TestLatents:
    def test_a_trace_of_one_codebook(self, small):
        """Codes [B, 1, T] are contiguous when transposed too, with strides that no kernel accepts."""
        codes = frames_of(4).clamp(max=15)[:, :1].reshape(2, 1, 2)
        assert same_bits(small.trace(codes)["z"].contiguous(), small.latents(codes).contiguous())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_a_clip_is_as_from_codes(self, small, monkeypatch, dtype):
        """Bit for bit, in any steps and batch, because the ring of z holds the same numbers."""
        state = {name: tensor.to(dtype) for name, tensor in small.state.items()}
        vocoder, codes = Vocoder(small.config, state, "triton"), frames_of(9).clamp(max=15).T.reshape(3, 3, 3)
        vocoder.decoder.ops = vocoder.decoder.ops._replace(widest_unit=3)
        together, z = vocoder.decode(codes), vocoder.latents(codes)
        assert same_bits(vocoder.decode_latents(z[1:2])[0], together[1])
        monkeypatch.setattr(vocoder_module, "MAX_CLIPS", 2)
        monkeypatch.setattr(vocoder_module, "MAX_ACTIVATION_BYTES", vocoder.decoder.ring_bytes(2, 4))
        assert same_bits(vocoder.decode_latents(z), together)
