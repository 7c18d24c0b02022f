"""accelerate() on an nn.Module with the official tensor names, and on its variants."""

import dataclasses
import gc
import re
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.integrations.standins import held, off_by_one_percent, refused
from tests.integrations.torch_model import Attention, Norm, Stacked
from tests.integrations.torch_module.tiny import CONFIG, OPS, SITES, each, ids, logits, made, rows, variant, weights
from tests.integrations.writes import WRITES
from zonos2_triton.model import accelerate
from zonos2_triton.model.integrations.accelerate import difference
from zonos2_triton.model.integrations.patching import Replacement
from zonos2_triton.model.integrations.torch_module import attention, module, moe, structure
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.numeric import SWITCHES
from zonos2_triton.reference.ops import REFERENCE

SLOW_KERNELS = (pytest.mark.interpreter, pytest.mark.slow)
ROUTER = "feed_forward.router"


def test_the_model_of_these_tests_is_zonos2():
    model = reference.bind(CONFIG, weights())
    for row in ids():
        assert difference(logits(made(), tokens=row[None])[0], reference.trace(model, row)["logits"]) < 1e-5


def test_the_whole_is_the_same(backend):
    def settings():
        return torch.is_grad_enabled(), [getattr(owner, name) for owner, name, _ in SWITCHES]

    model, random, switches = made(), torch.get_rng_state(), settings()
    before, expected, state = held(model), logits(model), model.state_dict()
    report = accelerate(model, backend=backend)
    assert [(patch.op, patch.sites) for patch in report.patched] == [*zip(OPS, SITES, strict=True)]
    assert report.skipped == ()
    assert report.max_error < 5e-6
    assert difference(logits(model), expected) < 5e-6
    assert {name: t.data_ptr() for name, t in model.state_dict().items()} == {n: t.data_ptr() for n, t in state.items()}
    assert torch.equal(torch.get_rng_state(), random)
    assert settings() == switches
    report.restore()
    assert held(model) == before
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize(
    ("backend", "dtype", "bound"),
    [
        ("reference", torch.float64, 1e-6),  # its probabilities are fp32
        ("reference", torch.bfloat16, 2e-2),
        ("reference", torch.float16, 3e-3),
        pytest.param("triton", torch.bfloat16, 2e-2, marks=SLOW_KERNELS),
        pytest.param("triton", torch.float16, 3e-3, marks=SLOW_KERNELS),
    ],
)
def test_every_operation_is_the_same_in_other_types(backend, dtype, bound):
    report = accelerate(made(dtype), backend=backend)
    assert len(report.patched) == len(OPS)
    assert report.max_error < bound < structure.BOUNDS[dtype]


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 0.0), (torch.bfloat16, 6e-2)])
def test_under_autocast(dtype, bound):
    """To another dtype than the weights', the original runs."""
    model = made(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits(model)
        accelerate(model, backend="reference")
        assert difference([x.float() for x in logits(model)], [x.float() for x in expected]) <= bound


def test_temperatures_and_biases_may_have_a_type_of_their_own():
    model = made(torch.bfloat16)
    for layer in model.layers:
        layer.attention.temp.data = layer.attention.temp.float()
    for router in each(model, ROUTER):
        biases = router.balancing_biases.float()
        del router.balancing_biases
        router.register_buffer("balancing_biases", biases)
    assert len(accelerate(model, backend="reference").patched) == len(OPS)


def test_calls_by_the_names_of_the_original():
    model, x = made(), rows()
    calls = [(model.layers[0].attention_norm, {"x": x}), (model.layers[1].feed_forward.router, {"x": x, "state": None})]
    expected = [layer(**named) for layer, named in calls]
    with accelerate(model, backend="reference"):
        assert difference([layer(**named) for layer, named in calls], expected) < 1e-5
        with pytest.raises(TypeError, match="unexpected keyword argument 'residual'"):
            model.out_norm(x, residual=x)


def test_a_prefix():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.other = made(), nn.Linear(2, 2, dtype=torch.float16)  # not part of the model

    wrapped = Wrapped().eval()
    before, expected = held(wrapped), logits(wrapped.model)
    with accelerate(wrapped, backend="reference") as report:
        assert report.integration == "model: torch_module"
        assert [patch.sites for patch in report.patched] == SITES
        assert difference(logits(wrapped.model), expected) < 5e-6
        assert accelerate(wrapped.model, backend="reference") is report
    assert held(wrapped) == before


@pytest.mark.parametrize(("op", "sites"), [*zip(OPS, SITES, strict=True)])
def test_one_operation_alone(op, sites):
    model = made()
    expected = logits(model)
    report = accelerate(model, only=[op], backend="reference")
    assert [(patch.op, patch.sites) for patch in report.patched] == [(op, sites)]
    assert sum(isinstance(vars(each).get("forward"), Replacement) for each in model.modules()) == sites
    assert difference(logits(model), expected) < 5e-6


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("embedding", "frame_embedding"), ("norm", "add_rms_norm"), ("attention", "qkv_projection"),
        ("attention", "prefill_attention"), ("attention", "decode_attention"), ("attention", "output_projection"),
        ("dense", "moe_experts"), ("router", "moe_router"), ("experts", "moe_experts"), ("head", "codebook_head"),
    ],
)  # fmt: skip
def test_a_wrong_operation_is_refused(op, name, monkeypatch):
    wrong = dataclasses.replace(REFERENCE, **{name: off_by_one_percent(getattr(REFERENCE, name))})
    monkeypatch.setattr(module, "ops_of", lambda *_: wrong)
    apart = rf"torch_module: {op} cannot be patched: differs from the original by .*, more than the bound of 1e-04"
    refused(made(), apart, only=op)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"forward": lambda self, x, handle: handle.go(x)}, r"key, value \[B, L, HKV, DH\] and length: AttributeError"),
        ({"forward": lambda self, x, cache, mask: x}, r"takes \(x, cache, mask\)"),
        ({}, r"layers\.0\.attention has no forward: another module computes with its weights"),
    ],
    ids=["handle", "mask", "no forward"],
)
def test_attention_with_an_unknown_cache_is_skipped(members, reason):
    model = made()
    for layer in model.layers:
        layer.attention.__class__ = type("Other", (nn.Module,), members)
    (skipped,) = accelerate(model, backend="reference").skipped
    assert skipped.op == "attention"
    assert re.search(reason, skipped.reason)


