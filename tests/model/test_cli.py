"""The command line."""

import json
import os
import pty
import re
import select
import signal
import sys
import termios

import pytest
import soundfile
import torch

from zonos2_triton.model import Audio, Sampling
from zonos2_triton.model.cli import main

COMMAND = [sys.executable, "-m", "zonos2_triton"]


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_is_what_speak_makes_and_says_what_made_it(say, tts, tmp_path):
    status, out, err = say()
    assert status == 0
    tts.speak("Hello.", sampling=Sampling(seed=7, max_frames=12, ignore_eos=True)).save(tmp_path / "library.wav")
    assert (tmp_path / "out.wav").read_bytes() == (tmp_path / "library.wav").read_bytes()
    assert "12 frames, 0.14 s of audio in" in out
    assert "seed 7 (reference backend, cpu, float32)" in out
    assert "random weights" in err
    assert "frame" not in err  # no progress bar: standard error is captured, no terminal
    with soundfile.SoundFile(tmp_path / "out.wav") as file:
        assert "synthetic speech" in file.comment
        assert "random weights" in file.comment


def test_streaming_and_repeating_write_the_same_bytes(say, tmp_path):
    say("--max-frames", 40, out="one.wav")
    say("--max-frames", 40, "--stream", out="two.wav")
    assert (tmp_path / "one.wav").read_bytes() == (tmp_path / "two.wav").read_bytes()


def test_json_closing_line(say):
    report = json.loads(say("--json", "--max-frames", 40)[1])
    assert (report["frames"], report["seed"]) == (40, 7)
    assert report["audio_s"] == pytest.approx(40 * 512 / 44100, abs=1e-3)
    assert report["rtf"] == pytest.approx(report["wall_s"] / report["audio_s"], rel=0.01)
    assert 0 < report["first_audio_s"] <= report["wall_s"]


