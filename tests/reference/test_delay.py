import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zonos2_triton.reference.delay import shear, shear_up

shapes = st.tuples(st.integers(0, 24), st.integers(1, 9))


def codes_of(shape):
    return torch.arange(shape[0] * shape[1]).reshape(shape) + 1


def test_golden(golden):
    cases = golden.json("prompts")["shear_cases"]
    assert len(cases) > 5
    for case in cases:
        shape = case["T"], case["C"]
        x, down, up = (torch.tensor(case[key]).reshape(shape) for key in ("x", "shear", "shear_up_of_x"))
        assert torch.equal(shear(x, case["pad"]), down)
        assert torch.equal(shear_up(x, case["pad"]), up)


@given(shapes)
def test_each_undoes_the_other_but_for_the_codes_it_lost(shape):
    frames, columns = shape
    x = codes_of(shape)
    back, again = shear_up(shear(x, -1), -1), shear(shear_up(x, -1), -1)
    for j in range(columns):
        kept = max(frames - j, 0)
        assert torch.equal(back[:kept, j], x[:kept, j])
        assert (back[kept:, j] == -1).all()
        assert torch.equal(again[j:, j], x[j:, j])
        assert (again[:j, j] == -1).all()


@pytest.mark.parametrize("move", [shear, shear_up])
def test_the_argument_is_left_alone(move):
    x = codes_of((5, 3))
    move(x, 0)
    assert torch.equal(x, codes_of((5, 3)))
