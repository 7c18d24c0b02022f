import pytest
import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.bench.proof.poison import poisoned
from zonos2_triton.kernels._norm import norm_results, prepare_norm
from zonos2_triton.reference.add_rms_norm import prepare_norm as reference

pytestmark = pytest.mark.interpreter


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("D", [8, 48, 200, 256])
def test_a_launch_of_its_own_has_the_bits_of_the_reference(D, dtype):
    generator = torch.Generator().manual_seed(D)
    x, weight = (torch.randn(*shape, D, generator=generator).to(dtype) for shape in ((3,), ()))
    with checked(), poisoned():
        got = prepare_norm(x, weight)
    for ours, others in zip(got, reference(x, weight), strict=True):
        assert torch.equal(ours, others)


def test_nothing_is_made_where_nothing_is_wanted():
    x, weight = torch.randn(3, 16), torch.randn(16)
    given = norm_results(x, 3, 16, weight)
    assert prepare_norm(x, None) == (x, None)
    assert prepare_norm(x, weight, *given) == given
    assert [part.shape for part in norm_results(x, 3, 16, None)] == [(0,), (0,)]


@pytest.mark.parametrize("prefill", [False, True])
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # numpy's
def test_fp16_holds_tokens_up_to_its_largest_number(prefill):
    """Decoding and prefill alike: what is beyond it shows."""
    kernel = KERNELS["qkv_projection"]
    sizes = {"M": 3, "D": 48, "NQ": 16, "NKV": 16, "G": 4, "prefill": prefill, "prepared": False}
    inputs = kernel.make_inputs("cpu", torch.float16, **sizes)
    tokens, ones = inputs["x"] / inputs["x"].abs().max(), torch.ones_like(inputs["norm_weight"])
    large, ordinary, beyond = (
        kernel.op(**{**inputs, "x": tokens * most, "norm_weight": gain * ones})
        for most, gain in ((60_000, 1), (6, 1), (60_000, 2))
    )
    torch.testing.assert_close(large, ordinary, rtol=4e-3, atol=4e-3)
    assert not beyond.isfinite().all()
