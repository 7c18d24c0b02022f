"""The loss of teacher-forced sequences, by the reference: each term by name."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from zonos2_triton.model.training.dataset import Item
from zonos2_triton.model.training.forcing import Sequences
from zonos2_triton.model.training.options import TrainOptions, weights_of
from zonos2_triton.reference import network
from zonos2_triton.reference.attention import causal_attention, rotated_heads
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.frame_embedding import project_speaker
from zonos2_triton.reference.numeric import wide
from zonos2_triton.reference.ops import REFERENCE

GUIDE_WIDTH = 0.8  # standard deviation, in tokens, of where a guided head should look


@dataclass(frozen=True)
class Losses:
    """Sums over a batch, so that those of several batches add up; `means` divides them."""

    cross_entropy: Tensor  # [C], over N targets
    hits: Tensor  # [C]: targets that are the first choice
    z: Tensor  # squared logarithms of the softmaxes' sums, over N * C
    balance: Tensor  # of all routers; a mean already
    guide: Tensor  # cross entropy of guided heads, over `guided` frames
    load: Tensor  # [mixture layers, E]: share of the tokens of each expert
    targets: int
    guided: int

    def total(self, options: TrainOptions, guide_weight: float) -> Tensor:
        """The loss that is minimised, per target."""
        C = len(self.cross_entropy)
        weights = self.cross_entropy.new_tensor(weights_of(options, C))
        loss = (self.cross_entropy * weights).sum() / self.targets + options.z_loss * self.z / self.targets
        return loss + options.balance_loss * self.balance + guide_weight * self.guide / max(self.guided, 1)


@dataclass(frozen=True)
class TrainedCodes:
    """The codes of each codebook that the head is trained on, padded to one number.

    Codes that the data never holds share the logit of padding. They count as often as there are of them, so the
    softmax is that of a head in which `fill_unused` has written padding's weights over theirs.
    """

    codes: Tensor  # [C, K] int64
    log_count: Tensor  # [C, K]: 0; the logarithm of their number at padding; -inf where there is no more
    column: Tensor  # [C, V] int64: the column of each code

    @classmethod
    def of(cls, config: Zonos2Config, used: Tensor, device: torch.device) -> "TrainedCodes":
        """used [C, V]: the codes of the data. The end of audio and padding are always trained."""
        used = used.clone()
        used[:, [config.eoa_id, config.audio_pad_id]] = True
        C, V, pad = *used.shape, config.audio_pad_id
        counts = used.sum(1)
        codes = torch.full((C, int(counts.max())), pad, dtype=torch.int64, device="cpu")
        log_count = torch.full(codes.shape, float("-inf"), dtype=torch.float32, device="cpu")
        column = torch.zeros(C, V, dtype=torch.int64, device="cpu")
        for j, count in enumerate(counts.tolist()):  # padding is the last code
            codes[j, :count] = used[j].nonzero()[:, 0]
            log_count[j, :count] = 0
            log_count[j, count - 1] = torch.log(V - counts[j] + 1.0)
            column[j] = torch.where(used[j], used[j].cumsum(0) - 1, count - 1)
        return cls(codes.to(device), log_count.to(device), column.to(device))


def used_codes(config: Zonos2Config, items: Sequence[Item]) -> Tensor:
    """bool [C, V]: the codes among the targets of some items: theirs, and those that come before the first."""
    used = torch.zeros(config.n_codebooks, config.codebook_vocab, dtype=torch.bool, device="cpu")
    for j, before in enumerate(items[0].prompt_ids(config)[-1, :-1].tolist()):
        used[j, before] = j > 0  # codebook 0 has no delay
        for item in items:
            used[j, item.codes[:, j].long()] = True
    return used


def fill_unused(config: Zonos2Config, head: Tensor, used: Tensor) -> Tensor:
    """head [C * V, D], with padding's weights at the codes that were not trained."""
    filled = head.clone().unflatten(0, (config.n_codebooks, config.codebook_vocab))
    for j in range(config.n_codebooks):
        unused = ~used[j]
        unused[config.eoa_id] = False
        filled[j, unused] = filled[j, config.audio_pad_id].clone()
    return filled.flatten(0, 1)


