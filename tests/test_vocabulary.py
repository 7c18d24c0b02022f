"""The project's vocabulary: `tests/vocabulary.py` holds the banned names and phrases, and finds each of them."""

import pytest

from tests import vocabulary

LONG = " ".join(["word"] * 36) + "."


@pytest.mark.skipif(not (vocabulary.ROOT / ".git").exists(), reason="not a git checkout")
def test_no_banned_name_or_phrase_is_left():
    assert list(vocabulary.report()) == []


@pytest.mark.parametrize(
    ("path", "text", "old"),
    [
        ("model/new.py", "options = LoopOptions()", "LoopOptions"),
        ("kernels/new.py", "x = y.CARRY", "CARRY"),
        ("kernels/new.py", "def cdiv(a, b): ...", "cdiv"),
        ("reference/new.py", "def f(x, temp=None): ...", "temp"),
        ("kernels/schemas.json", '{"f": "f(Tensor lag) -> ()"}', "lag"),
        ("kernels/schemas.json", '{"head": "f() -> ()"}', "head"),
        ("bench/compiler/snapshots/new.json", '{"head/kernel/sm_90": 1}', "head"),
        ("bench/new.json", '{"most_mhz": 1}', "most_mhz"),
        ("tests/kernels/test_router.py", "", "router"),
        ("bench/beside/new.py", "", "beside"),
        ("Makefile", "zonos2-triton gpu --dry-run", "--dry-run"),
        ("model/README.md", "Set ZONOS2_TRITON_CONFIG.", "ZONOS2_TRITON_CONFIG"),
        ("model/new.py", "# Whoever waits", "whoever"),
        ("model/README.md", f"Short. {LONG}", "a sentence of 36 words"),
        ("model/new.py", f'"""Short.\n\nshape   {LONG}"""', "a sentence of 37 words"),
        ("model/new.py", '"""What it is."""', "What at the start"),
    ],
)
def test_each_kind_is_found(path, text, old):
    assert old in {name for _, name, _ in vocabulary.findings(path, text)}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("model/new.py", "x = triton.cdiv(a, b); head = temp = role = 1"),
        ("kernels/new.py", "x = triton.cdiv(a, b)"),
        ("tests/integrations/test_router.py", ""),
        ("model/README.md", f"```\n{LONG}\n```\n\n| {LONG} |\n"),
        ("model/new.py", "zonos2_triton = 'not--dry-run-at-all'"),
    ],
)
def test_what_is_allowed(path, text):
    assert list(vocabulary.findings(path, text)) == []
