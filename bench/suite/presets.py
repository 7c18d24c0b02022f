"""The sizes of a run for the device: the real ones, and small ones for a smoke run on a CPU."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.compiler.frame_estimate import frame_places
from zonos2_triton.bench.specs.spec import Kernel, Workload
from zonos2_triton.bench.suite.device_checks import BATCHES, layer_chain, whole_model
from zonos2_triton.bench.timing.vocoder import WORKS, Work
from zonos2_triton.model.weights.tiny import PARAMS
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.vocoder import VocoderConfig

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
TIMED = "bfloat16"


@dataclass(frozen=True)
class Preset:
    """The checks and timings of a run, and their sizes."""

    real: bool
    codec: VocoderConfig
    vocoder: dict[str, Work]
    vocoder_dtypes: tuple[str, ...]
    integration_dtypes: tuple[str, ...]  # of codecs of other packages
    batch_sizes: tuple[int, ...]  # of whole frames
    no_pdl: tuple[int, ...]  # of those timed once more without dependent launch, and launch by launch
    context: int  # rows in the cache of each
    contexts: dict[int, tuple[int, ...]]  # by batch size, further ones
    torch_frames: tuple[int, ...]  # batch sizes at which plain PyTorch is compiled for a whole frame
    prefills: tuple[int, ...]  # rows
    batches: tuple[int, ...]  # of the checks that a batch changes nothing
    clip: int  # frames of the checks of the vocoder
    text: str
    together: tuple[int, ...]  # such texts that begin at once
    rounds: int  # of text to first audio
    scheduler_steps: int  # of the host, over which its work is measured
    seconds_of_audio: float  # that one stream speaks while its memory is watched
    kernels: Mapping[str, Kernel] = field(default_factory=lambda: KERNELS)

    @cached_property
    def config(self) -> Zonos2Config:
        """The configuration of complete frames."""
        small = {"n_layers": 3, "moe_start_from_layer": 1, "special_topk_layers": {"1": 2}}
        return whole_model() if self.real else Zonos2Config.from_params(PARAMS | small)

    @cached_property
    def chain(self) -> Zonos2Config:
        """A few layers of the same sizes."""
        return layer_chain(small=not self.real)

    def timed(self, kernel: Kernel) -> list[Workload]:
        """Its workloads that are timed, which are verified first."""
        if self.real:
            return [workload for workload in kernel.workloads if workload.real]
        return [next(workload for workload in kernel.workloads if not workload.real)]

    @cached_property
    def launches(self) -> dict[str, tuple[Kernel, Workload]]:
        """The workloads of those frames, each once."""
        places = [place for batch_size in self.no_pdl for place in frame_places(self.config, batch_size)]
        pairs = [
            (KERNELS[op], workload)
            for op, name in dict.fromkeys(places)
            for workload in self.timed(KERNELS[op])
            if workload.name == name or not self.real
        ]
        return {f"{kernel.name}/{workload.name}": (kernel, workload) for kernel, workload in pairs}

    def essential(self, stage: str, name: str) -> bool:
        """Whether the first five minutes of a run give this item."""
        of_stages = {
            "compile": name == "frames",
            "accuracy": name.removesuffix(f"/{TIMED}") in self.launches,
            "invariance": "/batch_invariant" in name,
            "frames": name.removesuffix("/no-pdl") in [f"B{batch_size}" for batch_size in self.no_pdl],
            "vocoder": name in (f"clips-1/{TIMED}", f"streams-64/{TIMED}"),
        }
        return of_stages.get(stage, stage in ("calibration", "cuda_graph", "launches", "constants"))

    def verified(self, kernel: Kernel, dtype: str) -> list[Workload]:
        """Beside them."""
        small = [workload for workload in kernel.workloads if not workload.real]
        return small if self.real else small[:1] if dtype == "bfloat16" else []


FULL = Preset(
    real=True,
    codec=VocoderConfig(),
    vocoder=WORKS,
    vocoder_dtypes=("bfloat16", "float16"),
    integration_dtypes=("float16", "float32"),
    batch_sizes=(1, 4, 16, 64, 256),
    no_pdl=(1, 16, 64),
    context=1000,
    contexts={1: (100, 2000, 4000, 6080), 16: (100, 2000, 4000, 6080)},
    torch_frames=(16, 1, 64),
    prefills=(128, 512, 2048),
    batches=BATCHES,
    clip=40,
    text="The quick brown fox jumps over the lazy dog, and then it does so once more.",
    together=(1, 16),
    rounds=20,
    scheduler_steps=24,
    seconds_of_audio=60.0,
)
SMOKE = Preset(
    real=False,
    codec=VocoderConfig(latent_dim=16, decoder_dim=16, decoder_rates=(4, 2)),
    vocoder={"clips-1": Work(1, 3, True), "streams-2": Work(2, 1, False)},
    vocoder_dtypes=("bfloat16",),
    integration_dtypes=("float32",),
    batch_sizes=(2,),
    no_pdl=(2,),
    context=20,
    contexts={1: (40,)},
    torch_frames=(2,),
    prefills=(8,),
    batches=(1, 2, 3),
    clip=5,
    text="a",
    together=(1, 2),
    rounds=1,
    scheduler_steps=2,
    seconds_of_audio=0.01,
)
