"""`accelerate` on the official engine's model, and what its processes are given: with a stand-in of the package always,
and with the package itself wherever it is importable."""

import copy
import inspect
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.integrations.zonos2_engine.official import (
    Official,
    PlainAttention,
    Ranks,
    Run,
    build,
    imported,
    random_weights,
    standing_in,
)
from zonos2_triton.model.integrations import accelerate as accelerating
from zonos2_triton.model.integrations.accelerate import MARK, accelerate
from zonos2_triton.model.integrations.patching import Swaps
from zonos2_triton.model.integrations.zonos2_engine import attention as engine_attention
from zonos2_triton.model.integrations.zonos2_engine import engine, layers
from zonos2_triton.model.integrations.zonos2_engine.attention import Backend, creator
from zonos2_triton.reference.ops import REFERENCE

BACKENDS = ("reference", "triton")
# fp32 logits, up to 15, after layers whose sums were made in another order: 2e-5 was seen.
ATOL = 2e-4


@pytest.fixture(scope="module")
def params(golden: Any) -> dict[str, Any]:
    """A dense layer, mixtures of one expert and of two, a dense layer."""
    sizes = {
        "n_layers": 4, "dim": 32, "head_dim": 16, "n_heads": 4, "n_kv_heads": 2, "ffn_dim_multiplier": 1.5,
        "multiple_of": 16, "codebook_size": 30, "eoa_id": 30, "audio_pad_id": 31, "moe_router_dim": 16,
        "max_seqlen": 64, "special_topk_layers": {"2": 2}, "speaker_embedding_dim": 8,
    }  # fmt: skip
    return golden.json("params_b") | sizes


@pytest.fixture(scope="module")
def weights(params: dict[str, Any]) -> dict[str, Tensor]:
    return random_weights(params)


@pytest.fixture(scope="module", params=["stand-in", "official"])
def package(request: pytest.FixtureRequest) -> Iterator[Official]:
    with {"stand-in": standing_in, "official": imported}[request.param]() as found, torch.inference_mode():
        yield found


@pytest.fixture
def model(package: Official, params: dict[str, Any], weights: dict[str, Tensor]) -> Any:
    return build(package, params, weights)


@pytest.fixture(scope="module", params=BACKENDS)
def fast(request: pytest.FixtureRequest, package: Official, params: Any, weights: Any) -> SimpleNamespace:
    """An accelerated model, and its report."""
    model = build(package, params, weights)
    report = accelerate(model, backend=request.param)
    return SimpleNamespace(model=model, report=report, backend=request.param, attention=creator(request.param))


@pytest.fixture(scope="module")
def prompts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(30, (rows, 10), generator=generator, dtype=torch.int32) for rows in (9, 4, 1)]


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return torch.randint(30, (2, 3, 10), generator=torch.Generator().manual_seed(3), dtype=torch.int32)


@pytest.fixture(scope="module")
def expected(package: Official, params: Any, weights: Any, prompts: Any, frames: Tensor) -> list[Tensor]:
    """The logits of each step of the model as it is."""
    return Run(package, build(package, params, weights)).generate(prompts, frames)


def assert_same(found: list[Tensor], expected: list[Tensor], atol: float = ATOL) -> None:
    for new, old in zip(found, expected, strict=True):
        assert new.dtype == torch.float32
        torch.testing.assert_close(new, old.float(), atol=atol, rtol=0)
        assert torch.equal(new.argmax(-1), old.argmax(-1))


def held(model: Any) -> dict[str, dict[str, int]]:
    """Every attribute of every object of the tree, by identity."""
    found, ahead = {}, [("", model)]
    while ahead:
        path, owner = ahead.pop()
        if isinstance(owner, list | tuple):
            ahead += [(f"{path}.{i}", value) for i, value in enumerate(owner)]
        elif hasattr(owner, "__dict__") and not isinstance(owner, Tensor | type) and not callable(owner):
            found[path] = {name: id(value) for name, value in vars(owner).items()}
            ahead += [(f"{path}.{name}", value) for name, value in vars(owner).items() if name != MARK]
    return found


