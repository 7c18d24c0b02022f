"""An accelerated model of the official engine gives the same logits in every mode of the engine."""

import inspect
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.integrations.zonos2_engine.official import PlainAttention, Ranks, Run, build, random_weights
from zonos2_triton.model.integrations.accelerate import accelerate
from zonos2_triton.model.integrations.zonos2_engine import attention as engine_attention
from zonos2_triton.model.integrations.zonos2_engine import engine, layers
from zonos2_triton.model.integrations.zonos2_engine.attention import Backend, creator
from zonos2_triton.reference.ops import REFERENCE

# fp32 logits, up to 15, from sums in another order; the largest error was 2e-5.
ATOL = 2e-4
# Median over the tokens of the largest difference over the largest logit; measured 0.010 and 0.0013.
HALF = [(torch.bfloat16, 0.03), (torch.float16, 0.004)]


@pytest.fixture(scope="module", params=["reference", pytest.param("triton", marks=pytest.mark.interpreter)])
def fast(request, official, params, weights):
    """An accelerated model, and its report."""
    model = build(official, params, weights)
    report = accelerate(model, backend=request.param)
    return SimpleNamespace(model=model, report=report, attention=creator(request.param))


def on(*backends):
    """The accelerated models of a test; kernels run only in make test-full."""
    marks = {"reference": (), "triton": (pytest.mark.interpreter, pytest.mark.slow)}
    return pytest.mark.parametrize("fast", [pytest.param(name, marks=marks[name]) for name in backends], indirect=True)


def assert_same(found, expected):
    for new, old in zip(found, expected, strict=True):
        assert new.dtype == torch.float32
        torch.testing.assert_close(new, old.float(), atol=ATOL, rtol=0)
        assert torch.equal(new.argmax(-1), old.argmax(-1))


def test_the_stand_ins_are_right(official, golden):
    """The official classes on plain PyTorch, and their stand-in, give the golden logits."""
    io, model = golden.tensors("backbone_b_io"), build(official, golden.json("params_b"), golden.tensors("backbone_b"))
    run = Run(official, model)
    for name, speaker in (("nospk", None), ("spk", io["speaker_embedding"])):
        logits = run.step([run.add(io[f"{name}.prompt_ids"])], "prefill", speaker)
        torch.testing.assert_close(logits[io[f"{name}.logits_positions"]], io[f"{name}.logits"], atol=2e-3, rtol=0)


def test_same_logits(official, fast, prompts, frames, expected):
    assert_same(Run(official, fast.model, fast.attention).generate(prompts, frames), expected)
    assert {patch.op: patch.sites for patch in fast.report.patched} == {
        "embedding": 1, "norm": 12, "rotary": 4, "attention": 4, "router": 2, "experts": 4, "dense": 2, "head": 1,
    }  # fmt: skip
    assert not fast.report.skipped
    assert all(0 <= patch.error <= patch.bound for patch in fast.report.patched)
    assert fast.report.max_error < 1e-5


@on("reference", "triton")
def test_a_speaker_takes_the_place_of_a_row(official, fast, model, prompts):
    voice = torch.linspace(-1, 1, 8)
    new, old = Run(official, fast.model, fast.attention), Run(official, model)
    asked = (new, voice), (old, voice), (Run(official, model), None)
    found, plain, silent = (run.step([run.add(prompts[0])], "prefill", speaker) for run, speaker in asked)
    assert_same([found], [plain])
    assert (plain - silent).abs().max() > 0.1


@on("triton")
def test_a_request_has_the_same_bits_alone_and_in_a_batch(official, fast, prompts, frames):
    frames = frames[:1]
    together = Run(official, fast.model, fast.attention).generate(prompts, frames)
    rows = [len(prompt) for prompt in prompts]
    for i in (1, 2):
        alone = Run(official, fast.model, fast.attention).generate([prompts[i]], frames[:, i : i + 1])
        mine = [together[0].split(rows)[i], *(step[i : i + 1] for step in together[1:])]
        assert all(torch.equal(a, b) for a, b in zip(alone, mine, strict=True))


