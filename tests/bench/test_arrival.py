"""The gate's rule of stores and releases on AMD: planted faults are named."""

from types import SimpleNamespace

import pytest

from zonos2_triton.bench.compiler import arrival


@pytest.mark.parametrize(
    ("steps", "lacks"),
    [
        ("store wait barrier release", None),
        ("store wait barrier barrier release", None),
        ("release", None),
        ("store barrier release", "wait"),
        ("store barrier wait release", "barrier"),
        ("store wait release", "barrier"),
        ("store wait barrier store release", "wait"),
    ],
)
def test_a_release_on_amd_comes_after_the_stores_of_every_wavefront(steps, lacks):
    lines = {
        "store": "buffer_store_dwordx4 v[0:3], v4, s[0:3], 0 offen",
        "wait": "s_waitcnt vmcnt(0) lgkmcnt(0)",
        "barrier": "s_barrier",
        "release": "buffer_wbl2 sc1",
    }
    text = "".join(f"\t{lines[step]}\n" for step in steps.split())
    found = arrival.violations(SimpleNamespace(asm={"amdgcn": text}))
    assert [failure.split(": no ")[1] for failure in found] == ([f"{lacks} before it"] if lacks else [])
