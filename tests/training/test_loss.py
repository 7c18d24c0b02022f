import pytest
import torch
import torch.nn.functional as F

from zonos2_triton.model.training.forcing import teacher_forced
from zonos2_triton.model.training.loss import TrainedCodes, fill_unused, losses, used_codes
from zonos2_triton.model.training.options import TrainOptions, schedule
from zonos2_triton.model.weights.tiny import backbone_weights
from zonos2_triton.reference import network


@pytest.fixture(scope="module")
def weights(config):
    made = backbone_weights(config, torch.Generator().manual_seed(0))
    return {name: tensor.double().requires_grad_("balancing" not in name) for name, tensor in made.items()}


def spoken(config, weights, sequences, b):
    """The trace of one sequence, as the product computes it."""
    plain = {name: tensor.detach() for name, tensor in weights.items()}
    return network.trace(network.bind(config, plain), sequences.ids[slice(*sequences.cu_seqlens[b : b + 2])])


def forced(config, items):
    return teacher_forced(config, items, [item.prompt for item in items])


def test_each_term_by_its_formula(config, weights, items):
    """From the logits that the product speaks with, sequence by sequence."""
    sequences = forced(config, items[:3])
    found = losses(config, weights, sequences)
    traces = [spoken(config, weights, sequences, b) for b in range(3)]
    logits = torch.cat([trace["logits"] for trace in traces])[sequences.at]
    entropy = [F.cross_entropy(logits[:, j], sequences.targets[:, j], reduction="sum") for j in range(9)]
    torch.testing.assert_close(found.cross_entropy, torch.stack(entropy))
    torch.testing.assert_close(found.z, logits.logsumexp(-1).square().mean(1).sum())
    assert torch.equal(found.hits, (logits.argmax(-1) == sequences.targets).sum(0))
    ids, probs = (torch.cat([trace[name] for trace in traces], 1) for name in ("expert_ids", "router_probs"))
    for i in range(len(config.moe_layers)):
        chosen = ids[i][ids[i] >= 0]
        assert found.load[i].tolist() == pytest.approx([(chosen == e).double().mean().item() for e in range(4)])
    torch.testing.assert_close(found.balance, (4 * (found.load * probs.mean(1)).sum()).double(), rtol=1e-6, atol=0)
    options = TrainOptions(codebook_weights=(1.0, 0.5), z_loss=0.1, balance_loss=0.2)
    weighted = found.cross_entropy[0] + 0.5 * found.cross_entropy[1:].sum() + 0.1 * found.z
    torch.testing.assert_close(found.total(options, 0.0), weighted / found.targets + 0.2 * found.balance)


def test_the_guided_head_is_the_attention_of_the_model(config, weights, items, monkeypatch):
    """Its probabilities, taken from the products of the model itself, against the formula."""
    sequences = forced(config, items[:1])
    seen = []
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, dim: seen.append(softmax(x, dim)) or seen[-1])
    spoken(config, weights, sequences, 0)
    monkeypatch.undo()
    attention = [each for each in seen if each.ndim == 3][2 * config.kv_heads][0]  # layer 2, head 0
    found = losses(config, weights, sequences, guide_layers=(2,))
    expected, frames, keys = 0.0, 0, torch.arange(len(attention))
    for frame, place in enumerate(sequences.alignment[0].tolist()):
        if place >= 0:
            wanted = torch.exp(-0.5 * ((keys - place) / 0.8) ** 2)
            expected -= (wanted / wanted.sum() * attention[frame + sequences.firsts[0]].log().clamp(min=-30)).sum()
            frames += 1
    assert found.guided == frames > 0
    torch.testing.assert_close(found.guide.item(), expected.item(), rtol=1e-6, atol=0)
    assert losses(config, weights, sequences).guided == 0


def test_unused_codes_are_those_of_the_exported_head(config, weights, items):
    """Training with used codes alone is training of the head that is exported."""
    sequences, others = forced(config, items[:3]), forced(config, items[3:])
    used = used_codes(config, items[:3])
    assert all(
        used[j].nonzero()[:, 0].tolist() == sorted({*sequences.targets[:, j].tolist()} - {1024}) for j in range(9)
    )
    trained = TrainedCodes.of(config, used, torch.device("cpu"))
    head = "multi_output.weight"
    exported = weights | {head: fill_unused(config, weights[head].detach(), used)}
    for each in (sequences, others):  # of the latter, some targets are codes that were not trained
        found, expected = losses(config, weights, each, trained), losses(config, exported, each)
        torch.testing.assert_close(found.cross_entropy, expected.cross_entropy, rtol=1e-6, atol=0)
        torch.testing.assert_close(found.z, expected.z, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(losses(config, weights, sequences, trained).cross_entropy.sum(), weights[head])
    touched = gradient.unflatten(0, (9, -1)).abs().sum(-1) > 0
    used[:, [config.eoa_id, config.audio_pad_id]] = True
    assert torch.equal(touched, used)


def test_autocast_rounds_products_alone(config, weights, items):
    sequences = forced(config, items)
    single = {name: tensor.detach().float().requires_grad_() for name, tensor in weights.items()}
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(config, single, sequences, guide_layers=(2,))
    found.total(TrainOptions(), 0.5).backward()
    exact = losses(config, single, sequences, guide_layers=(2,))
    assert 1e-6 < (found.cross_entropy / exact.cross_entropy - 1).abs().max() < 0.02
    assert all(t.grad.isfinite().all() for name, t in single.items() if t.grad is not None)


def test_every_code_used_is_the_whole_head(config, weights, items):
    sequences = forced(config, items[:1])
    every = torch.ones(config.n_codebooks, config.codebook_vocab, dtype=torch.bool)
    found = losses(config, weights, sequences, TrainedCodes.of(config, every, torch.device("cpu")))
    torch.testing.assert_close(found.cross_entropy, losses(config, weights, sequences).cross_entropy)


def test_a_speaker_takes_part(config, weights, items, seeded):
    voice = seeded(config.speaker_embedding_dim).double()
    item = items[0].__class__(**{**vars(items[0]), "speaker": voice})
    sequences = forced(config, [items[1], item])
    plain = {name: tensor.detach() for name, tensor in weights.items()}
    ids = sequences.ids[sequences.cu_seqlens[1] :]
    trace = network.trace(network.bind(config, plain), ids, voice)
    alone = losses(config, weights, forced(config, [item]))
    at = torch.arange(alone.targets) + sequences.firsts[1]
    logits = trace["logits"][at]
    expected = F.cross_entropy(logits[:, 0], sequences.targets[-alone.targets :, 0], reduction="sum")
    torch.testing.assert_close(alone.cross_entropy[0].detach(), expected)
    total = losses(config, weights, sequences).cross_entropy
    assert torch.autograd.grad(total.sum(), weights["speaker_projection.weight"])[0].abs().max() > 0


def test_the_schedule_rises_and_falls():
    options = TrainOptions(steps=100, warmup=10, lr=1.0, final_lr=0.1)
    rates = [schedule(options, step)["lr"] for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.1)
    assert schedule(options, 50)["guide_weight"] == pytest.approx(0.275)
    assert schedule(options, 100)["balance_update"] == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"lr": float("nan")}, "lr must be at least 0, got nan"),
        ({"final_lr": 2}, "final_lr must be from 0 to 1, got 2"),
        ({"codebook_weights": (1, -1)}, r"codebook_weights must be at least 0, got \(1, -1\)"),
    ],
)
def test_wrong_options(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainOptions(**wrong)