def test_the_stand_ins_are_right(package, golden):
    """The official classes on plain PyTorch, and the stand-in of them, give the golden logits."""
    io, model = golden.tensors("backbone_b_io"), build(package, golden.json("params_b"), golden.tensors("backbone_b"))
    run = Run(package, model)
    for name, speaker in (("nospk", None), ("spk", io["speaker_embedding"])):
        logits = run.step([run.add(io[f"{name}.prompt_ids"])], "prefill", speaker)
        torch.testing.assert_close(logits[io[f"{name}.logits_positions"]], io[f"{name}.logits"], atol=2e-3, rtol=0)


def test_same_logits(package, fast, prompts, frames, expected):
    assert_same(Run(package, fast.model, fast.attention).generate(prompts, frames), expected)
    assert {swap.op: swap.places for swap in fast.report.swapped} == {
        "embedding": 1, "norm": 12, "rotary": 4, "attention": 4, "router": 2, "experts": 4, "dense": 2, "head": 1,
    }  # fmt: skip
    assert not fast.report.left
    assert all(0 <= swap.error <= swap.bound for swap in fast.report.swapped)


def test_a_speaker_takes_the_place_of_a_row(package, fast, model, prompts):
    voice = torch.linspace(-1, 1, 8)
    new, old = Run(package, fast.model, fast.attention), Run(package, model)
    found, plain, silent = (
        run.step([run.add(prompts[0])], "prefill", speaker)
        for run, speaker in ((new, voice), (old, voice), (Run(package, model), None))
    )
    assert_same([found], [plain])
    assert (plain - silent).abs().max() > 0.1


@pytest.mark.parametrize("fast", ["triton"], indirect=True)
def test_a_request_has_the_same_bits_alone_and_in_a_batch(package, fast, prompts, frames):
    frames = frames[:1]
    together = Run(package, fast.model, fast.attention).generate(prompts, frames)
    rows = [len(prompt) for prompt in prompts]
    for i in (1, 2):
        alone = Run(package, fast.model, fast.attention).generate([prompts[i]], frames[:, i : i + 1])
        mine = [together[0].split(rows)[i], *(step[i : i + 1] for step in together[1:])]
        assert all(torch.equal(a, b) for a, b in zip(alone, mine, strict=True))


def test_the_memory_of_a_graph_gives_the_same(package, fast, prompts, frames, expected):
    """Three requests in a graph of four: what a captured step would read is all that it is given."""
    run = Run(package, fast.model, fast.attention)
    run.backend.init_capture_graph(64, [1, 4], 10)
    dummy = run.add(torch.zeros(1, 10))
    dummy.table_idx = 7
    captured = package("core").TTSBatch(reqs=[dummy] * 4, phase="decode")
    run.backend.prepare_for_capture(captured)
    memory = run.backend.captured
    run.page_table[7] = 0  # a place that nobody is given
    run.free = run.free[run.free != 0]
    run.kvcache._kv_buffer[:, :, 0] = 0
    reqs = [run.add(prompt) for prompt in prompts]
    run.step(reqs, "prefill")
    for frame, old in zip(frames, expected[1:], strict=True):
        for req, row in zip(reqs, frame, strict=True):
            req.append_host(row)
        batch = run.batch(reqs, "decode", [dummy])
        run.backend.prepare_for_replay(batch)
        assert batch.input_ids.data_ptr() == captured.input_ids.data_ptr() == memory.input_ids.data_ptr()
        replayed, taken = batch.attn_metadata, captured.attn_metadata
        for name in ("positions", "starts", "block_table", "cu_seqlens"):
            assert getattr(replayed, name).data_ptr() == getattr(taken, name).data_ptr()
        assert replayed.starts.tolist()[3] == engine_attention.IDLE
        with run.active(), run.context.forward_batch(captured):  # the batch that was captured, with new contents
            logits = fast.model.forward()
        assert_same([logits[:3]], [old])
        assert logits.isfinite().all()
        for req in reqs:
            req.complete_one()


