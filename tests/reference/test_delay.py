import pytest
import torch

from zonos2_triton.reference.delay import shear, shear_up


def test_golden(golden):
    cases = golden.json("prompts")["shear_cases"]
    assert len(cases) > 5
    for case in cases:
        shape = case["T"], case["C"]
        x, down, up = (torch.tensor(case[key]).reshape(shape) for key in ("x", "shear", "shear_up_of_x"))
        assert torch.equal(shear(x, case["pad"]), down)
        assert torch.equal(shear_up(x, case["pad"]), up)


@pytest.mark.parametrize("move", [shear, shear_up])
def test_the_argument_is_left_alone(move):
    x = torch.arange(15).reshape(5, 3)
    move(x, 0)
    assert torch.equal(x, torch.arange(15).reshape(5, 3))
