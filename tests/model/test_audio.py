"""Audio files: round trips, and files that appear whole or not at all."""

import math
import os
import wave
from threading import Thread
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch

from zonos2_triton.model import Audio
from zonos2_triton.model.audio import read_audio
from zonos2_triton.model.files import whole_file

FULL = [kind("disk full") for kind in (RuntimeError, OSError, KeyboardInterrupt)]
STEP = 2**-15  # of 16 bits; samples are scaled by 32767 and read back over 32768
FORMATS = [".wav", ".flac", ".ogg", ".opus", ".mp3"]
KINDS = {"x.WAV": "WAV PCM_16", "x.ogg": "OGG VORBIS", "x.y.flac": "FLAC PCM_16", "x.Mp3": "MP3 MPEG_LAYER_III"}
KINDS |= {"x.opus": "OGG OPUS"}
SAMPLES = {2.0: 32767, -1.0: -32767, 3e38: 32767, 0.0: 0}  # and what is written; a wrapped 2.0 would be -2
SAMPLES |= {0.4 / 32767: 0, 0.6 / 32767: 1, -0.6 / 32767: -1, 32766.6 / 32767: 32767}


def tone(n=4410, rate=44_100):
    return 0.5 * torch.sin(2 * math.pi * 440 * torch.arange(n) / rate)


