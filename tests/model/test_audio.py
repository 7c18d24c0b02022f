"""Sound files: what is written, what is read back, and that a file appears whole or not at all."""

import math
import os
import wave

import numpy as np
import pytest
import soundfile
import torch

from zonos2_triton.model import Audio
from zonos2_triton.model.audio import read_audio, whole_file

STEP = 2**-15  # of 16 bits; samples are scaled by 32767 and read back over 32768
FORMATS = [".wav", ".flac", ".ogg"]


def tone(n=4410, rate=44_100):
    return 0.5 * torch.sin(2 * math.pi * 440 * torch.arange(n) / rate)


def stored_integers(path):
    return soundfile.read(path, dtype="int16")[0].tolist()


class TestSave:
    @pytest.mark.parametrize("ending", [".wav", ".flac"])
    @pytest.mark.parametrize(
        ("sample", "integer"),
        [
            (2.0, 32767),  # a wrapped one would be -2
            (-2.0, -32767),
            (1 + 1e-6, 32767),
            (1.0, 32767),
            (-1.0, -32767),
            (3e38, 32767),
            (0.0, 0),
            (0.4 / 32767, 0),
            (0.6 / 32767, 1),
            (-0.4 / 32767, 0),
            (-0.6 / 32767, -1),
            (32766.6 / 32767, 32767),
        ],
    )
    def test_samples(self, tmp_path, sample, integer, ending):
        path = tmp_path / f"x{ending}"
        Audio(torch.tensor([0.25, sample, -0.25]), 8000).save(path)
        assert stored_integers(path) == [8192, integer, -8192]

    @pytest.mark.parametrize("ending", [".wav", ".flac"])
    def test_round_trip(self, tmp_path, ending):
        path = tmp_path / f"x{ending}"
        Audio(tone(), 44_100).save(path)
        samples, rate = read_audio(path)
        assert (samples.dtype, samples.shape, rate) == (torch.float32, (1, 4410), 44_100)
        torch.testing.assert_close(samples[0], tone(), atol=STEP, rtol=0)

    def test_round_trip_ogg(self, tmp_path):
        """Lossy: measured 28 dB."""
        Audio(tone(), 44_100).save(tmp_path / "x.ogg")
        samples, rate = read_audio(tmp_path / "x.ogg")
        assert (samples.dtype, samples.shape, rate) == (torch.float32, (1, 4410), 44_100)
        assert 10 * math.log10(tone().square().sum() / (samples[0] - tone()).square().sum()) > 22

    @pytest.mark.parametrize("ending", [".wav", ".ogg"])
    def test_no_samples(self, tmp_path, ending):
        """What a model that ends at once has said."""
        Audio(torch.zeros(0), 44_100).save(tmp_path / f"x{ending}")
        samples, rate = read_audio(tmp_path / f"x{ending}")
        assert (samples.shape, rate) == ((1, 0), 44_100)

    @pytest.mark.parametrize(
        ("name", "container", "coding"),
        [
            ("x.wav", "WAV", "PCM_16"),
            ("x.flac", "FLAC", "PCM_16"),
            ("x.ogg", "OGG", "VORBIS"),
            ("x.WAV", "WAV", "PCM_16"),
            ("x.y.flac", "FLAC", "PCM_16"),
        ],
    )
    def test_format_follows_the_ending(self, tmp_path, name, container, coding):
        Audio(tone(), 24_000).save(str(tmp_path / name))
        info = soundfile.info(tmp_path / name)
        assert (info.format, info.subtype, info.channels, info.samplerate) == (container, coding, 1, 24_000)
        assert [path.name for path in tmp_path.iterdir()] == [name]

    @pytest.mark.parametrize("comment", ["synthetic speech; weights: zufällig", ""], ids=["comment", "none"])
    @pytest.mark.parametrize("ending", FORMATS)
    def test_comment(self, tmp_path, ending, comment):
        path = tmp_path / f"x{ending}"
        Audio(tone(), 44_100, comment).save(path)
        with soundfile.SoundFile(path) as file:
            assert file.comment == comment

    @pytest.mark.parametrize("ending", [".wav", ".flac"])
    def test_same_sound_same_bytes(self, tmp_path, ending):
        """Not .ogg: its format asks for a serial number that differs from file to file."""
        for name in ("a", "b"):
            Audio(tone(), 44_100, "comment").save(tmp_path / f"{name}{ending}")
        assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()

    def test_seconds(self):
        assert Audio(torch.zeros(11_025), 44_100).seconds == 0.25

    def test_no_samples_in_a_format_that_cannot_hold_them(self, tmp_path):
        """libsndfile writes a file of no bytes and cannot read it."""
        with pytest.raises(ValueError, match="cannot hold an empty sound"):
            Audio(torch.zeros(0), 44_100).save(tmp_path / "x.flac")
        assert [*tmp_path.iterdir()] == []


