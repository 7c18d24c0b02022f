"""The PTX machine counts what comes before the wait for the previous launch apart from what comes after."""

import pytest

from tests.bench.test_ptx_machine import COPY, WORDS, machine, run

# Addresses are there at clock 12; the two additions and their store take 10.
LOAD = "ld.global.b32 %r4, [%rd3];"
USE = "add.s32 %r6, %r4, %r4; add.s32 %r6, %r6, %r6; st.global.b32 [%rd4], %r6;"
NEXT = "mad.wide.u32 %rd5, %r4, 4, %rd1; ld.global.b32 %r4, [%rd5];"
COPIED = "cp.async.wait_group 0; bar.sync 0; ld.shared.b32 %r4, [%r3];"


@pytest.mark.parametrize(
    ("before", "after", "long", "short", "arrived"),
    [
        (LOAD, USE, 10, 700 + 10, 12 + 700),
        ("", LOAD + USE, 700 + 10, 5 + 700 + 10, 12),  # the wait that takes no time is over at 7
        # A load on either side: they are under way together.
        (LOAD, "ld.global.b32 %r5, [%rd4]; add.s32 %r4, %r4, %r5;" + USE, 700 + 5 + 10, 700 + 5 + 10, 12 + 700),
        (LOAD + NEXT, USE, 10, 700 + 10, 12 + 700 + 5 + 700),  # waits for the first load, to issue the second
        (LOAD, NEXT + USE, 5 + 700 + 10, 700 + 5 + 700 + 10, 12 + 700),
        ("shl.b32 %r3, %r1, 2;" + COPY, COPIED + USE, 2 + 25 + 30 + 10, 700 + 25 + 30 + 10, 12 + 700),
        ("cp.async.bulk.prefetch.L2.global [%rd3], 16;", LOAD + USE, 700 + 10, 700 + 10, 12),
    ],
)
def test_what_a_wait_for_the_launch_before_hides(before, after, long, short, arrived):
    """A long wait, in which all arrives, and one that takes no time."""
    for arrives, cycles in ((True, long), (False, short)):
        counted = machine(WORDS + before + "griddepcontrol.wait;" + after, values=False)
        counted.arrives = arrives
        counts = counted.run((1,))
        assert counts.after_wait["cycles"] == (cycles,)
        assert counts.until_wait == (arrived,)
        early = 4 * (LOAD in before) + 4 * (COPY in before) + (NEXT in before)
        assert counts.early("loaded_sectors") == (early,)


def test_counts_by_the_wait():
    """A program whose threads store 32 words with 2 wavefronts, then 32 with 1; then the program numbers part."""
    body = "shl.b32 %r3, %r1, 3; st.shared.b32 [%r3], %r1; griddepcontrol.wait; shl.b32 %r3, %r1, 2;"
    body += "setp.eq.b32 %p1, %r2, 0; @%p1 bra $L1; st.shared.b32 [%r3], %r1; $L1: st.global.b32 [%rd1], %r1;"
    counts = run(body, grid=(2,), values=False)
    assert counts.early("wavefronts") == (2, 2)
    assert counts.early("instructions") == (2, 2)
    assert counts.after_wait["wavefronts"] == counts.after_wait["ideal_wavefronts"] == (0, 1)
    assert counts.after_wait["longest_warp"] == (5, 6)  # ret is one
    without = run(body.replace("griddepcontrol.wait;", ""), grid=(2,), values=False)
    assert without.until_wait == (0, 0)
    assert without.after_wait["cycles"] == without.cycles
    assert without.after_wait["wavefronts"] == without.traffic["wavefronts"] == (2, 3)