class TestSave:
    @pytest.mark.parametrize("ending", [".wav", ".flac"])
    def test_samples(self, tmp_path, ending):
        Audio(torch.tensor([*SAMPLES]), 8000).save(tmp_path / f"x{ending}")
        assert soundfile.read(tmp_path / f"x{ending}", dtype="int16")[0].tolist() == [*SAMPLES.values()]

    @pytest.mark.parametrize("ending", FORMATS)
    def test_round_trip(self, tmp_path, ending):
        Audio(tone(), 44_100).save(tmp_path / f"x{ending}")
        samples, rate = read_audio(tmp_path / f"x{ending}")
        made = tone(4800, 48_000) if ending == ".opus" else tone()  # which knows no 44.1 kHz
        assert (samples.dtype, samples.shape, rate) == (torch.float32, (1, len(made)), len(made) * 10)
        if ending in (".wav", ".flac"):
            torch.testing.assert_close(samples[0], made, atol=STEP, rtol=0)
        else:  # lossy: measured 28 dB and more
            assert 10 * math.log10(made.square().sum() / (samples[0] - made).square().sum()) > 22

    @pytest.mark.parametrize(
        ("ending", "rate", "written"),
        [(".mp3", 24_000, 24_000), (".mp3", 9000, 11_025), (".mp3", 96_000, 48_000), (".opus", 22_050, 24_000)],
    )
    def test_a_rate_that_the_format_lacks(self, tmp_path, ending, rate, written):
        Audio(tone(2 * rate, rate), rate).save(tmp_path / f"x{ending}")
        assert soundfile.info(tmp_path / f"x{ending}").samplerate == written
        samples = read_audio(tmp_path / f"x{ending}")[0][0, written // 2 :][:written]
        assert samples.numel() == written
        assert torch.fft.rfft(samples).abs().argmax() == 440  # Hz, in a second of it

    @pytest.mark.parametrize("ending", [".wav", ".ogg"])
    def test_no_samples(self, tmp_path, ending):
        Audio(torch.zeros(0), 44_100).save(tmp_path / f"x{ending}")
        samples, rate = read_audio(tmp_path / f"x{ending}")
        assert (samples.shape, rate) == ((1, 0), 44_100)

    def test_an_empty_sound_with_a_comment_can_be_read_by_others(self, tmp_path):
        Audio(torch.zeros(0), 44100, "made by a machine").save(tmp_path / "x.wav")
        with wave.open(str(tmp_path / "x.wav")) as file:
            assert (file.getnframes(), file.getframerate()) == (0, 44100)

    @pytest.mark.parametrize(("name", "kind"), KINDS.items())
    def test_format_follows_the_ending(self, tmp_path, name, kind):
        Audio(tone(), 24_000).save(str(tmp_path / name))  # a rate that all have
        info = soundfile.info(tmp_path / name)
        assert (f"{info.format} {info.subtype}", info.channels, info.samplerate) == (kind, 1, 24_000)
        assert [path.name for path in tmp_path.iterdir()] == [name]

    @pytest.mark.parametrize("comment", ["synthetic speech; weights: zufällig", ""], ids=["comment", "none"])
    @pytest.mark.parametrize("ending", FORMATS)
    def test_comment(self, tmp_path, ending, comment):
        """The same sound gives the same bytes, except for Ogg, which draws a serial number."""
        for name in "ab":
            Audio(tone(), 44_100, comment).save(tmp_path / f"{name}{ending}")
        with soundfile.SoundFile(tmp_path / f"a{ending}") as file:
            assert file.comment == (comment.replace("ä", "\\xe4") if ending == ".mp3" else comment)
        if ending not in (".ogg", ".opus"):
            assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()

    def test_a_long_ogg(self, tmp_path):
        """libsndfile crashes when it is given 50 s at once."""
        Audio(0.1 * torch.randn(2_300_000, generator=torch.Generator().manual_seed(0)), 44_100).save(tmp_path / "x.ogg")
        assert read_audio(tmp_path / "x.ogg")[0].shape == (1, 2_300_000)


class TestRefusals:
    """Each leaves the folder as it was: no new or partial file, the old one untouched."""

    @pytest.fixture
    def old(self, tmp_path):
        (tmp_path / "x.wav").write_bytes(b"old")
        yield tmp_path / "x.wav"
        assert (tmp_path / "x.wav").read_bytes() == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["x.wav"]

    @pytest.mark.parametrize(
        ("samples", "rate", "error", "message"),
        [
            (torch.tensor([0.0, math.nan]), 44_100, ValueError, "finite .*got NaN or Inf"),
            (torch.tensor([0.0, -math.inf]), 44_100, ValueError, "finite .*got NaN or Inf"),
            (torch.zeros(2, 10), 44_100, ValueError, r"samples must be \[N\]"),
            (tone(), 0, ValueError, "sample_rate"),
            # 16-bit samples are no fractions of 1: they would all be clipped.
            ((tone() * 32767).short(), 44_100, (TypeError, ValueError), "samples"),
        ],
    )
    def test_sounds(self, old, samples, rate, error, message):
        with pytest.raises(error, match=message):
            Audio(samples, rate).save(old)

    @pytest.mark.parametrize(
        ("name", "error", "message"),
        [
            ("x.mp4", ValueError, r"must end in \.wav, \.flac, \.ogg, \.opus, \.mp3, got '.*x.mp4'"),
            (".wav", ValueError, r"must end in \.wav, \.flac, \.ogg, \.opus, \.mp3, got '.*\.wav'"),
            ("absent/x.wav", FileNotFoundError, r"cannot write .*absent.x\.wav: No such file"),
            ("x.wav/y.wav", NotADirectoryError, r"cannot write .*y\.wav"),
        ],
    )
    def test_places(self, old, name, error, message):
        with pytest.raises(error, match=message):
            Audio(tone(), 44_100).save(old.parent / name)

    @pytest.mark.parametrize("ending", [".flac", ".opus", ".mp3"])
    def test_no_samples_in_a_format_that_cannot_hold_them(self, old, ending):
        """libsndfile writes a file of no bytes and cannot read it."""
        with pytest.raises(ValueError, match=f"a {ending} file cannot hold an empty sound"):
            Audio(torch.zeros(0), 44_100).save(old.with_suffix(ending))

    def test_a_format_that_this_libsndfile_lacks(self, old, monkeypatch):
        monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": "", "FLAC": ""})
        with pytest.raises(ValueError, match=r"libsndfile .* writes no \.mp3, .* end in \.wav, \.flac, got .*x\.mp3"):
            Audio(tone(), 44_100).save(old.with_suffix(".mp3"))

    @pytest.mark.parametrize("error", [*FULL, soundfile.LibsndfileError(2)], ids=repr)
    def test_failure_while_writing(self, old, monkeypatch, error):
        monkeypatch.setattr(soundfile.SoundFile, "write", Mock(side_effect=error))
        raised = type(error) if error in FULL else OSError
        with pytest.raises(raised, match=r"disk full|cannot write the sound"):
            Audio(tone(), 44_100).save(old)

    def test_a_full_disk_that_is_not_reported(self, old, monkeypatch):
        monkeypatch.setattr(soundfile, "info", lambda path: type("Info", (), {"frames": 99}))
        with pytest.raises(OSError, match="only 99 of 4410 samples were kept"):
            Audio(tone(), 44_100).save(old)

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [(os.mkdir, IsADirectoryError, "Is a directory"), (os.mkfifo, OSError, "it exists and is no regular file")],
    )
    def test_what_is_no_file_stays(self, tmp_path, make, error, message):
        make(tmp_path / "x.wav")
        with pytest.raises(error, match=rf"cannot write .*x\.wav: {message}"):
            Audio(tone(), 44_100).save(tmp_path / "x.wav")
        assert [(path.name, path.is_file()) for path in tmp_path.iterdir()] == [("x.wav", False)]