class TestRefusals:
    """Each leaves the folder as it was: no new file, no half of one, the old one untouched."""

    @pytest.fixture
    def old(self, tmp_path):
        (tmp_path / "x.wav").write_bytes(b"old")
        yield tmp_path / "x.wav"
        assert (tmp_path / "x.wav").read_bytes() == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["x.wav"]

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
    def test_not_finite(self, old, bad):
        with pytest.raises(ValueError, match="samples must be finite to be saved, got NaN or Inf"):
            Audio(torch.tensor([0.0, bad, 0.0]), 44_100).save(old)

    @pytest.mark.parametrize("name", ["x.mp3", "x", "x.wav.txt", ".wav"])
    def test_unknown_ending(self, old, name):
        with pytest.raises(ValueError, match=rf"must end in \.wav, \.flac, \.ogg, got '.*{name}'"):
            Audio(tone(), 44_100).save(old.with_name(name))

    @pytest.mark.parametrize("rate", [0, -1])
    def test_sample_rate(self, old, rate):
        with pytest.raises(ValueError, match="sample_rate"):
            Audio(tone(), rate).save(old)

    @pytest.mark.parametrize("shape", [(2, 10), (10, 2), (1, 2, 5)], ids=str)
    def test_more_than_one_channel(self, old, shape):
        with pytest.raises(ValueError, match=r"samples must be \[N\]"):
            Audio(torch.zeros(shape), 44_100).save(old)

    def test_integers(self, old):
        """16-bit samples are no fractions of 1: they would all be clipped."""
        with pytest.raises((TypeError, ValueError), match="samples"):
            Audio((tone() * 32767).short(), 44_100).save(old)

    def test_missing_folder(self, old):
        with pytest.raises(FileNotFoundError, match=r"cannot write .*absent.x\.wav: No such file"):
            Audio(tone(), 44_100).save(old.parent / "absent" / "x.wav")

    def test_a_file_for_a_folder(self, old):
        with pytest.raises(NotADirectoryError, match=r"cannot write .*y\.wav"):
            Audio(tone(), 44_100).save(old / "y.wav")

    @pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt], ids=lambda error: error.__name__)
    def test_failure_while_writing(self, old, monkeypatch, error):
        def fail(self, data):
            raise error("disk full")

        monkeypatch.setattr(soundfile.SoundFile, "write", fail)
        with pytest.raises(error, match="disk full"):
            Audio(tone(), 44_100).save(old)

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit], ids=lambda error: error.__name__)
    def test_failure_in_the_block(self, old, error):
        with pytest.raises(error), whole_file(old) as part:  # noqa: PT012  the block is what fails
            part.write_bytes(b"half")
            assert old.read_bytes() == b"old"
            raise error


