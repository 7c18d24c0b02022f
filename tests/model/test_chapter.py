"""`say --text-file`: a long text into a file, stopped and resumed."""

import json

import pytest

from zonos2_triton.model import chapter
from zonos2_triton.model.cli import main

TEXT = "One cat sat. Two cats ran. The end.\n"


@pytest.fixture
def speak(tiny_folder, tmp_path, capsys):
    """Run the command on chunks of 13 characters: (exit status, standard output, standard error)."""
    (tmp_path / "text.txt").write_text(TEXT)

    def run(*arguments, out="out.flac", seed=7):
        command = ["say", "--text-file", str(tmp_path / "text.txt"), "--model", str(tiny_folder), "--chunk-chars", "13"]
        command += ["--out", str(tmp_path / out), "--max-frames", "12", "--ignore-eos"]
        seeds = [] if seed is None else ["--seed", str(seed)]
        return main([*command, *seeds, *arguments]), *capsys.readouterr()

    return run


@pytest.fixture
def stopped_after(monkeypatch):
    """Press Ctrl-C once, when so many chunks are written."""

    def stop(count):
        append, written = chapter.ChunkFile.append, []

        def stopping(self, chunk):
            append(self, chunk)
            written.append(chunk)
            if len(written) == count:
                raise KeyboardInterrupt

        monkeypatch.setattr(chapter.ChunkFile, "append", stopping)

    return stop


def test_a_resumed_run_gives_the_same_bytes(speak, stopped_after, tmp_path):
    assert speak(out="whole.flac")[0] == 0
    stopped_after(2)
    status, _, err = speak()
    chunks = tmp_path / "out.flac.chunks"
    assert status == 130
    assert f"the finished chunks are in {chunks}: the same command resumes" in err
    assert not (tmp_path / "out.flac").exists()
    assert len(chunks.read_text().splitlines()) == 3
    with chunks.open("a") as file:
        file.write('{"kept": 9, "fra')  # the machine stopped while it wrote
    status, out, _ = speak("--json", seed=None)  # the seed is that of the run that stopped
    assert status == 0
    assert (json.loads(out)["frames"], json.loads(out)["seed"]) == (12, 7)  # of the third chunk alone
    assert (tmp_path / "out.flac").read_bytes() == (tmp_path / "whole.flac").read_bytes()
    assert not chunks.exists()


def test_other_settings_do_not_resume(speak, stopped_after, tmp_path):
    stopped_after(1)
    speak()
    status, _, err = speak(seed=8)
    assert status == 2
    assert "out.flac.chunks was made with other settings: seed was 7, is 8; give the same ones, or delete it" in err
    (tmp_path / "text.txt").write_text(TEXT + "More.")
    assert "made with other settings: text_sha256 was" in speak()[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\ntwo \xe9", "must be UTF-8, but line 2 of {} has 0xe9 as its byte 5"),
        (b"\xef\xbb\xbf\xff", "must be UTF-8, but line 1 of {} has 0xff as its byte 4"),
        (b"one\ntw\0", "line 2 of {} has a NUL"),
        (b" \n", "{} is empty: there is nothing to say"),
    ],
)
def test_a_file_that_is_no_text_is_named(speak, tmp_path, content, message):
    (tmp_path / "text.txt").write_bytes(content)
    status, _, err = speak()
    assert status == 2
    assert message.format(tmp_path / "text.txt") in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Hello."], "say takes a text or --text-file FILE, got both"),
        (["--window-chunks", "0"], "long_form_window_chunks must be an integer from 1, got 0"),
        (["--spectrogram", "a.png"], "--spectrogram is for a short text, got --text-file"),
    ],
)
def test_bad_options_are_named(speak, arguments, message):
    status, _, err = speak(*arguments)
    assert status == 2
    assert message in err


def test_formats_that_are_resampled_are_refused(speak):
    assert "is written to .wav, .flac, .ogg or .mp3, got" in speak(out="out.opus")[2]


def test_options_for_long_texts_need_one(say):
    assert "--chunk-chars is for --text-file" in say("--chunk-chars", "9")[2]