@on("reference", "triton")
def test_the_memory_of_a_graph_gives_the_same(official, fast, prompts, frames, expected):
    """Three requests in a graph of four: the step gets only the tensors that a captured step reads."""
    run = Run(official, fast.model, fast.attention)
    captured, memory = run.capture(4), run.backend.captured
    reqs = [run.add(prompt) for prompt in prompts]
    run.step(reqs, "prefill")
    for frame, old in zip(frames, expected[1:], strict=True):
        run.append(reqs, frame)
        batch = run.batch(reqs, "decode", captured.reqs[:1])
        run.backend.prepare_for_replay(batch)
        assert batch.input_ids.data_ptr() == captured.input_ids.data_ptr() == memory.input_ids.data_ptr()
        replayed, taken = batch.attn_metadata, captured.attn_metadata
        for name in ("positions", "cache_seqlens", "block_table", "cu_seqlens"):
            assert getattr(replayed, name).data_ptr() == getattr(taken, name).data_ptr()
        assert replayed.cache_seqlens.tolist()[3] == engine_attention.IDLE
        logits = run.forward(captured)  # the captured batch with new contents
        assert_same([logits[:3]], [old])
        assert logits.isfinite().all()
        for req in reqs:
            req.complete_one()


def test_padding_goes_to_no_expert(official, model, monkeypatch, prompts):
    slots = []

    def experts(*args, **kwargs):
        slots.append(args[7] if len(args) > 7 else None)  # None: dense
        return REFERENCE.moe_experts(*args, **kwargs)

    monkeypatch.setattr(engine, "ops_of", lambda *_: replace(REFERENCE, moe_experts=experts))
    accelerate(model, backend="reference")
    run = Run(official, model, creator("reference"))
    dummy, reqs = run.add(torch.zeros(1, 10)), [run.add(prompt) for prompt in prompts]
    run.step(reqs, "prefill")
    run.append(reqs, torch.ones(3, 10))
    slots.clear()
    run.forward(run.batch(reqs, "decode", [dummy, dummy]))
    routed = [int(offsets[-1]) for offsets in slots if offsets is not None]
    assert routed == [3 * 1, 3 * 2], "of one expert a row, and of two"


def test_graphs_that_were_not_made(official, model):
    backend = Run(official, model, creator("reference")).backend
    batch = official("core").TTSBatch(reqs=[None], phase="decode")
    with pytest.raises(RuntimeError, match=r"zonos2_triton: no graph of 1 requests, only of \[\]"):
        backend.prepare_for_capture(batch)
    with pytest.raises(ValueError, match="graphs hold at most 256 requests, got 300"):
        backend.init_capture_graph(64, [300], 10)
    backend.init_capture_graph(64, [2], 1)
    assert backend.captured.input_ids.shape == (2,)
    with pytest.raises(RuntimeError, match="init_capture_graph was called before"):
        backend.init_capture_graph(64, [2], 10)


def test_the_attention_backend_alone(official, model, prompts, frames, expected):
    """On an unpatched model."""
    run = Run(official, model, creator("reference"))
    assert_same(run.generate(prompts, frames), expected)
    assert run.batch(run.reqs, "decode").attn_metadata.get_last_indices(2).tolist() == [0, 1]
    base = official("attention").BaseAttnBackend
    assert isinstance(run.backend, base)
    for name in base.__abstractmethods__:
        own, theirs = (inspect.signature(getattr(cls, name)).parameters.values() for cls in (Backend, base))
        assert [(p.name, p.default) for p in own] == [(p.name, p.default) for p in theirs]


@on("reference", "triton")
def test_another_attention_backend(official, fast, prompts, frames, expected):
    """For all steps, then for prefill: attention is then the original, and all around it is patched."""

    def hybrid(*given):
        return official("attention.base").HybridBackend(PlainAttention(*given), fast.attention(*given))

    for attention in (PlainAttention, hybrid):
        assert_same(Run(official, fast.model, attention).generate(prompts, frames), expected)


@pytest.mark.parametrize("op", engine.OPS)
def test_each_operation_alone(official, model, op, prompts, frames, expected):
    report = accelerate(model, only=op, backend="reference")
    assert [patch.op for patch in report.patched] == [op]
    assert_same(Run(official, model, creator("reference")).generate(prompts, frames), expected)