def test_padding_goes_to_no_expert(package, model, monkeypatch, prompts):
    slots = []

    def experts(*args: Any, **kwargs: Any) -> Tensor:
        slots.append(args[7] if len(args) > 7 else None)  # None: dense
        return REFERENCE.experts(*args, **kwargs)

    monkeypatch.setattr(engine, "ops_of", lambda *_: replace(REFERENCE, experts=experts))
    accelerate(model, backend="reference")
    run = Run(package, model, creator("reference"))
    dummy, reqs = run.add(torch.zeros(1, 10)), [run.add(prompt) for prompt in prompts]
    run.step(reqs, "prefill")
    for req in reqs:
        req.append_host(torch.ones(10, dtype=torch.int32))
    slots.clear()
    batch = run.batch(reqs, "decode", [dummy, dummy])
    with run.active(), run.context.forward_batch(batch):
        model.forward()
    routed = [int(offsets[-1]) for offsets in slots if offsets is not None]
    assert routed == [3 * 1, 3 * 2], "of one expert a row, and of two"


def test_graphs_that_were_not_made(package, fast):
    backend = Run(package, fast.model, fast.attention).backend
    batch = package("core").TTSBatch(reqs=[None], phase="decode")
    with pytest.raises(RuntimeError, match=r"zonos2_triton: no graph of 1 requests, only of \[\]"):
        backend.prepare_for_capture(batch)
    with pytest.raises(ValueError, match="graphs hold at most 256 requests, got 300"):
        backend.init_capture_graph(64, [300], 10)
    backend.init_capture_graph(64, [2], 1)
    assert backend.captured.input_ids.shape == (2,)
    with pytest.raises(RuntimeError, match="init_capture_graph was called before"):
        backend.init_capture_graph(64, [2], 10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_attention_backend_alone(package, model, backend, prompts, frames, expected):
    """On a model that is as it was."""
    run = Run(package, model, creator(backend))
    assert isinstance(run.backend, package("attention").BaseAttnBackend)
    assert_same(run.generate(prompts, frames), expected)
    batch = run.batch(run.reqs, "decode")
    assert batch.attn_metadata.get_last_indices(2).tolist() == [0, 1]


def test_the_calls_of_a_backend(package):
    base = package("attention").BaseAttnBackend
    for name in base.__abstractmethods__:
        own, theirs = (inspect.signature(getattr(cls, name)).parameters for cls in (Backend, base))
        assert list(own) == list(theirs)
        assert [p.default for p in own.values()] == [p.default for p in theirs.values()]


def test_another_attention_backend(package, fast, prompts, frames, expected):
    """Then a layer's attention is the original, around it everything is ours."""
    assert_same(Run(package, fast.model).generate(prompts, frames), expected)


def test_one_backend_for_prompts_and_another_for_frames(package, fast, prompts, frames, expected):
    def hybrid(*given: Any) -> Any:
        return package("attention.base").HybridBackend(PlainAttention(*given), fast.attention(*given))

    assert_same(Run(package, fast.model, hybrid).generate(prompts, frames), expected)


@pytest.mark.parametrize("op", engine.OPS)
def test_each_operation_alone(package, model, op, prompts, frames, expected):
    report = accelerate(model, only=op, backend="reference")
    assert [swap.op for swap in report.swapped] == [op]
    assert_same(Run(package, model, creator("reference")).generate(prompts, frames), [e.float() for e in expected])


def test_more_sequences_than_decode_together(package, model, monkeypatch, prompts, frames, expected):
    for module in (engine_attention, layers):
        monkeypatch.setattr(module, "SEQUENCES_AT_ONCE", 2)
    accelerate(model, backend="reference")
    run = Run(package, model, creator("reference"))
    assert_same(run.generate(prompts, frames), expected)
    assert not run.batch(run.reqs, "decode").attn_metadata.decoding


def test_more_rows_than_a_router_takes_at_once(package, model, monkeypatch, prompts, frames, expected):
    monkeypatch.setattr(layers, "ROWS_AT_ONCE", 4)
    accelerate(model, backend="reference")
    assert_same(Run(package, model, creator("reference")).generate(prompts, frames), expected)
    state = torch.ones(9, 16)
    router = model.layers.op_list[2].feed_forward.router
    weights, ids, following = router.forward(torch.ones(9, 32), state)
    assert (weights.shape, ids.shape, following.shape) == ((9, 2), (9, 2), (9, 16))
    assert ids.dtype == torch.int32


def test_biases_that_are_subtracted(package, params, weights, prompts, frames):
    ours, plain = (build(package, params | {"moe_balancing_strategy": "quantile"}, weights) for _ in range(2))
    accelerate(ours, backend="reference")
    old = Run(package, plain).generate(prompts, frames)
    assert_same(Run(package, ours, creator("reference")).generate(prompts, frames), old)
    added = Run(package, build(package, params, weights)).generate(prompts, frames)
    assert (added[0] - old[0]).abs().max() > 0.1, "the sign makes no difference: the test shows nothing"


# Largest difference of a row over the largest logit, of the middle row; seen: 0.010 and 0.0013.
HALF = [(torch.bfloat16, 0.03), (torch.float16, 0.004)]


@pytest.mark.parametrize(("dtype", "bound"), HALF)
def test_half_precision(package, params, weights, prompts, frames, dtype, bound):
    """Where two experts are close another may be chosen, and a row goes apart: most do not."""
    ours, plain = (build(package, params, weights, dtype) for _ in range(2))
    assert plain.layers.op_list[0].attention.temp.dtype == torch.bfloat16
    accelerate(ours, backend="reference")
    new = Run(package, ours, creator("reference")).generate(prompts, frames)
    old = Run(package, plain).generate(prompts, frames)
    apart = torch.cat([(a - b).abs().amax((1, 2)) for a, b in zip(new, old, strict=True)])
    assert apart.median() / max(x.abs().max() for x in old) < bound


def test_restored(package, model, prompts, frames, expected):
    before = held(model)
    with accelerate(model, backend="reference") as report:
        assert held(model) != before
        assert accelerate(model, backend="reference") is report
        with pytest.raises(ValueError, match="accelerated already, with other arguments"):
            accelerate(model, only="head", backend="reference")
    assert held(model) == before
    assert_same(Run(package, model).generate(prompts, frames), [e.float() for e in expected])


def test_what_models_share_is_left_alone(package, params, weights, model):
    other = build(package, params, weights)
    rotary = other.layers.op_list[0].attention.attn.rotary
    assert rotary is model.layers.op_list[0].attention.attn.rotary
    before = held(other)
    accelerate(model, backend="reference")
    assert held(other) == before
    assert model.layers.op_list[0].attention.attn.rotary is not rotary


def test_rotary_of_the_other_kind_is_the_original(model):
    shared = model.layers.op_list[0].attention.attn.rotary
    accelerate(model, backend="reference")
    rotary = model.layers.op_list[0].attention.attn.rotary
    positions, q, k = torch.tensor([3, 5], dtype=torch.int32), torch.randn(2, 64), torch.randn(2, 32)
    new, old = (each.forward(positions, q.clone(), k.clone(), True) for each in (rotary, shared))
    assert all(torch.equal(a, b) for a, b in zip(new, old, strict=True))


def test_a_norm_in_place(model):
    """As flashinfer's function takes it."""
    norm = layer(model, 1).feed_forward.router.rmsnorm_eda
    x = torch.randn(3, 16)
    expected, y = norm.rmsnorm(x, norm.weight, norm.eps), x.clone()
    accelerate(model, backend="reference")
    assert norm.rmsnorm(y, norm.weight, norm.eps, out=y) is y
    torch.testing.assert_close(y, expected)


def test_nothing_else_is_changed(package, model):
    core, state = package("core"), torch.get_rng_state()
    accelerate(model, backend="reference")
    assert core._GLOBAL_CTX is None
    assert torch.equal(torch.get_rng_state(), state)


def test_outside_of_inference_mode(package, params, weights, prompts, frames, expected):
    """As the offline API builds its engine; it runs inside, whatever was made outside."""
    with torch.inference_mode(False), torch.no_grad():
        model = build(package, params, weights)
        accelerate(model, backend="reference")
        run = Run(package, model, creator("reference"))
    assert not model.out_norm.weight.is_inference()
    assert_same(run.generate(prompts, frames), expected)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda patch, core: patch.delattr(core, "_GLOBAL_CTX"), "zonos2.core has no '_GLOBAL_CTX'"),
        (lambda patch, core: patch.setitem(sys.modules, "zonos2.core", None), "zonos2.core, .* cannot be imported"),
    ],
    ids=["context", "module"],
)
def test_a_package_of_another_structure_is_refused(package, model, monkeypatch, spoil, message):
    spoil(monkeypatch, package("core"))
    with pytest.raises(ValueError, match=message):
        accelerate(model, backend="reference")