def test_prompt_chunks_and_a_full_cache_run_the_original(slower_backend):
    model = made()
    expected = logits(model, (3, 4, 1, 1))
    accelerate(model, only="attention", backend=slower_backend)
    assert difference(logits(model, (3, 4, 1, 1)), expected) < 5e-6
    with pytest.raises(RuntimeError, match=r"size of tensor a \(8\) must match the size of tensor b \(9\)"):
        logits(model, room=8)


def test_a_backend_that_attention_is_told():
    def told(self, x, cache, attention_backend):
        assert attention_backend == "sdpa"
        return Attention.forward(self, x, cache)

    assert accelerate(variant(made(), "attention", told), only="attention", backend="reference").patched[0].sites == 3


def test_keys_and_values_may_lie_in_one_matrix():
    class Flat(nn.Module):
        def __init__(self, stacked):
            super().__init__()
            self.weight = nn.Parameter(stacked.weight.flatten(0, 1), requires_grad=False)

        def forward(self, x):
            return F.linear(x, self.weight).chunk(2, -1)

    model = made()
    expected = logits(model)
    for layer in model.layers:
        layer.attention.wkv = Flat(layer.attention.wkv)
    model.layers[0].feed_forward.w_in = Flat(model.layers[0].feed_forward.w_in)
    model.eval()
    assert len(accelerate(model, backend="reference").patched) == len(OPS)
    assert difference(logits(model), expected) < 5e-6


@pytest.mark.parametrize("eps", [None, 1e-5])
def test_norms_of_torch(eps):
    model = made()
    for layer in model.layers:
        norm = nn.RMSNorm(CONFIG.dim, eps)
        norm.weight = layer.ffn_norm.weight
        layer.ffn_norm = norm.eval()
    assert accelerate(model, only="norm", backend="reference").max_error < 5e-6


@pytest.mark.parametrize(
    ("start", "end", "skipped"),
    [(0, 0, {"dense": "no layer is dense"}), (1, 2, {"router": "no layer is a mixture of experts"})],
)
def test_models_without_dense_layers_or_mixtures(start, end, skipped):
    experts = 1 if end else CONFIG.moe_n_experts
    sites = {"moe_start_from_layer": start, "moe_end_from_layer": end, "special_topk_layers": ()}
    model = made(config=dataclasses.replace(CONFIG, **sites, moe_n_experts=experts))
    expected = logits(model)
    report = accelerate(model, backend="reference")
    assert {row.op: row.reason for row in report.skipped}.items() >= skipped.items()
    assert difference(logits(model), expected) < 5e-6


def test_more_rows_than_decode_together(slower_backend, monkeypatch):
    for file in (structure, attention):
        monkeypatch.setattr(file, "MAX_BATCH_SIZE", 4)
    monkeypatch.setattr(moe, "MAX_PREFILL_TOKENS", 8)
    model = made()
    expected = logits(model, (4, 1), ids(5, 5))
    accelerate(model, backend=slower_backend)
    with torch.inference_mode():
        assert difference(logits(model, (4, 1), ids(5, 5)), expected) < 5e-6


def test_codes_out_of_range():
    model = made()
    accelerate(model, only="embedding", backend="reference")
    for wrong in (-1, CONFIG.codebook_vocab):
        tokens = ids()
        tokens[0, 0, 1] = wrong
        with pytest.raises(IndexError, match="index out of range"):
            model.multi_embedder(tokens)


READ = ["multi_embedder.embedders.2", "layers.0.attention.wo", "layers.1.ffn_norm", f"layers.1.{ROUTER}.down_proj"]


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("path", READ)
def test_a_changed_weight_counts_or_is_an_error(path, write):
    """An error, where the original has one too or torch.nn.utils replaced the weight."""
    model, other = made(), made()
    accelerate(model, backend="reference")
    for changed in (model, other):
        WRITES[write](changed.get_submodule(path))
    try:
        found = logits(model)
    except (RuntimeError, TypeError):
        assert write in ("half", "prune", "weight norm")
    else:
        assert difference(found, logits(other)) < 5e-6


