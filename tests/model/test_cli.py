"""The command as a person meets it."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time

import pytest
import soundfile
import torch

from zonos2_triton.model import Audio, Sampling
from zonos2_triton.model.cli import main

COMMAND = [sys.executable, "-m", "zonos2_triton.model.cli"]


@pytest.fixture
def say(tiny_folder, tmp_path, capsys):
    """Run `say` in this process: (exit status, standard output, standard error)."""

    def run(*arguments, text="Hello.", out="out.wav", model=tiny_folder):
        command = ["say", text, "--model", str(model), "--out", str(tmp_path / out), "--seed", "7"]
        status = main([*command, "--max-frames", "40", "--ignore-eos", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_is_what_speak_makes(say, tts, tmp_path):
    status, out, err = say()
    assert status == 0
    tts.speak("Hello.", sampling=Sampling(seed=7, max_frames=40, ignore_eos=True)).save(tmp_path / "library.wav")
    assert (tmp_path / "out.wav").read_bytes() == (tmp_path / "library.wav").read_bytes()
    assert "40 frames, 0.46 s of audio in" in out
    assert "seed 7 (reference backend, cpu, float32)" in out
    assert "random weights" in err


def test_streaming_and_repeating_write_the_same_bytes(say, tmp_path):
    say(out="one.wav")
    say(out="two.wav")
    say("--stream", out="three.wav")
    one, two, three = ((tmp_path / f"{name}.wav").read_bytes() for name in ("one", "two", "three"))
    assert one == two == three


def test_json_closing_line(say):
    report = json.loads(say("--json")[1])
    assert report["frames"] == 40
    assert report["audio_s"] == pytest.approx(40 * 512 / 44100, abs=1e-3)
    assert report["rtf"] == pytest.approx(report["wall_s"] / report["audio_s"], rel=0.01)
    assert 0 < report["first_audio_s"] <= report["wall_s"]
    assert report["seed"] == 7


def test_a_seed_that_was_not_given_is_reported(say, tiny_folder, tmp_path, capsys):
    command = ["say", "a", "--model", str(tiny_folder), "--max-frames", "12", "--json", "--out"]
    assert main([*command, str(tmp_path / "a.wav")]) == 0
    seed = json.loads(capsys.readouterr().out)["seed"]
    assert main([*command, str(tmp_path / "b.wav"), "--seed", str(seed)]) == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_every_option_reaches_the_model(say, tmp_path):
    Audio(torch.sin(torch.arange(20000) / 9), 16000).save(tmp_path / "voice.wav")
    voice = ["--speaker", tmp_path / "voice.wav"]
    variants = [
        [],
        ["--rate", 3],
        ["--quality", "lufs=2"],
        voice,
        [*voice, "--expressive"],
        [*voice, "--clean-background"],
    ]
    variants += [
        ["--temperature", 0.3],
        ["--top-k", 2],
        ["--top-p", 0.3],
        ["--min-p", 0.9],
        ["--repetition-penalty", 9],
    ]
    sounds = set()
    for i, variant in enumerate(variants):
        status, _, err = say(*variant, out=f"{i}.wav")
        assert status == 0, err
        sounds.add((tmp_path / f"{i}.wav").read_bytes())
    assert len(sounds) == len(variants)


def test_text_from_standard_input(say, monkeypatch, tmp_path):
    import io

    say(text="from a pipe", out="argument.wav")
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    say(text="-", out="pipe.wav")
    assert (tmp_path / "argument.wav").read_bytes() == (tmp_path / "pipe.wav").read_bytes()


def test_a_picture_of_the_sound(say, tmp_path):
    pytest.importorskip("matplotlib")
    assert say("--spectrogram", tmp_path / "out.png")[0] == 0
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert files(tmp_path) == ["out.png", "out.wav"]


def test_the_file_says_what_made_it(say, tmp_path):
    say()
    with soundfile.SoundFile(tmp_path / "out.wav") as file:
        assert "synthetic speech" in file.comment
        assert "random weights" in file.comment


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "nan"], "sampling: temperature must be finite, got nan"),
        (["--seed", "-1"], "sampling: seed must be an integer in"),
        (["--rate", "8"], "speaking_rate must be in 0..7 or None, got 8"),
        (["--quality", "lufs"], "--quality must be FEATURE=BUCKET with a whole number, got 'lufs'"),
        (["--quality", "loud=1"], "quality must name features of lufs"),
        (["--speaker", "nowhere.wav"], "nowhere.wav is not a file"),
        (["--model", "nowhere"], "nowhere is neither a file or folder here nor a hub id"),
        (["--device", "abacus"], "device must be a torch device"),
        (["--backend", "triton", "--dtype", "float64"], "backend 'triton' runs in float32, bfloat16 and float16"),
        (["--out", "out.mp4"], "a sound file must end in .wav, .flac, .ogg, got 'out.mp4'"),
        (["--out", "no/such/folder/out.wav"], "cannot write no/such/folder/out.wav: No such file or directory"),
        (["--spectrogram", "no/such/folder/out.png"], "cannot write no/such/folder/out.png: No such file"),
    ],
    ids=lambda value: value[0] + "=" + value[1] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(say, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = say(*arguments)
    assert status == 2
    assert out == ""
    assert err.splitlines()[-1].startswith(f"zonos2-triton: error: {message}")
    assert files(tmp_path) == []


def test_a_target_that_is_a_folder(say, tmp_path):
    (tmp_path / "out.wav").mkdir()
    assert "Is a directory" in say()[2]
    assert files(tmp_path) == ["out.wav"]


def test_unknown_keys_are_one_warning(say, tiny_folder, tmp_path):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    params = json.loads((model / "params.json").read_text())
    (model / "params.json").write_text(json.dumps(params | {"colour": 1, "taste": 2}))
    status, _, err = say(model=model)
    assert status == 0
    assert [line for line in err.splitlines() if "warning" in line] == [
        "zonos2-triton: warning: params.json: unknown keys are ignored: colour, taste"
    ]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
@pytest.mark.parametrize("stream", [[], ["--stream"]], ids=["whole", "stream"])
def test_interrupted_while_generating(tiny_folder, tmp_path, stop, stream):
    """An older file of that name stays, and no part of the new one does."""
    (tmp_path / "out.wav").write_text("older")
    command = [*COMMAND, "say", "Hello.", "--model", str(tiny_folder), "--out", str(tmp_path / "out.wav"), *stream]
    process = subprocess.Popen([*command, "--ignore-eos", "--max-frames", "2000"], stderr=subprocess.PIPE, text=True)
    assert "random weights" in process.stderr.readline()  # loaded; it generates for some ten seconds from here
    assert len(files(tmp_path)) == 2
    time.sleep(0.5)
    process.send_signal(stop)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == "zonos2-triton: interrupted; nothing was written\n"
    assert files(tmp_path) == ["out.wav"]
    assert (tmp_path / "out.wav").read_text() == "older"


def test_the_progress_bar_is_for_terminals(say, tiny_folder, tmp_path):
    assert "frame" not in say()[2]  # standard error is captured: no terminal
    command = [*COMMAND, "say", "Hello.", "--model", str(tiny_folder), "--out", str(tmp_path / "out.wav")]
    main_end, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    process = subprocess.Popen(
        [*command, "--ignore-eos", "--max-frames", "40"], stdout=subprocess.PIPE, stderr=terminal
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(main_end, 4096)
        except OSError:  # the other end is closed
            break
    process.communicate(timeout=20)
    os.close(main_end)
    assert b"/40 [" in shown
    assert b"frame/s" in shown


def test_tiny_refuses_a_folder_with_files(tmp_path, capsys):
    (tmp_path / "mine").write_text("x")
    assert main(["tiny", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert files(tmp_path) == ["mine"]


def test_what_a_picture_needs_is_known_before_the_model_is_read(say, tmp_path, monkeypatch):
    monkeypatch.setattr("zonos2_triton.model.plot.find_spec", lambda name: None)
    status, _, err = say("--spectrogram", tmp_path / "x.png", model="nowhere")
    assert status == 2
    assert "a spectrogram needs matplotlib: pip install 'zonos2-triton[plot]'" in err


def test_picture_and_sound_are_two_files(say, tmp_path):
    assert "must be two files" in say("--spectrogram", tmp_path / "out.wav")[2]


def test_nobody_reads_the_closing_line(tiny_folder, tmp_path):
    command = [*COMMAND, "say", "a", "--model", str(tiny_folder), "--out", str(tmp_path / "a.wav"), "--max-frames", "9"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert "Broken" not in process.stderr.read()
    process.stderr.close()
    assert (tmp_path / "a.wav").exists()


def test_an_interrupted_tiny_leaves_nothing(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("zonos2_triton.model.weights.tiny.save_official_codec", interrupted)
    assert main(["tiny", str(tmp_path / "new")]) == 130
    assert files(tmp_path) == []
    assert main(["tiny", str(tmp_path / "new"), "--seed", str(2**70)]) == 2
    assert "seed must be an integer in 0..2**63 - 1" in capsys.readouterr().err
