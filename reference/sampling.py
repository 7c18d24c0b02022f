"""From the logits of a frame to its nine codes."""

import torch
from torch import Tensor

from zonos2_triton.reference.numeric import exp_nonpositive, isolated
from zonos2_triton.reference.philox import philox
from zonos2_triton.reference.sampling_params import LARGEST as LARGEST
from zonos2_triton.reference.sampling_params import Sampling as Sampling

WEIGHT_BITS = 30  # of the integer weights that a draw is made with
MASS_BITS = 40  # of the integers that are summed where weights are compared or normalised
NEVER_SEEN = -(2**30)  # the last frame of a code that has not come: before every window


@isolated()
def probabilities(logits: Tensor, sampling: Sampling, history: Tensor) -> Tensor:
    """logits [9, V] fp32, history [H, 9], oldest first -> fp32 [9, V], the distributions that codes are drawn from.

    Order: repetition penalty, temperature, top-k with ties, softmax, top-p, renormalise, min-p, renormalise. The
    penalty ignores ids from V - 2 on, end and padding. A codebook left empty is one-hot at its largest logit.
    """
    C, V = logits.shape
    last_seen = torch.full((C, V + 1), NEVER_SEEN, dtype=torch.int32, device=logits.device)
    ids = history.to(logits.device, torch.int64)
    frames = torch.arange(len(ids), dtype=torch.int32, device=ids.device)[:, None].expand(ids.shape)
    ids = torch.where((ids >= 0) & (ids < V), ids, V)  # V: a spare column
    last_seen.scatter_reduce_(1, ids.T, frames.T, "amax")
    settings = torch.tensor([sampling.packed()], dtype=torch.float32, device=logits.device)
    step = torch.tensor([len(history)], dtype=torch.int32, device=logits.device)
    return distributions(logits[None], settings, step, last_seen[None, :, :-1])[0]


def distributions(logits: Tensor, settings: Tensor, steps: Tensor, last_seen: Tensor) -> Tensor:
    """`probabilities` of B requests, [B, C, V]; arguments as `sample_codes` takes them.

    Whatever is rounded is rounded once, by one operation, and sums are sums of integers: machines that agree on the
    logits agree on every bit.
    """
    temperature, top_k, top_p, min_p, window, penalty, codebooks, _ = settings.float()[:, :, None, None].unbind(1)
    V = logits.shape[-1]
    code = torch.arange(V, device=logits.device)
    codebook = torch.arange(logits.shape[1], device=logits.device)[:, None]
    recent = (last_seen >= steps[:, None, None] - window.int()) & (codebook < codebooks) & (code < V - 2)
    x = logits.float()
    x = torch.where(recent, torch.where(x > 0, x / penalty, x * penalty), x) / temperature
    x = x.clamp(-LARGEST, LARGEST)
    descending = x.sort(dim=-1, descending=True).values
    least = descending.gather(-1, (top_k.long().clamp(max=V) - 1).expand(*x.shape[:-1], 1))
    weights = torch.where(x >= least, exp_nonpositive(x - descending[..., :1]), 0.0)  # the largest is 1
    weights = torch.where((top_p > 0) & (top_p < 1), _nucleus(weights, top_p), weights)
    weights = torch.where(weights >= min_p, weights, 0.0)
    total = _mass(weights).sum(-1, keepdim=True)
    greedy = (x == descending[..., :1]).int().cumsum(-1).cumsum(-1) == 1  # the first of the largest
    return torch.where(total > 0, weights / (total.float() * 2.0**-MASS_BITS), greedy.float())


def _mass(weights: Tensor) -> Tensor:
    return (weights * 2.0**MASS_BITS).long()


def _nucleus(weights: Tensor, top_p: Tensor) -> Tensor:
    """Those before which, in descending order, lies no more than top_p of all; the lower code first where they tie."""
    order = weights.sort(dim=-1, descending=True, stable=True).indices
    mass = _mass(weights).gather(-1, order)
    limit = (mass.sum(-1, keepdim=True).double() * top_p.double()).long()
    kept = mass.cumsum(-1) - mass <= limit
    return torch.where(torch.zeros_like(kept).scatter(-1, order, kept), weights, 0.0)


def draw(probs: Tensor, seed: Tensor | int, frame: Tensor | int) -> Tensor:
    """probs [..., C, V] fp32 -> [..., C] int64 codes: the same for the same probs, seed and frame, whatever else is
    drawn. seed and frame: a number, or [..., 1].

    Codebook c inverts its distribution at the first word of philox(seed, (frame, c, 0, 0)). Probabilities become
    integer weights floor(p * 2^30), so that running sums are exact in any order of summation: a code is drawn with its
    probability to 1e-6 (each weight loses up to 2^-30).
    """
    weights = (probs * 2**WEIGHT_BITS).to(torch.int64)
    codebooks = torch.arange(probs.shape[-2], device=probs.device)
    word = philox(seed, (frame, codebooks, 0, 0))[..., :1].to(probs.device)
    target = word * weights.sum(-1, keepdim=True) >> 32
    return (weights.cumsum(-1) <= target).sum(-1)