def off_by_one_percent(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if isinstance(result, Tensor):
            return result * 1.01
        return (
            type(result)._make(x * 1.01 if x.is_floating_point() else x for x in result)
            if hasattr(result, "_make")
            else tuple(x * 1.01 for x in result)
        )

    return wrong


@pytest.mark.parametrize(
    ("operation", "op"),
    [
        ("frame_embedding", "embedding"), ("add_rms_norm", "norm"), ("qkv_projection", "attention"),
        ("decode_attention", "attention"), ("prefill_attention", "attention"), ("output_projection", "attention"),
        ("router", "router"), ("experts", "experts"), ("head", "head"),
    ],
)  # fmt: skip
def test_a_wrong_operation_is_refused(model, monkeypatch, operation, op):
    wrong = replace(REFERENCE, **{operation: off_by_one_percent(getattr(REFERENCE, operation))})
    monkeypatch.setattr(engine, "ops_of", lambda *_: wrong)
    before = held(model)
    with pytest.raises(
        ValueError, match=rf"{op} cannot be swapped: differs from the original by \S+, more than the bound"
    ):
        accelerate(model, backend="reference")
    assert held(model) == before
    report = accelerate(model, strict=False, backend="reference")
    assert op in [left.op for left in report.left]
    report.restore()
    unseen = accelerate(model, verify=False, backend="reference")
    assert unseen.max_error is None
    assert len(unseen.swapped) == len(engine.OPS)


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_two_ranks(package, params, weights, prompts, frames, expected, backend):
    """Heads, feed-forward width and rows of the tables are divided; backend None: the model as it is."""
    ranks = Ranks(package, 2)
    models = [build(package, params, weights, rank=rank, ranks=2) for rank in range(2)]
    assert list(models[1].multi_embedder.embedders.op_list[0].weight.shape) == [16, 32]

    def work(rank: int) -> list[Tensor]:
        attention = PlainAttention if backend is None else creator(backend)
        if backend is not None:
            report = accelerate(models[rank], backend=backend)
            assert len(report.swapped) == len(engine.OPS)
        return Run(package, models[rank], attention).generate(prompts[:2], frames[:1, :2])

    try:
        first, second = ranks.run(work)
    finally:
        package("distributed.info")._TP_INFO = package("distributed.info").DistributedInfo(0, 1)
    assert_same(first, [expected[0][:-1], expected[1][:-1]])  # without the third, whose prompt is one row
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def layer(model: Any, i: int) -> Any:
    return model.layers.op_list[i]


# What is done to a model, and how it is refused.
BAD: dict[str, tuple[Callable[[Any], object], str]] = {
    "attribute": (
        lambda m: delattr(layer(m, 1).attention, "gater"),
        "layers.1.attention.gater.weight is missing, one of 1 tensors",
    ),
    "part": (lambda m: delattr(layer(m, 2).feed_forward, "router"), "layers.2.feed_forward has no 'router'"),
    "config": (lambda m: setattr(m, "config", SimpleNamespace()), r"config has no 'moe_n_experts'"),
    "shape": (
        lambda m: setattr(layer(m, 0).attention.wq, "weight", torch.zeros(3, 32)),
        r"layers.0.attention.wq.weight must have shape \[64, 32\], got \[3, 32\]",
    ),
    "bias": (
        lambda m: setattr(layer(m, 0).attention.wo, "bias", torch.zeros(32)),
        "layers.0.attention.wo.bias is unexpected",
    ),
    "strides": (
        lambda m: setattr(m.multi_output, "weight", m.multi_output.weight.T.contiguous().T),
        r"multi_output.weight must be contiguous, got strides \(1, 288\)",
    ),
    "dtype": (
        lambda m: setattr(m.out_norm, "weight", m.out_norm.weight.half()),
        "weights must be of one dtype, got torch.float32 of .* and torch.float16 of out_norm.weight",
    ),
    "device": (
        lambda m: setattr(m.out_norm, "weight", torch.empty(32, device="meta")),
        "out_norm.weight is on the meta device: load the weights first",
    ),
    "gradients": (
        lambda m: setattr(m.out_norm, "weight", leaf(m.out_norm.weight)),
        "out_norm.weight requires gradients",
    ),
    "replaced": (
        lambda m: setattr(layer(m, 3).feed_forward, "forward", lambda x: x),
        "layers.3.feed_forward.forward is not its class's: somebody else has replaced it",
    ),
    "signature": (
        lambda m: setattr(layer(m, 3), "feed_forward", Strange(layer(m, 3).feed_forward)),
        r"layers.3.feed_forward.forward must take \(x\), got \(x, scale\)",
    ),
    "setting": (
        lambda m: setattr(layer(m, 1).feed_forward.experts._fused_moe, "renormalize", True),
        "layers.1.feed_forward.experts._fused_moe.renormalize must be False, got True",
    ),
    "two tensors": (
        lambda m: setattr(layer(m, 1).feed_forward.experts, "down_proj", layer(m, 2).feed_forward.experts.down_proj),
        "layers.1.*._fused_moe.down_proj must be the tensor of layers.1.feed_forward.experts.down_proj",
    ),
    "layers": (lambda m: m.layers.op_list.pop(), "layers.3 |config.num_layers=4, got 3"),
    "heads": (lambda m: setattr(layer(m, 0).attention.wo, "_tp_size", 3), "config.* must be a multiple of the 3 ranks"),
    "ids": (lambda m: setattr(m, "config", changed(m.config, eoa_id=7)), "config: eoa_id must be codebook_size 30"),
}  # fmt: skip


class Strange:
    """A layer whose method takes more."""

    def __init__(self, layer: Any) -> None:
        vars(self).update(vars(layer))
        self.state_dict = layer.state_dict

    def forward(self, x: Tensor, scale: float) -> Tensor:
        return x * scale


def leaf(weight: Tensor) -> Tensor:
    with torch.inference_mode(False):
        return torch.ones(weight.shape, requires_grad=True)


def changed(config: Any, **values: Any) -> Any:
    made = copy.copy(config)
    vars(made).update(values)
    return made


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD)
def test_a_model_of_another_structure_is_refused(model, spoil, message):
    spoil(model)
    before = held(model)
    with pytest.raises(ValueError, match=f"zonos2 engine model: .*{message}"):
        accelerate(model, backend="reference")
    assert held(model) == before


