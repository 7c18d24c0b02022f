"""The output of `say`: where the samples go, and that a failing report does not fail the command."""

import io
import json
import os
import re
import signal
import sys
import tempfile
from unittest.mock import Mock

import pytest
import torch

from zonos2_triton import _settings
from zonos2_triton.model import Audio, Backbone, SpeakerEncoder, Vocoder, Zonos2
from zonos2_triton.model.audio import read_audio
from zonos2_triton.model.weights.tiny import write_tiny

COMMAND = [sys.executable, "-m", "zonos2_triton"]
FRAMES = 12


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def piped(say, monkeypatch):
    """`say` with standard output a pipe: (exit status, bytes, standard error)."""

    def run(*arguments):
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as read, monkeypatch.context() as patch:
            with os.fdopen(writer, "w") as out:
                patch.setattr(sys, "stdout", out)
                status, _, err = say(*arguments)
            return status, read.read(), err

    return run


TEXTS = {  # of a file of another system, and what is said
    b"\xef\xbb\xbfHello.": "Hello.",
    b"One.\r\nTwo.\r\n": "One.\nTwo.",
    b"One.\rTwo.": "One.\nTwo.",
    "H\u00e9.\n\n".encode(): "H\u00e9.\n",
}


class TestText:
    @pytest.mark.parametrize(("content", "text"), TEXTS.items())
    def test_marks_of_files_are_not_spoken(self, say, monkeypatch, content, text):
        said = []
        monkeypatch.setattr(Zonos2, "speak", lambda self, text, *_, **__: said.append(text) or 1 / 0)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "ascii"))
        say(text="-")
        say(text=content.decode())
        say(text=content.decode("ascii", "surrogateescape"))  # as the locale C has it
        monkeypatch.setattr(sys, "stdin", io.StringIO(content.decode(), newline=""))  # of a program
        say(text="-")
        assert said == [text] * 4

    @pytest.mark.parametrize(
        ("content", "byte"),
        [
            ("H\u00e9.".encode("latin-1"), "byte 0xe9 at character 1"),
            ("Hello.".encode("utf-16"), "byte 0xff at character 0"),
            ("Hello.".encode("utf-16-le"), "byte 0x00 at character 1"),
            (b"H\xc3", "byte 0xc3 at character 1"),
        ],
    )
    def test_no_utf8_is_known_before_the_model_is_read(self, say, monkeypatch, content, byte):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "ascii"))
        for name, text in (("standard input", "-"), ("text", content.decode("utf-8", "surrogateescape"))):
            status, _, err = say(text=text, model="nowhere")
            assert (status, err.count("\n")) == (2, 1)
            assert err.startswith(f"zonos2-triton: error: {name} must be UTF-8, got {byte}")

    @pytest.mark.parametrize("text", ["", " \n", "\ufeff"], ids=ascii)
    def test_nothing(self, say, text):
        status, _, err = say(text=text, model="nowhere")
        assert (status, err) == (2, "zonos2-triton: error: text is empty: there is nothing to say\n")


class TestPaths:
    @pytest.fixture
    def home(self, monkeypatch, tmp_path, tiny_folder):
        (tmp_path / "model").symlink_to(tiny_folder)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path / "elsewhere")
        return tmp_path

    def test_the_home_folder(self, say, home):
        Audio(torch.sin(torch.arange(20000) / 9), 16000).save("~/voice.wav")
        parts = ["--vocoder", "~/model/dac", "--speaker-encoder", "~/model/speaker_encoder"]
        status, _, err = say("--speaker", "~/voice.wav", "--out", "~/x.wav", *parts, model="~/model")
        assert (status, files(home)) == (0, ["elsewhere", "model", "voice.wav", "x.wav"]), err
        assert files(home / "elsewhere") == []

    def test_the_home_folder_of_the_parts(self, home, monkeypatch):
        Backbone.load("~/model/model.safetensors")
        Vocoder.load("~/model/dac/weights.pth")
        SpeakerEncoder.load("~/model/speaker_encoder")
        write_tiny("~/new")
        monkeypatch.setenv(_settings.LAUNCH_CONFIG, "~/new/dac/launch.json")
        (home / "new" / "dac" / "launch.json").write_text("[]")
        assert _settings.launch_config() == ("~/new/dac/launch.json", [])

    def test_the_same_file_by_another_name(self, say, home):
        status, _, err = say("--out", "~/x.wav", "--spectrogram", home / "elsewhere" / ".." / "x.wav")
        assert (status, "must be two files" in err) == (2, True)

    def test_a_folder_whose_name_is_no_utf8(self, say, home):
        os.mkdir(b"\xe9")
        assert say("--out", os.fsdecode(b"\xe9/\xe9.wav"))[0] == 0
        assert os.listdir(b"\xe9") == [b"\xe9.wav"]


