"""From the logits of a frame to its nine codes."""

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from zonos2_triton.reference.philox import philox

WEIGHT_BITS = 30  # of the integer weights that a draw is made with


@dataclass(frozen=True)
class Sampling:
    """Settings of one request. Any finite number is accepted and clamped as the official request path does.

    temperature         at least 1e-6, which is one-hot unless the maximum is tied
    top_k               keeps the k largest logits and ties with the last; below 1 means 1024
    top_p               0..1; keeps the most probable codes until more than top_p lies before one; 0 and 1: off
    min_p               drops codes below min_p times the most probable one's probability; 0: off
    repetition_window   generated frames looked back at; 0: no penalty
    repetition_penalty  at least 1, which is off; positive logits of seen codes are divided by it, others multiplied
    repetition_codebooks  the first so many codebooks are penalised; negative or above 9: all
    max_frames          at least 1
    ignore_eos          generate max_frames whatever the codes say
    seed                0 .. 2^64 - 1, or None: drawn anew for each request
    """

    temperature: float = 1.15
    top_k: int = 106
    top_p: float = 0.0
    min_p: float = 0.18
    repetition_window: int = 50
    repetition_penalty: float = 1.2
    repetition_codebooks: int = 8
    max_frames: int = 1024
    ignore_eos: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name == "ignore_eos":
                if not isinstance(value, bool):
                    raise TypeError(f"sampling: ignore_eos must be True or False, got {value!r}")
            elif value is None and name == "seed":
                continue
            elif isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"sampling: {name} must be a number, got {value!r}")
            elif not _is_finite(value):
                raise ValueError(f"sampling: {name} must be finite, got {value!r}")
        if self.max_frames < 1:
            raise ValueError(f"sampling: max_frames must be at least 1, got {self.max_frames!r}")
        if self.seed is not None and (self.seed != int(self.seed) or not 0 <= self.seed < 2**64):
            raise ValueError(f"sampling: seed must be an integer in 0..2**64 - 1 or None, got {self.seed!r}")

    def clamped(self) -> "Sampling":
        """The values that take effect."""
        top_k, codebooks = int(self.top_k), int(self.repetition_codebooks)
        return replace(
            self,
            temperature=float(max(self.temperature, 1e-6)),
            top_k=top_k if top_k >= 1 else 1024,
            top_p=min(max(self.top_p, 0.0), 1.0),
            min_p=float(max(self.min_p, 0.0)),
            repetition_window=max(int(self.repetition_window), 0),
            repetition_penalty=float(max(self.repetition_penalty, 1.0)),
            repetition_codebooks=9 if codebooks < 0 else min(codebooks, 9),
            max_frames=int(self.max_frames),
            seed=None if self.seed is None else int(self.seed),
        )


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond every float
        return False


def probabilities(logits: Tensor, sampling: Sampling, history: Tensor) -> Tensor:
    """logits [9, V] fp32, history [H, 9], oldest first -> fp32 [9, V], what one draw per codebook is taken from.

    In this order: repetition penalty (history ids from V - 2 on, end and padding, are ignored), temperature, top-k with
    ties, softmax, top-p, renormalise, min-p, renormalise; a row left empty is one-hot at its largest logit.
    """
    s = sampling.clamped()
    x = _penalised(logits.float(), s, history)
    x = x / x.new_tensor(s.temperature)  # a tensor: on CUDA, a number would be turned into a product
    if s.top_k < x.shape[-1]:
        least = x.topk(s.top_k).values[:, -1:]
        x = x.masked_fill(x < least, float("-inf"))
    p = x.softmax(-1)
    if 0 < s.top_p < 1:
        descending, order = p.sort(dim=-1, descending=True, stable=True)
        before = descending.cumsum(-1) - descending
        kept = descending.masked_fill(before > s.top_p, 0)
        p = _renormalised(p.scatter(-1, order, kept))
    if s.min_p > 0:
        p = _renormalised(p.masked_fill(p < s.min_p * p.amax(-1, keepdim=True), 0))
    greedy = torch.zeros_like(p).scatter(-1, x.argmax(-1, keepdim=True), 1)
    return torch.where(p.sum(-1, keepdim=True) > 0, p, greedy)


def _penalised(x: Tensor, s: Sampling, history: Tensor) -> Tensor:
    """Each code below 1024 seen in its codebook during the last frames is penalised once."""
    recent = history[max(len(history) - s.repetition_window, 0) :].to(x.device, torch.int64)
    seen = torch.zeros(x.shape[0], x.shape[1] + 1, dtype=torch.bool, device=x.device)
    end_and_padding = x.shape[1] - 2
    ids = torch.where((recent >= 0) & (recent < end_and_padding), recent, x.shape[1])  # the spare column
    seen.scatter_(1, ids.T, True)
    seen[s.repetition_codebooks :] = False
    penalty = x.new_tensor(s.repetition_penalty)
    return torch.where(seen[:, :-1], torch.where(x > 0, x / penalty, x * penalty), x)


def _renormalised(p: Tensor) -> Tensor:
    return p / p.sum(-1, keepdim=True).clamp(min=1e-8)


def draw(probs: Tensor, seed: int, frame: int) -> Tensor:
    """probs [C, V] fp32 -> [C] int64 codes: the same for the same probs, seed and frame, whatever else is drawn.

    Codebook c inverts its distribution at the first word of philox(seed, (frame, c, 0, 0)). Probabilities become
    integer weights floor(p * 2^30), so that running sums are exact in any order of summation: a code is drawn with its
    probability to 1e-9, and two machines that agree on probs agree on the code.
    """
    weights = (probs * 2**WEIGHT_BITS).to(torch.int64)
    codebooks = torch.arange(len(probs))
    word = philox(seed, (frame, codebooks, 0, 0))[:, :1].to(probs.device)
    target = word * weights.sum(-1, keepdim=True) >> 32
    return (weights.cumsum(-1) <= target).sum(-1)