@pytest.mark.parametrize("stream", [[], ["--stream"]], ids=["whole", "streamed"])
def test_says_how_it_ended(tiny_folder, tmp_path, capsys, stream):
    """Seed 0 ends at its 13th frame."""
    command = ["say", "Hello.", "--model", str(tiny_folder), "--out", str(tmp_path / "a.wav"), "--seed", "0", *stream]
    assert main([*command, "--max-frames", "60", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["ended"] == "end_of_audio"
    assert "warning" not in err
    assert main([*command, "--max-frames", "9"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith(", ended: max_frames\n")
    (line,) = [line for line in err.splitlines() if "warning" in line]
    why = "text did not come to its end: it was cut off after 9 frames, 0.10 s; raise max_frames (--max-frames)"
    assert line == f"zonos2-triton: warning: {why}"


def test_a_seed_that_was_not_given_is_reported(tiny_folder, tmp_path, capsys):
    command = ["say", "a", "--model", str(tiny_folder), "--max-frames", "12", "--json", "-o"]
    assert main([*command, str(tmp_path / "a.wav")]) == 0
    seed = json.loads(capsys.readouterr().out)["seed"]
    assert main([*command, str(tmp_path / "b.wav"), "--seed", str(seed)]) == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_every_option_reaches_the_model(say, tmp_path):
    Audio(torch.sin(torch.arange(20000) / 9), 16000).save(tmp_path / "voice.wav")
    lines = ("", "--speaking-rate 3", "--quality lufs=2", "--temperature 0.3", "--top-k 2", "--top-p 0.3",
             "--min-p 0.9", "--max-frames 24", "--max-frames 24 --repetition-penalty 9", "--speaker voice.wav",
             "--speaker voice.wav --expressive", "--speaker voice.wav --clean-background")  # fmt: skip
    sounds = set()
    for line in lines:
        status, _, err = say(*line.replace("voice.wav", str(tmp_path / "voice.wav")).split())
        assert status == 0, err
        sounds.add((tmp_path / "out.wav").read_bytes())
    assert len(sounds) == len(lines)


MISTYPED = {
    "": "the following arguments are required: COMMAND",
    "sya x": "argument COMMAND: invalid choice: 'sya' (choose from {any}; did you mean 'say'?",
    "say x --model m -o o.wav --max-tokens 5": "unrecognized arguments: --max-tokens 5; did you mean '--max-frames'?",
    "say Hello world --model m --out o.wav": "unrecognized arguments: world; a text of several words needs quotes",
    "say x --model m --out o.wav --rate=5": "unrecognized arguments: --rate=5; did you mean '--speaking-rate'?",
    "say x --modle m --out o.wav": "the following arguments are required: --model; --modle: did you mean '--model'?",
    "say x --model m --out o.wav --dtype bflaot16": (
        "argument --dtype: invalid choice: 'bflaot16' (choose from {any}; did you mean 'bfloat16' or 'float16'?"
    ),
    "doctor --jsn": "unrecognized arguments: --jsn; did you mean '--json'?",
    "say x --model m --out o.wav --top-k 1.5": "argument --top-k: invalid int value: '1.5'",
}


@pytest.mark.parametrize(("line", "message"), MISTYPED.items())
def test_mistyped_commands_and_options_are_one_line_with_what_was_meant(capsys, line, message):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(line.split())
    (said,) = capsys.readouterr().err.splitlines()
    command = line.partition(" ")[0]
    prog = f"zonos2-triton {command}" if command in ("say", "doctor") else "zonos2-triton"
    start, _, end = f"{prog}: error: {message}".partition("{any}")
    assert said.startswith(start)
    assert said.endswith(end)


@pytest.mark.parametrize(
    ("option", "value", "accepted"),
    [
        ("temperature", "-1.0", "at least 0"),
        ("top-k", "-1", "at least 0"),
        ("top-p", "1.5", "from 0 to 1"),
        ("min-p", "-0.1", "from 0 to 1"),
        ("repetition-window", "-1", "at least 0"),
        ("repetition-penalty", "0.9", "at least 1"),
        ("repetition-codebooks", "10", "from -1, which means all, to 9"),
        ("max-frames", "0", "at least 1"),
        ("seed", "-1", "from 0 to 18446744073709551615"),
    ],
)
def test_settings_out_of_range_are_refused(say, tmp_path, option, value, accepted):
    """In Python they are clamped, as the official request path does."""
    status, out, err = say(f"--{option}", value, model="nowhere")
    assert (status, out, files(tmp_path)) == (2, "", [])
    assert err == f"zonos2-triton: error: --{option} must be {accepted}, got {value}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "nan"], "sampling: temperature must be finite, got nan"),
        (["--quality", "lufs"], "--quality must be FEATURE=BUCKET with a whole number, got 'lufs'"),
        (["--model", "nowhere"], "nowhere is neither a file or folder here nor a hub id"),
        (["--device", "abacus"], "device must be a torch device"),
        (["--backend", "triton", "--dtype", "float64"], "backend 'triton' runs in float32, bfloat16 and float16"),
        (["--out", "out.mp4"], "a sound file must end in .wav, .flac, .ogg, .opus, .mp3, got 'out.mp4'"),
        (["--raw", "--stream"], "--raw is for --out -, got --out "),
        (["--out", "/dev/ptmx"], "--out is /dev/ptmx, a terminal: pipe the sound into a player, or name a file"),
        (["--out", "pipe.wav"], "cannot write pipe.wav: No such device or address; a pipe needs a reader"),
        (["--out", "no/such/folder/out.wav"], "cannot write no/such/folder/out.wav: No such file or directory"),
        (["--out", "a.wav", "--spectrogram", "a.wav"], "--spectrogram and --out must be two files, got 'a.wav'"),
        (["--spectrogram", "out.jpg"], "--spectrogram must end in .png, got 'out.jpg'"),
        (["--spectrogram", ""], "a file or a folder must be named, got ''"),
        (["--speaker", ""], "a file or a folder must be named, got ''"),
        (["--spectrogram", "no/such/folder/out.png"], "cannot write no/such/folder/out.png: No such file"),
    ],
    ids=lambda value: value[0] + "=" + value[1] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(say, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.wav")
    status, out, err = say(*arguments)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"zonos2-triton: error: {message}")
    assert files(tmp_path) == ["pipe.wav"]


def read_until(terminal, pattern):
    """The output of a process up to a pattern or its end; fails after five minutes without output."""
    shown = b""
    while not re.search(pattern, shown) and select.select([terminal], [], [], 300)[0]:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
    return shown


@pytest.mark.parametrize(
    ("stop", "stream"),
    [(signal.SIGINT, ["--stream"]), pytest.param(signal.SIGTERM, [], marks=pytest.mark.slow)],
    ids=["ctrl-c", "terminate"],
)
def test_interrupted_while_generating(spawn, tiny_folder, tmp_path, stop, stream):
    """On a terminal, with a progress bar. An older file stays, and no part of the new one does."""
    (tmp_path / "out.wav").write_text("older")
    ours, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    command = ["say", "Hello.", "--model", str(tiny_folder), "--out", str(tmp_path / "out.wav"), *stream]
    process = spawn([*COMMAND, *command, "--ignore-eos", "--max-frames", "2000"], stderr=terminal)
    os.close(terminal)
    shown = read_until(ours, rb"[1-9]\d*/2000 \[.*frame/s")
    assert b"random weights" in shown
    assert files(tmp_path) == ["out.wav"]
    process.send_signal(stop)
    shown += read_until(ours, rb"nothing was written\r\n")
    os.close(ours)
    assert process.wait(timeout=300) == 130
    assert shown.endswith(b"zonos2-triton: interrupted; nothing was written\r\n")
    assert b"Traceback" not in shown
    assert (files(tmp_path), (tmp_path / "out.wav").read_text()) == (["out.wav"], "older")


@pytest.mark.parametrize("command", [["say", "a", "--model", "b", "--out", "c.wav"], ["plan", "--gpu", "h200"]])
def test_interrupted_while_torch_is_loaded(spawn, tmp_path, command):
    """Its native code swallows the exception; a tool is loaded while options are parsed."""
    loading = "import time\nprint('loading', flush=True)\ntry:\n    time.sleep(300)\nexcept BaseException:\n    pass\n"
    (tmp_path / "torch.py").write_text(loading)
    process = spawn([*COMMAND, *command], env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (130, "zonos2-triton: interrupted; nothing was written\n")


def test_what_a_picture_needs_is_known_before_the_model_is_read(say, tmp_path, monkeypatch):
    monkeypatch.setattr("zonos2_triton.model.plot.find_spec", lambda name: None)
    status, _, err = say("--spectrogram", tmp_path / "x.png", model="nowhere")
    assert (status, "a spectrogram needs matplotlib: pip install matplotlib\n" in err) == (2, True)


def test_a_tiny_that_fails_or_is_interrupted_leaves_nothing(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("zonos2_triton.model.weights.tiny.save_official_codec", interrupted)
    assert main(["tiny", str(tmp_path / "new")]) == 130
    assert files(tmp_path) == []
    assert main(["tiny", str(tmp_path / "new"), "--seed", str(2**70)]) == 2
    assert "seed must be an integer in 0..2**63 - 1" in capsys.readouterr().err
    assert files(tmp_path) == []