class TestStandardOutput:
    @pytest.mark.parametrize("out", ["-", "/dev/stdout"])
    def test_wav(self, say, piped, tmp_path, out):
        assert say(out="file.wav")[0] == 0
        status, shown, err = piped("--json", "--out", out)
        assert (status, json.loads(err.splitlines()[-1])["frames"]) == (0, FRAMES)
        (tmp_path / "shown.wav").write_bytes(shown)
        whole, rate = read_audio(tmp_path / "file.wav")
        samples, got = read_audio(tmp_path / "shown.wav")
        assert (torch.equal(samples, whole), got) == (True, rate)
        assert len(shown) == 44 + 2 * whole.shape[1]
        assert piped("--raw", "--out", out)[:2] == (0, shown[44:])

    @pytest.mark.parametrize(("mode", "stated"), [("w", True), ("a", False)])
    def test_a_file_states_its_length(self, say, tmp_path, monkeypatch, mode, stated):
        """A file that is appended to keeps its content, so the header keeps its unknown length."""
        (tmp_path / "x").write_text("before")
        with open(tmp_path / "x", mode) as out, monkeypatch.context() as patch:
            if stated:
                out.write("before")
                out.flush()
            patch.setattr(sys, "stdout", out)
            assert say("--out", "-")[0] == 0
        content = (tmp_path / "x").read_bytes()
        assert content.startswith(b"beforeRIFF")
        size = int.from_bytes(content[46:50], "little")
        assert size == (len(content) - 50 if stated else 2**32 - 1)

    def test_a_pipe_that_has_a_name(self, say, tmp_path):
        os.mkfifo(tmp_path / "out.wav")
        reader = os.open(tmp_path / "out.wav", os.O_RDONLY | os.O_NONBLOCK)
        assert say()[0] == 0
        assert os.read(reader, 1 << 16).startswith(b"RIFF")
        assert (tmp_path / "out.wav").is_fifo()
        os.close(reader)

    def test_a_full_device_is_an_error(self, say):
        status, out, err = say("--out", "/dev/full")
        error = "zonos2-triton: error: the sound cannot be written any further: No space left on device"
        assert (status, out, err.splitlines()[-1]) == (2, "", error)

    @pytest.mark.parametrize(
        ("stop", "status", "said"),
        [
            (lambda process: process.stdout.close(), 0, b"sound means nothing\n"),
            (lambda process: process.send_signal(signal.SIGINT), 130, b"interrupted; what was made is written\n"),
        ],
        ids=["player", "ctrl-c"],
    )
    def test_sound_comes_before_the_end_and_may_be_stopped(self, spawn, tiny_folder, stop, status, said):
        command = ["say", "a", "--model", str(tiny_folder), "--out", "-", "--max-frames", "1900", "--ignore-eos"]
        process = spawn([*COMMAND, *command], text=False)
        assert process.stdout.read(44 + 40 * 1024).startswith(b"RIFF")
        assert process.poll() is None
        stop(process)
        assert process.wait(timeout=300) == status
        assert process.stderr.read().endswith(said)


