"""The sampler of the official engine, without a read-back before the draw.

Each request has its own settings; the official sampler applies the strictest settings of a batch to all. Its random
numbers are a function of its seed and the frame's number. So a request does not depend on the other requests. The
distribution is that of the official sampler, the frames are not: torch.Generator gives other random numbers.
"""

import logging
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from zonos2_triton.model.backend import resolve_backend
from zonos2_triton.model.ops import kernel
from zonos2_triton.model.runtime.batch_state import upload
from zonos2_triton.reference.ops import REFERENCE
from zonos2_triton.reference.sampling import NEVER_SEEN, Sampling

LOG = logging.getLogger("zonos2_triton")
WORD = 2**64
SAME_NAMES = ("temperature", "top_p", "min_p", "repetition_window", "repetition_penalty", "repetition_codebooks")
Draw = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Arguments:
    """Inputs of the next draw for B requests."""

    settings: Tensor  # [B, 8] fp32: `Sampling.packed` of each
    seeds: Tensor  # [B] int64
    steps: Tensor  # [B] int32: generated frames
    history: Callable[[], Tensor]  # -> the last W frames [B, W, C], newest last
    lengths: Tensor  # [B] int64: how many of these frames count
    window: int  # W
    text_vocab: int


@dataclass(frozen=True)
class Known:
    """Constants of a request."""

    params: Any
    settings: list[float]
    window: int  # frames in the repetition window
    key: int


class Sampler:
    """The methods of the engine's `TTSSampler`."""

    def __init__(
        self, device: torch.device, n_codebooks: int, codebook_size: int, text_vocab: int, backend: str = "auto"
    ) -> None:
        """backend: "triton", "reference" or "auto"."""
        self.device, self.n_codebooks = torch.device(device), n_codebooks
        self.codebook_size, self.text_vocab = codebook_size, text_vocab
        reference = resolve_backend(backend, self.device) == "reference"
        self._draw: Draw = REFERENCE.sample_codes if reference else kernel("sample_codes")
        self._known = WeakKeyDictionary[Any, Known]()
        self._keys = random.Random(_agreed_seed(self.device))  # of requests without a seed, in order of arrival

    def prepare(self, batch: Any, token_pool: Tensor | None = None) -> Arguments:
        """Prepare a draw from CPU data.

        The history is read later, at the draw: by then token_pool [slots, positions, C + 1] has the previous frame.
        """
        reqs = batch.reqs
        known = [self._of(req) for req in reqs]
        lengths = [min(k.window, req.total_generated, req.device_len) for k, req in zip(known, reqs, strict=True)]
        window = max(lengths, default=0)
        scalars = [
            [k.key, req.total_generated, length, req.table_idx, req.device_len - window]
            for k, length, req in zip(known, lengths, reqs, strict=True)
        ]
        columns = torch.tensor(scalars, dtype=torch.int64, device="cpu").T.contiguous()
        seeds, steps, counts, slots, first = upload(columns, self.device)
        settings = upload(torch.tensor([k.settings for k in known], dtype=torch.float32, device="cpu"), self.device)

        def pooled(pool: Tensor) -> Tensor:
            at = first[:, None] + torch.arange(window, device=self.device)
            return pool[slots[:, None], at.clamp(min=0), : self.n_codebooks]

        def held() -> Tensor:
            frames = torch.zeros(len(reqs), window, self.n_codebooks, dtype=torch.int32, device="cpu")
            for own, req, length in zip(frames, reqs, lengths, strict=True):
                own[window - length :] = req.input_ids[req.device_len - length : req.device_len, : self.n_codebooks]
            return upload(frames, self.device)

        history = held if token_pool is None else partial(pooled, token_pool)
        return Arguments(settings, seeds, steps.int(), history, counts, window, self.text_vocab)

    def sample(self, logits: Tensor, args: Arguments) -> list[list[int]]:
        """`sample_to_tensor`, read back."""
        return self.sample_to_tensor(logits, args).tolist()

    def sample_to_tensor(self, logits: Tensor, args: Arguments) -> Tensor:
        """logits [B, C, V] -> int32 [B, C + 1]: the codes, and text_vocab in the text column."""
        last_seen = self._last_seen(logits, args)
        codes, _ = self._draw(logits.float().contiguous(), args.settings, args.seeds, args.steps, last_seen)
        return pad(codes, (0, 1), value=args.text_vocab)

    def _last_seen(self, logits: Tensor, args: Arguments) -> Tensor:
        """[B, C, V] int32: the last frame with each code, or NEVER_SEEN."""
        last_seen = torch.full(logits.shape, NEVER_SEEN, dtype=torch.int32, device=logits.device)
        if args.window == 0:
            return last_seen
        codes = args.history().long()  # [B, W, C]
        back = torch.arange(args.window, 0, -1, device=logits.device)  # frames ago
        own = (back <= args.lengths[:, None])[..., None] & (codes >= 0) & (codes < self.codebook_size)
        frames = (args.steps[:, None] - back).int()[..., None].expand_as(codes)
        index, value = torch.where(own, codes, 0), torch.where(own, frames, NEVER_SEEN)
        return last_seen.scatter_reduce_(2, index.transpose(1, 2), value.transpose(1, 2).int(), "amax")

    def _of(self, req: Any) -> Known:
        params, known = req.sampling_params, self._known.get(req)
        if known is None or known.params is not params:
            key = self._keys.getrandbits(64) if params.seed is None else int(params.seed)
            key = (key + WORD // 2) % WORD - WORD // 2  # its low 64 bits as a signed integer
            sampling = _settings(req, self.codebook_size)
            counts = sampling.repetition_penalty > 1 and sampling.repetition_codebooks > 0
            known = Known(params, sampling.packed(), sampling.repetition_window if counts else 0, key)
            self._known[req] = known
        return known


def _settings(req: Any, codebook_size: int) -> Sampling:
    """The clamped settings of a request; invalid ones become the default, so that no request fails the others."""
    params = req.sampling_params
    try:
        top_k = params.topk if params.topk >= 1 else codebook_size
        sampling = Sampling(top_k=top_k, **{name: getattr(params, name) for name in SAME_NAMES})
    except (TypeError, ValueError) as error:
        LOG.warning("request %s: %s; it gets the default settings", getattr(req, "uid", "?"), error)
        sampling = Sampling()
    return sampling.clamped()


def _agreed_seed(device: torch.device) -> int:
    """A secret random number that all ranks share, since each rank samples its batch itself."""
    seed = secrets.randbits(62)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return seed
    number = torch.tensor([seed], dtype=torch.int64, device=device if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(number, 0)
    return int(number.item())