def test_biases_that_the_kernel_would_round(package, params, weights, prompts, frames):
    """As dummy weights have them: the router stays as it is, and the experts sort its choices themselves."""
    ours, plain = (build(package, params, weights, torch.bfloat16) for _ in range(2))
    for model in (ours, plain):
        layer(model, 1).feed_forward.router.balancing_biases = torch.tensor([0.1, 0.2, 0.3, 0.4])
    report = accelerate(ours, backend="reference")
    reasons = {left.op: left.reason for left in report.left}
    name = "layers.1.feed_forward.router.balancing_biases"
    assert reasons == {"router": f"{name} are torch.float32, which torch.bfloat16 does not hold exactly"}
    new = Run(package, ours, creator("reference")).generate(prompts, frames)
    old = Run(package, plain).generate(prompts, frames)
    apart = torch.cat([(a - b).abs().amax((1, 2)) for a, b in zip(new, old, strict=True)])
    assert apart.median() / max(x.abs().max() for x in old) < HALF[0][1]


def test_a_version_that_nobody_knows(model, monkeypatch, caplog):
    monkeypatch.setattr(accelerating, "version", lambda name: "0.7.1")
    with pytest.raises(ValueError, match=r"zonos2 0.7.1 is none of the versions 0.1 to below 0.2"):
        accelerate(model, backend="reference")
    report = accelerate(model, strict=False, backend="reference")
    assert report.host_version == "0.7.1"
    assert "going by its structure alone" in caplog.text