def test_the_first_sound_is_told_when_it_comes(say):
    err = say("--stream", "--max-frames", 40)[2]
    assert re.search(r"^zonos2-triton: note: first audio after \d+\.\d\d s$", err, flags=re.MULTILINE)


@pytest.fixture(params=["closed", "full", "unread", "ascii"])
def unfit(request):
    if request.param == "closed":
        return None
    if request.param == "ascii":
        return io.TextIOWrapper(io.BytesIO(), "ascii")
    reader, writer = os.pipe()
    os.close(reader)
    if request.param == "full":
        writer = os.open("/dev/full", os.O_WRONLY)
    return os.fdopen(writer, "w", encoding="utf-8", closefd=False)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_telling_does_not_fail_a_sound(say, tmp_path, monkeypatch, unfit, name, options):
    with monkeypatch.context() as patch:
        patch.setattr(sys, name, unfit)
        status, out, _ = say(*options, out="ö.wav")
    assert (status, read_audio(tmp_path / "ö.wav")[0].shape) == (0, (1, FRAMES * 512))
    if name == "stderr":
        assert json.loads(out)["frames"] == FRAMES if options else out.startswith(str(tmp_path))
    elif options and isinstance(getattr(unfit, "buffer", None), io.BytesIO):
        assert json.loads(unfit.buffer.getvalue())["out"] == str(tmp_path / "ö.wav")


def test_a_folder_that_is_gone_by_now_loses_no_sound(say, tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    load = Zonos2.load
    monkeypatch.setattr(Zonos2, "load", lambda *options: (tmp_path / "d").rmdir() or load(*options))
    status, out, err = say(out="d/x.wav")
    [name] = files(tmp_path)
    assert (status, out, read_audio(tmp_path / name)[0].shape) == (2, "", (1, FRAMES * 512))
    assert err.splitlines()[-1].endswith(f"No such file or directory; the sound is in {tmp_path / name}")


def test_where_no_place_has_room_nothing_is_left(say, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("zonos2_triton.model.say.write_audio", Mock(side_effect=OSError("no room")))
    status, out, err = say(out="x.wav")
    assert (status, out, err.splitlines()[-1]) == (2, "", "zonos2-triton: error: no room")
    assert files(tmp_path) == []


def test_what_a_library_prints_is_not_the_result(say, monkeypatch):
    read = Zonos2.load
    monkeypatch.setattr(Zonos2, "load", lambda *options: print("loading!") or read(*options))
    _, out, err = say("--json")
    assert json.loads(out)["frames"] == FRAMES
    assert "loading!" in err


@pytest.mark.needs("matplotlib")
class TestPicture:
    @pytest.mark.parametrize("name", ["$a_{.wav", "a\nb\a.wav", "a\udce9.wav"], ids=["formula", "control", "no-utf8"])
    def test_any_name(self, say, tmp_path, name):
        assert say("--spectrogram", tmp_path / "x.png", out=name)[0] == 0
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
        assert files(tmp_path) == sorted([name, "x.png"])

    def test_its_failure_is_known_before_the_sound(self, say, tmp_path, monkeypatch):
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", Mock(side_effect=RuntimeError("no font")))
        status, _, err = say("--spectrogram", tmp_path / "x.png", model="nowhere")
        assert (status, err) == (2, "zonos2-triton: error: matplotlib cannot draw a spectrogram here: no font\n")
        assert files(tmp_path) == []

    @pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt("disk full")], ids=repr)
    def test_a_later_failure_leaves_the_sound(self, say, tmp_path, monkeypatch, error):
        (tmp_path / "x.png").write_text("older")
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", Mock(side_effect=[None, error]))
        status, out, err = say("--spectrogram", tmp_path / "x.png")
        assert (status, "12 frames" in out) == (0, True)
        assert "zonos2-triton: warning: the spectrogram was not drawn: disk full" in err
        assert (files(tmp_path), (tmp_path / "x.png").read_text()) == (["out.wav", "x.png"], "older")