def test_a_file_is_replaced_only_at_the_end(tmp_path):
    """The new file takes the old one's name; it is not written over its content."""
    path = tmp_path / "x.wav"
    path.write_bytes(b"old")
    with path.open("rb") as reader, whole_file(path) as part:
        part.write_bytes(b"new")
        assert path.read_bytes() == reader.read() == b"old"
        assert part.parent == path.parent  # a rename within a file system is atomic
        reader.seek(0)
    assert path.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["x.wav"]


class TestRead:
    def test_channels_come_first(self, tmp_path):
        left, right = np.array([0.5, 0.25, 0.0]), np.array([-0.5, -0.25, -0.125])
        soundfile.write(tmp_path / "x.wav", np.stack([left, right], 1), 16_000, subtype="PCM_16")
        samples, rate = read_audio(str(tmp_path / "x.wav"))
        assert (rate, samples.dtype) == (16_000, torch.float32)
        assert samples.tolist() == [left.tolist(), right.tolist()]

    @pytest.mark.parametrize("content", [b"not a sound, but a text\n" * 40, b""], ids=["text", "empty"])
    def test_no_sound_file(self, tmp_path, content):
        for name in ("notes.txt", "notes.wav", "notes.raw"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=rf"{name} is no sound file that can be read"):
                read_audio(tmp_path / name)

    @pytest.mark.parametrize("name", ["absent.wav", "."])
    def test_no_file(self, tmp_path, name):
        with pytest.raises(FileNotFoundError, match=r"is not a file"):
            read_audio(tmp_path / name)