@pytest.mark.parametrize("name", ["MAX_BATCH_SIZE", "MAX_PREFILL_TOKENS"])
def test_more_sequences_and_rows_than_one_launch_has(official, model, monkeypatch, prompts, frames, expected, name):
    for module in (engine_attention, layers):
        monkeypatch.setattr(module, name, 2, raising=False)
    accelerate(model, backend="reference")
    run = Run(official, model, creator("reference"))
    assert_same(run.generate(prompts, frames), expected)
    assert run.batch(run.reqs, "decode").attn_metadata.decoding == (name != "MAX_BATCH_SIZE")
    router = model.layers.op_list[2].feed_forward.router
    weights, ids, following = router.forward(torch.ones(9, 32), torch.ones(9, 16))
    assert (weights.shape, ids.shape, following.shape) == ((9, 2), (9, 2), (9, 16))
    assert ids.dtype == torch.int32


DENSE = {"moe_n_experts": 1, "moe_router_topk": 1, "special_topk_layers": {}, "moe_end_from_layer": 4}


@pytest.mark.parametrize(
    ("changes", "left"),
    [({"moe_balancing_strategy": "quantile"}, ()), (DENSE | {"moe_start_from_layer": 0}, ("router", "experts"))],
    ids=["biases that are subtracted", "no mixtures"],
)
def test_models_of_other_settings(official, params, prompts, frames, expected, changes, left):
    other = params | changes
    patched, plain = (build(official, other, random_weights(other)) for _ in range(2))
    report = accelerate(patched, backend="reference")
    assert {x.op: x.reason for x in report.skipped} == dict.fromkeys(left, engine.NO_MIXTURE)
    old = Run(official, plain).generate(prompts, frames)
    assert_same(Run(official, patched, creator("reference")).generate(prompts, frames), old)
    assert (expected[0] - old[0]).abs().max() > 0.1, "the settings make no difference: the test shows nothing"


@pytest.mark.parametrize(("dtype", "bound"), HALF)
@pytest.mark.parametrize("exact", [True, False], ids=["", "biases that the kernel would round"])
def test_half_precision(official, params, weights, prompts, frames, dtype, bound, exact):
    """Two experts with close scores may swap, and a token then differs; most do not.

    Dummy weights have fp32 biases: the router is skipped, and the experts sort its ids themselves.
    """
    patched, plain = (build(official, params, weights, dtype) for _ in range(2))
    assert plain.layers.op_list[0].attention.temp.dtype == torch.bfloat16
    for model in (patched, plain) if not exact else ():
        model.layers.op_list[1].feed_forward.router.balancing_biases = torch.tensor([0.1, 0.2, 0.3, 0.4])
    reason = "layers.1.feed_forward.router.balancing_biases are torch.float32, which {} does not hold exactly"
    report = accelerate(patched, backend="reference")
    assert {x.op: x.reason for x in report.skipped} == ({} if exact else {"router": reason.format(dtype)})
    new = Run(official, patched, creator("reference")).generate(prompts, frames)
    old = Run(official, plain).generate(prompts, frames)
    apart = torch.cat([(a - b).abs().amax((1, 2)) for a, b in zip(new, old, strict=True)])
    assert apart.median() / max(x.abs().max() for x in old) < bound


def test_outside_of_inference_mode(official, params, weights, prompts, frames, expected):
    """As the offline API builds its engine, which runs in inference mode wherever it was built."""
    with torch.inference_mode(False), torch.no_grad():
        model = build(official, params, weights)
        accelerate(model, backend="reference")
        run = Run(official, model, creator("reference"))
    assert not model.out_norm.weight.is_inference()
    assert_same(run.generate(prompts, frames), expected)


@pytest.mark.parametrize(
    "backend", [None, "reference", pytest.param("triton", marks=[pytest.mark.interpreter, pytest.mark.slow])]
)
def test_two_ranks(official, params, weights, prompts, frames, expected, backend):
    """Heads, feed-forward width and tables are divided; backend None: the unpatched model."""
    ranks = Ranks(official, 2)
    models = [build(official, params, weights, rank=rank, ranks=2) for rank in range(2)]
    assert list(models[1].multi_embedder.embedders.op_list[0].weight.shape) == [16, 32]

    def work(rank):
        if backend is not None:
            assert len(accelerate(models[rank], backend=backend).patched) == len(engine.OPS)
        attention = PlainAttention if backend is None else creator(backend)
        return Run(official, models[rank], attention).generate(prompts[:2], frames[:1, :2])

    try:
        first, second = ranks.run(work)
    finally:
        official("distributed.info")._TP_INFO = official("distributed.info").DistributedInfo(0, 1)
    assert_same(first, [expected[0][:-1], expected[1][:-1]])  # without the third, whose prompt is one token
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
