import pytest

from zonos2_triton.reference.philox import WORD, philox

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
# Known answers of the authors' own distribution (Random123), philox4x32-10.
KNOWN = [
    (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (2**64 - 1, (WORD,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (0x299F31D0A4093822, PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize(("key", "counter", "words"), KNOWN, ids=["zeros", "ones", "pi"])
def test_known_answers(key, counter, words):
    assert philox(key, counter).tolist() == list(words)
