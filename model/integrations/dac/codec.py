"""transformers' DacModel and dac.DAC, two classes of the Descript audio codec: codes to latents to samples."""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zonos2_triton.model.integrations.accelerate import Candidate, Integration
from zonos2_triton.model.integrations.dac.layers import CodecLayer, read_layers
from zonos2_triton.model.integrations.patching import Replacement, WeightGuard, check_module, check_weights
from zonos2_triton.model.vocoder import Vocoder
from zonos2_triton.model.weights.codec_checkpoint import official_name
from zonos2_triton.reference.numeric import exact_numerics

CLIPS, FRAMES = 2, 3  # of the sample that verify decodes
# Replacement and original round in different places. The largest differences of random weights, tiny and real sizes:
# from_codes 5e-16, 5e-7, 1e-2 and 1e-3; decoder 3e-15, 3e-6, 3e-2 and 4e-3. Weights that magnify rounding need more.
BOUNDS = {
    torch.float64: {"from_codes": 1e-13, "decoder": 1e-12},
    torch.float32: {"from_codes": 1e-5, "decoder": 1e-4},
    torch.bfloat16: {"from_codes": 4e-2, "decoder": 1e-1},
    torch.float16: {"from_codes": 5e-3, "decoder": 2e-2},
}


@dataclass
class Codec(Integration):
    """A codec class with the modules `quantizer` and `decoder`; layers: names of modules that identify its decoder."""

    name: str
    package: str
    versions: tuple[str, str]
    layers: tuple[str, ...]
    ops: tuple[str, ...] = ("from_codes", "decoder")

    def recognises(self, obj: object) -> bool:
        quantizer, decoder = getattr(obj, "quantizer", None), getattr(obj, "decoder", None)
        return (
            isinstance(obj, nn.Module)
            and isinstance(getattr(quantizer, "quantizers", None), nn.ModuleList)
            and hasattr(quantizer, "from_codes")
            and all(isinstance(getattr(decoder, layer, None), nn.Module) for layer in self.layers)
        )

    def check(self, obj: Any) -> Tensor:
        tensors: list[tuple[str, Tensor]] = []
        for name in ("quantizer", "decoder"):
            check_module(f"{self.name}.{name}", getattr(obj, name))
            tensors += [(f"{name}.{key}", tensor) for key, tensor in getattr(obj, name).named_parameters()]
        weight = check_weights(self.name, tensors)
        read_layers(self.name, obj)
        return weight

    def candidates(self, obj: Any, backend: str, ops: Collection[str]) -> list[Candidate]:
        config, layers = read_layers(self.name, obj)
        like, tensors = layers["decoder.model.0"].module.bias, {}
        for name in ("quantizer", "decoder"):
            for key, tensor in getattr(obj, name).state_dict().items():
                tensors[official_name(f"{name}.{key}", config)] = tensor
        vocoder = Vocoder.from_state(config, tensors, like.device, like.dtype, backend)
        vocoder.decoder  # noqa: B018  packs the weights; the unpacked ones are not needed afterwards
        vocoder.state.clear()
        found = []
        if "from_codes" in ops:
            found.append(_from_codes(obj.quantizer, vocoder))
        if "decoder" in ops:
            found.append(_decoder(obj.decoder, layers.values(), vocoder))
        return found


INTEGRATIONS: tuple[Integration, ...] = (
    Codec("transformers.DacModel", "transformers", ("4.57", "6"), ("conv1", "block", "snake1", "conv2")),
    Codec("dac.DAC", "descript-audio-codec", ("1.0.0", "1.1"), ("model",)),
)


def _from_codes(quantizer: Any, vocoder: Vocoder) -> Candidate:
    """codes [B, C, T] of the first C codebooks -> (latents [B, D, T], code vectors [B, C * K, T], codes)."""
    original, guard = quantizer.from_codes, WeightGuard(quantizer, "quantizer", ignore="in_proj")

    def from_codes(codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        guard.check()
        if codes.ndim != 3 or codes.numel() == 0:
            return original(codes)
        # The look-up comes first: ids and codebooks out of range are then the original's errors.
        vectors = [quantizer.quantizers[i].codebook(ids).mT for i, ids in enumerate(codes.unbind(1))]
        with _without_autocast(vocoder.device):
            z = vocoder.latents(codes).contiguous()
        return _as_autocast(z), torch.cat(vectors, 1), codes

    shape = CLIPS, vocoder.config.n_codebooks, FRAMES
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(vocoder.config.codebook_size, shape, generator=generator, device="cpu")
    return _candidate("from_codes", quantizer, "from_codes", from_codes, codes.to(vocoder.device), vocoder)


def _decoder(decoder: nn.Module, layers: Iterable[CodecLayer], vocoder: Vocoder) -> Candidate:
    """latents [B, D, T] -> samples [B, 1, samples]."""
    original, guard = decoder.forward, WeightGuard(decoder, "decoder")
    paddings = [(module, module.padding) for _, module in layers if hasattr(module, "padding")]

    def forward(z: Tensor) -> Tensor:
        guard.check()
        # dac.DAC removes the padding to decode the chunks of a long file, which the kernels do not do.
        if any(module.padding != padding for module, padding in paddings):
            return original(z)
        if z.ndim == 3 and (len(z) == 0 or vocoder.config.samples(z.shape[2]) == 0):
            return original(z)
        with _without_autocast(vocoder.device) as cast:
            samples = vocoder.decode_latents(z.to(vocoder.dtype) if cast else z)
        return _as_autocast(samples.to(vocoder.dtype))[:, None]

    shape = CLIPS, vocoder.config.latent_dim, FRAMES
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    z = z.to(vocoder.device, vocoder.dtype)
    return _candidate("decoder", decoder, "forward", forward, z, vocoder)


def _candidate(
    op: str, owner: nn.Module, attribute: str, function: Callable[[Tensor], Any], sample: Tensor, vocoder: Vocoder
) -> Candidate:
    original = getattr(owner, attribute)
    signature = inspect.signature(original)

    def called(*args: Any, **kwargs: Any) -> Any:  # the packages use different argument names
        return function(*signature.bind(*args, **kwargs).args)

    def check() -> tuple[object, object]:
        with exact_numerics():
            return called(sample), original(sample)

    where = {"from_codes": "quantizer.from_codes", "decoder": "decoder.forward"}[op]
    site = owner, attribute, Replacement(called, original, owner.parameters)
    return Candidate(op, where, [site], check, BOUNDS[vocoder.dtype][op])


@contextmanager
def _without_autocast(device: torch.device) -> Iterator[bool]:
    """Yield whether autocast was on. The dtype of the weights decides what the replacement computes in."""
    was_on = torch.is_autocast_enabled(device.type)
    with torch.autocast(device.type, enabled=False):
        yield was_on


def _as_autocast(x: Tensor) -> Tensor:
    """Cast a result to the dtype that the original gives under autocast."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(kind))
    return x
