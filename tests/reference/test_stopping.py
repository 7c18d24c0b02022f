import torch

from zonos2_triton.reference.stopping import find_end


def test_golden(golden):
    vectors = golden.json("eos")
    assert len(vectors["cases"]) == 21
    for case in vectors["cases"]:
        got = find_end(torch.tensor(case["frames"]), vectors["eoa_id"], case["max_tokens"], case["ignore_eos"])
        eos_frame = None if case["final_eos_frame"] == -1 else case["final_eos_frame"]
        assert got == (case["frames_consumed"], eos_frame), case["name"]


def test_no_frames():
    assert find_end(torch.zeros(0, 9, dtype=torch.int64)) == (0, None)