def losses(
    config: Zonos2Config,
    weights: Mapping[str, Tensor],
    sequences: Sequences,
    trained: TrainedCodes | None = None,
    guide_layers: Sequence[int] = (),
) -> Losses:
    """weights: by official name, which may require gradients. trained None: all codes."""
    model = network.bind(config, weights)
    device = model.table.device
    attention = _Attention(sequences, guide_layers)
    ops = replace(REFERENCE, prefill_attention=attention)
    stages, C = network.Stages(), config.n_codebooks
    batch = _batch(model, sequences, device)
    cache = network.Cache(config, 0, 0, model.table)  # shapes alone
    x, *_ = network.forward(model, batch, cache, ops, stages, attention.around)
    head, targets = model.head, sequences.targets.to(device)
    if trained is not None:
        head = (
            head.unflatten(0, (C, -1)).gather(1, trained.codes[..., None].expand(-1, -1, head.shape[1])).flatten(0, 1)
        )
        targets = trained.column.gather(1, targets.T).T
    x = x[sequences.at.to(device)]
    logits = REFERENCE.codebook_head(x, model.out_norm, head, C, config.norm_eps, config.loss_softcap)  # [N, C, K]
    log_sum = (logits if trained is None else logits + trained.log_count).logsumexp(-1)
    chosen = logits.gather(2, targets[..., None])[..., 0]
    balance, load = _balance(config, stages, logits)
    return Losses(
        cross_entropy=(log_sum - chosen).sum(0),
        hits=(logits.detach().argmax(-1) == targets).sum(0),
        z=log_sum.square().mean(1).sum(),
        balance=balance,
        guide=attention.loss if attention.loss is not None else logits.new_zeros(()),
        load=load,
        targets=len(targets),
        guided=attention.frames,
    )


def _batch(model: network.Model, sequences: Sequences, device: torch.device) -> network.Batch:
    B, M = len(sequences.firsts), len(sequences.ids)
    pages = torch.arange(B, dtype=torch.int32, device=device)
    cuts = torch.tensor(sequences.cu_seqlens, dtype=torch.int32, device=device)
    found = [speaker for speaker in sequences.speakers if speaker is not None]
    speakers = index = None
    if found:
        table = model.table
        speakers = project_speaker(torch.stack(found).to(device, table.dtype), model.speaker).to(table.dtype)
        index = torch.full((M,), -1, dtype=torch.int32, device=device)
        voiced = [
            at for at, speaker in zip(sequences.cu_seqlens, sequences.speakers, strict=False) if speaker is not None
        ]
        index[voiced] = torch.arange(len(found), dtype=torch.int32, device=device)
    ids = sequences.ids.to(device)
    return network.Batch(ids, pages[:, None], torch.zeros_like(pages), cuts, sequences.longest, speakers, index)


def _balance(config: Zonos2Config, stages: network.Stages, like: Tensor) -> tuple[Tensor, Tensor]:
    """The balance loss, E * sum of load * mean probability, summed over the layers; and the loads."""
    E, total = config.moe_n_experts, like.new_zeros(())
    loads = []
    for routing in stages.routings:
        load = torch.bincount(routing.expert_ids.flatten().long(), minlength=E) / routing.expert_ids.numel()
        total = total + E * (load * routing.probs.mean(0)).sum()
        loads.append(load)
    return total, torch.stack(loads) if loads else like.new_zeros(0, E)


class _Attention:
    """`prefill_attention` of whole sequences, without a cache.

    It also compares the first head of some layers with the alignment: at the token that predicts frame t, it should
    look at the byte that frame t speaks.
    """

    def __init__(self, sequences: Sequences, layers: Sequence[int]) -> None:
        self.sequences, self.layers = sequences, layers
        self.loss: Tensor | None = None
        self.frames = 0
        self._layer = -1

    def around(self, layer: int) -> AbstractContextManager[object]:
        self._layer = layer
        return network.UNWATCHED

    def __call__(
        self, qkvg: Tensor, qk_temperature: Tensor, cos_sin_cache: Tensor, k_cache: Tensor, *_: object
    ) -> Tensor:
        cuts = list(pairwise(self.sequences.cu_seqlens))
        positions = torch.cat([torch.arange(b - a, device=qkvg.device) for a, b in cuts])
        q, k, v = rotated_heads(qkvg, qk_temperature, cos_sin_cache, k_cache, positions)
        k = k.to(k_cache.dtype)
        if self._layer in self.layers:
            for i, (a, b) in enumerate(cuts):
                if (alignment := self.sequences.alignment[i]) is not None:
                    self._compare(q[a:b, 0], k[a:b, 0], self.sequences.firsts[i], alignment.to(qkvg.device))
        y = torch.cat([causal_attention(q[a:b], k[a:b], v[a:b]) for a, b in cuts])
        gate = torch.sigmoid(wide(qkvg[:, -q.shape[1] :]))
        return (y * gate[..., None]).flatten(1).to(qkvg.dtype)

    def _compare(self, q: Tensor, k: Tensor, first: int, alignment: Tensor) -> None:
        """q, k [T, DH] of one head; alignment [F]."""
        frames = (alignment >= 0).nonzero()[:, 0]
        tokens, keys = frames + first, torch.arange(len(k), device=k.device)
        scores = wide(q[tokens].to(k.dtype) @ k.T) * q.shape[1] ** -0.5
        scores = scores.masked_fill(keys > tokens[:, None], -1e9).log_softmax(-1).clamp(min=-30)
        wanted = (-0.5 * ((keys - alignment[frames, None]) / GUIDE_WIDTH).square()).exp()
        loss = -(wanted / wanted.sum(1, keepdim=True) * scores).sum()
        self.loss = loss if self.loss is None else self.loss + loss
        self.frames += len(frames)