class TestWholeFile:
    def test_replaces_only_at_the_end(self, tmp_path):
        path = tmp_path / "x.wav"
        path.write_bytes(b"old")
        with whole_file(path) as part:
            part.write_bytes(b"new")
            assert path.read_bytes() == b"old"
            assert part.parent == path.parent  # a rename within a file system is atomic
        assert path.read_bytes() == b"new"
        assert [path.name for path in tmp_path.iterdir()] == ["x.wav"]

    def test_a_reader_keeps_the_old_file(self, tmp_path):
        """The new file takes the old one's name; it is not written over its content."""
        path = tmp_path / "x.wav"
        path.write_bytes(b"old")
        with path.open("rb") as reader:
            Audio(tone(), 44_100).save(path)
            assert reader.read() == b"old"
        assert len(stored_integers(path)) == 4410

    def test_a_folder_as_target(self, tmp_path):
        (tmp_path / "x.wav").mkdir()
        with pytest.raises(IsADirectoryError, match=r"cannot write .*x\.wav: Is a directory"):
            Audio(tone(), 44_100).save(tmp_path / "x.wav")
        assert [path.name for path in tmp_path.iterdir()] == ["x.wav"]

    def test_known_before_the_block_begins(self, tmp_path):
        """Nobody generates for minutes to learn that the folder is missing."""
        with pytest.raises(FileNotFoundError), whole_file(tmp_path / "absent" / "x.wav"):
            pytest.fail("the block began")


class TestRead:
    def test_channels_come_first(self, tmp_path):
        left, right = np.array([0.5, 0.25, 0.0]), np.array([-0.5, -0.25, -0.125])
        soundfile.write(tmp_path / "x.wav", np.stack([left, right], 1), 16_000, subtype="PCM_16")
        samples, rate = read_audio(str(tmp_path / "x.wav"))
        assert rate == 16_000
        assert samples.dtype == torch.float32
        assert samples.tolist() == [left.tolist(), right.tolist()]

    @pytest.mark.parametrize("name", ["notes.txt", "notes.wav", "notes.flac", "notes.raw"])
    @pytest.mark.parametrize("content", [b"not a sound, but a text\n" * 40, b""], ids=["text", "empty"])
    def test_no_sound_file(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is no sound file that can be read"):
            read_audio(tmp_path / name)

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"absent\.wav is not a file"):
            read_audio(tmp_path / "absent.wav")

    def test_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="is not a file"):
            read_audio(tmp_path)


class TestPlaces:
    def test_a_long_ogg(self, tmp_path):
        """libsndfile crashes where it is given 50 s at once."""
        Audio(0.1 * torch.randn(2_300_000, generator=torch.Generator().manual_seed(0)), 44_100).save(tmp_path / "x.ogg")
        assert read_audio(tmp_path / "x.ogg")[0].shape == (1, 2_300_000)

    def test_a_full_disk_that_is_not_reported(self, tmp_path, monkeypatch):
        monkeypatch.setattr(soundfile, "info", lambda path: type("Info", (), {"frames": 99}))
        with pytest.raises(OSError, match="only 99 of 4410 samples were kept"):
            Audio(tone(), 44_100).save(tmp_path / "x.wav")
        assert [*tmp_path.iterdir()] == []

    def test_a_full_disk(self, tmp_path, monkeypatch):
        def fail(*_):
            raise soundfile.LibsndfileError(2)

        monkeypatch.setattr(soundfile.SoundFile, "write", fail)
        with pytest.raises(OSError, match="cannot write the sound"):
            Audio(tone(), 44_100).save(tmp_path / "x.wav")
        assert [*tmp_path.iterdir()] == []

    def test_what_is_no_file_stays(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.wav")
        with pytest.raises(OSError, match=r"cannot write .*pipe\.wav: it exists and is no regular file"):
            Audio(tone(), 44_100).save(tmp_path / "pipe.wav")
        assert (tmp_path / "pipe.wav").is_fifo()

    def test_a_link_is_followed(self, tmp_path):
        (tmp_path / "link.wav").symlink_to(tmp_path / "real.wav")
        Audio(tone(), 44_100).save(tmp_path / "link.wav")
        assert (tmp_path / "link.wav").is_symlink()
        assert read_audio(tmp_path / "real.wav")[0].shape == (1, 4410)


def test_an_empty_sound_with_a_comment_can_be_read_by_others(tmp_path):
    path = tmp_path / "empty.wav"
    Audio(torch.zeros(0), 44100, "made by a machine").save(path)
    with wave.open(str(path)) as file:
        assert (file.getnframes(), file.getframerate()) == (0, 44100)