def test_an_engine_that_is_built_already(package, model):
    for built in (SimpleNamespace(graph_runner=None), SimpleNamespace(engine=SimpleNamespace(graph_runner=None))):
        with pytest.raises(
            TypeError, match=r"SimpleNamespace has captured its CUDA graphs already.*accelerate\(zonos2\)"
        ):
            accelerate(built)


def test_a_half_done_swap_is_undone(model, monkeypatch):
    before, put = held(model), Swaps.attribute

    def failing(self: Swaps, owner: Any, name: str, value: object) -> None:
        if owner is layer(model, 2).attention:
            raise AttributeError("read only")
        put(self, owner, name, value)

    monkeypatch.setattr(Swaps, "attribute", failing)
    with pytest.raises(AttributeError, match="read only"):
        accelerate(model, backend="reference")
    assert held(model) == before


def test_weights_that_change_afterwards(model):
    """What was packed must not; the others are read where they are."""
    accelerate(model, backend="reference")
    x, ids = torch.ones(2, 32), torch.zeros(2, 10, dtype=torch.int32)
    before = model.compute_logits(x)
    model.multi_output.weight = model.multi_output.weight.flip(0)
    assert not torch.equal(model.compute_logits(x), before)
    model.multi_embedder.forward(ids)
    model.multi_embedder.embedders.op_list[4].weight = torch.zeros(32, 32)
    with pytest.raises(RuntimeError, match=r"multi_embedder.embedders.4.weight was changed after accelerate\(\)"):
        model.multi_embedder.forward(ids)
    router = layer(model, 1).feed_forward.router
    router.balancing_biases = torch.zeros(4)
    with pytest.raises(RuntimeError, match=r"layers.1.feed_forward.router.balancing_biases was changed"):
        router.forward(x)


def test_a_copy_is_refused(model):
    accelerate(model, backend="reference")
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"cannot be copied or saved whole: call report.restore\(\)"):
            copied(model)


def test_the_report(fast):
    shown, read = str(fast.report), json.loads(fast.report.json())
    assert shown.startswith(f"zonos2 engine model: 8 operations by the {fast.backend} backend")
    assert read["max_error"] == fast.report.max_error < 1e-5
    assert [swap["op"] for swap in read["swapped"]] == list(engine.OPS)


def test_a_model_without_mixtures(package, params, frames, prompts):
    dense = params | {"moe_n_experts": 1, "moe_router_topk": 1, "special_topk_layers": {}}
    dense |= {"moe_start_from_layer": 0, "moe_end_from_layer": 4}
    ours, plain = (build(package, dense, random_weights(dense)) for _ in range(2))
    report = accelerate(ours, backend="reference")
    assert {left.op: left.reason for left in report.left} == dict.fromkeys(("router", "experts"), engine.NO_MIXTURE)
    assert_same(
        Run(package, ours, creator("reference")).generate(prompts, frames),
        Run(package, plain).generate(prompts, frames),
    )