class TestHeaders:
    """The stated length is ignored."""

    @pytest.fixture
    def written(self, tmp_path):
        for ending in (".wav", ".flac"):
            Audio(tone(), 44_100).save(tmp_path / f"tone{ending}")
        return {path.suffix: path.read_bytes() for path in tmp_path.iterdir()}

    @pytest.mark.parametrize("samples", [0, 1000, 2**36 - 1], ids=["unknown", "too-few", "too-many"])
    def test_flac(self, tmp_path, written, samples):
        """The 36 bits of STREAMINFO; 0 is what an encoder writes into a pipe."""
        content = bytearray(written[".flac"])
        content[21] = content[21] & 0xF0 | samples >> 32
        content[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
        (tmp_path / "x.flac").write_bytes(content)
        samples, rate = read_audio(tmp_path / "x.flac")
        torch.testing.assert_close(samples[0], tone(), atol=STEP, rtol=0)
        assert rate == 44_100

    @pytest.mark.parametrize("id3", [b"", b"ID3\4\0\0\0\0\1\0" + b"Xing" * 32], ids=["plain", "id3"])
    @pytest.mark.parametrize("frames", [1, 2, 2**32 - 1])
    def test_mp3(self, tmp_path, frames, id3):
        """The number of frames follows the tag and its flags."""
        Audio(tone(), 44_100).save(tmp_path / "tone.mp3")
        content = (tmp_path / "tone.mp3").read_bytes()
        at = content.index(b"Xing") + 8
        (tmp_path / "x.mp3").write_bytes(id3 + content[:at] + frames.to_bytes(4, "big") + content[at + 4 :])
        samples, rate = read_audio(tmp_path / "x.mp3")
        torch.testing.assert_close(samples[0, 500:4000], tone()[500:4000], atol=0.02, rtol=0)
        assert rate == 44_100

    @pytest.mark.parametrize("id3", [b"", b"ID3\4\0\0\0\0\1\0" + b"Xing" * 32], ids=["plain", "id3"])
    def test_mp3_without_a_tag(self, tmp_path, id3):
        """As encoders write a variable bitrate into a pipe: it begins quietly, so that a guess is too short."""
        loud = torch.cat([1e-3 * tone(44_100), tone(44_100)])
        Audio(loud, 44_100).save(tmp_path / "tone.mp3")
        content = (tmp_path / "tone.mp3").read_bytes()
        (tmp_path / "x.mp3").write_bytes(id3 + content[content.index(content[:2], 2) :])
        assert 0 <= read_audio(tmp_path / "x.mp3")[0].shape[1] - len(loud) < 2304

    @pytest.mark.parametrize("size", [0, 2**31 - 1, 2**32 - 1], ids=hex)
    def test_wav(self, tmp_path, written, size):
        """Files of programs that cannot seek back to the header."""
        content, size = written[".wav"], size.to_bytes(4, "little")
        (tmp_path / "x.wav").write_bytes(content[:4] + size + content[8:40] + size + content[44:])
        torch.testing.assert_close(read_audio(tmp_path / "x.wav")[0][0], tone(), atol=STEP, rtol=0)

    def test_more_than_there_is(self, tmp_path, written):
        (tmp_path / "x.wav").write_bytes(written[".wav"][:-3000])
        assert read_audio(tmp_path / "x.wav")[0].shape == (1, 4410 - 1500)

    @pytest.mark.parametrize(
        ("place", "number", "message"),
        [
            (22, (100).to_bytes(2, "little"), "has 100 channels, a recording may have 32"),
            (22, (2**16 - 1).to_bytes(2, "little"), "is no sound file that can be read: Too many channels"),
            (24, (0).to_bytes(4, "little"), "is no sound file that can be read"),
        ],
        ids=["channels", "absurd-channels", "rate"],
    )
    def test_absurd(self, tmp_path, written, place, number, message):
        content = written[".wav"]
        (tmp_path / "x.wav").write_bytes(content[:place] + number + content[place + len(number) :])
        with pytest.raises(ValueError, match=rf"x\.wav {message}"):
            read_audio(tmp_path / "x.wav")

    def test_hours(self, tmp_path):
        soundfile.write(tmp_path / "x.flac", np.zeros(601 * 8000, "int16"), 8000)
        with pytest.raises(ValueError, match=r"x\.flac lasts over 600 s"):
            read_audio(tmp_path / "x.flac")

    def test_a_pipe(self, tmp_path, written):
        os.mkfifo(tmp_path / "x")
        writer = Thread(target=(tmp_path / "x").write_bytes, args=[written[".flac"]])
        writer.start()
        assert read_audio(tmp_path / "x")[0].shape == (1, 4410)
        writer.join()