@pytest.mark.parametrize("name", ["layers.1.attention.temp", "layers.2.feed_forward.router.balancing_biases"])
def test_vectors_that_are_taken_in_another_form(name):
    model, other = made(), made()
    before = logits(other)
    accelerate(model, backend="reference")
    for changed in (model, other):
        changed.get_parameter(name).data.mul_(-3).add_(1)
    assert difference(logits(other), before) > 1e-3
    assert difference(logits(model), logits(other)) < 5e-6


def test_a_replaced_submodule_is_an_error():
    """As with an adapter that wraps a layer."""
    model = made()
    accelerate(model, backend="reference")
    wo = model.layers[1].attention.wo
    model.layers[1].attention.wo = nn.Sequential(wo)
    with pytest.raises(RuntimeError, match=r"layers\.1\.attention was changed after accelerate\(\).* report\.restore"):
        logits(model)


def test_a_change_of_weights_is_followed_and_the_old_ones_are_not_kept():
    model, other = made(), made()
    accelerate(model, backend="reference")
    gone = weakref.ref(model.layers[1].feed_forward.experts.w13)
    for changed in (model, other):
        experts = changed.layers[1].feed_forward.experts
        experts.w13 = nn.Parameter(experts.w13.flip(0), requires_grad=False)
    assert difference(logits(model), logits(other)) < 5e-6
    gc.collect()
    assert gone() is None


def misshapen(model):
    model.layers[0].feed_forward.w_in = Stacked(3, CONFIG.ffn_dim, CONFIG.dim).eval().requires_grad_(False)


def as_norm(forward):
    def spoil(model):
        model.out_norm.__class__ = type("Other", (Norm,), {"forward": forward})

    return spoil


def without_eps(model):
    as_norm(lambda self, x: F.rms_norm(x, self.weight.shape, self.weight, 1e-5))(model)
    del model.out_norm.variance_epsilon, model.eps


def failing(self, x):
    raise ArithmeticError("no mesh")


def strange_vocabulary(model):
    model.multi_embedder.embedders[3] = nn.Embedding(100, CONFIG.dim).eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.layers[1].train(), r"torch_module: layers\.1 is in training mode: call \.eval\(\)"),
        (misshapen, r"layers\.0\.feed_forward\.w_in\.weight must have shape \[2, 48, 32\], got \[3,"),
        (lambda m: delattr(m.layers[0].attention, "gater"), r"has no layers\.0\.attention\.gater\.weight, which"),
        (lambda m: delattr(m.layers[1].ffn_norm, "weight"), r"layers\.1\.ffn_norm\.weight \[32\] is missing"),
        (without_eps, r"norm cannot be patched: out_norm has no eps, variance_epsilon or norm_eps"),
        (as_norm(lambda self, x, residual: x), r"out_norm\.forward takes \(x, residual\), accepted is \(x\)"),
        (as_norm(failing), r"torch_module: out_norm\.forward fails on samples of shape \[\[3, 32\]\]: no mesh"),
        (strange_vocabulary, r"torch_module: its shapes are those of no ZONOS2: text_vocab 99 leaves"),
        (lambda m: m.layers[1].compile(), "torch_module: layers.1 is compiled already: accelerate first, then compile"),
    ],
)
def test_models_that_are_refused(spoil, message):
    model = made()
    spoil(model)
    refused(model, message)


@pytest.mark.interpreter
def test_what_kernels_do_not_take():
    config = dataclasses.replace(CONFIG, head_dim=24)
    refused(made(config=config), "the head dimension must be a power of two from 16, got 24", backend="triton")
    assert len(accelerate(made(config=config), backend="reference").patched) == len(OPS)
    model = made()
    weight = torch.cat([torch.zeros(1), model.out_norm.weight])[1:]
    model.out_norm.weight = nn.Parameter(weight, requires_grad=False)
    message = r"out_norm\.weight must be contiguous and start at a multiple of 16 bytes .* clone it"
    refused(model, message, backend="triton")
    accelerate(model, backend="reference")


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_weights_may_require_gradients(backend, without):
    model = made().requires_grad_(True)
    with without():
        expected = logits(model)
        report = accelerate(model, backend=backend)
        assert [row.op for row in report.patched] == OPS
        assert all(row.where.endswith(", under torch.no_grad()") for row in report.patched)
        assert 0 < difference(logits(model), expected) < 5e-6


def test_tied_weights():
    model = made()
    model.multi_embedder.embedders[1].weight = model.multi_embedder.embedders[0].weight
    model.layers[2].attention = model.layers[1].attention
    expected = logits(model)
    before = held(model)
    with accelerate(model, backend="reference") as report:
        assert [row.op for row in report.patched] == OPS
        assert difference(logits(model), expected) < 5e-6
    assert held(model) == before
