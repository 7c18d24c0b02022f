"""The mutants of every operation, for `mutation.killed`."""

from collections.abc import Mapping

from zonos2_triton.bench.proof.mutants.attention import ATTENTION
from zonos2_triton.bench.proof.mutants.backbone import BACKBONE
from zonos2_triton.bench.proof.mutants.vocoder import VOCODER
from zonos2_triton.bench.proof.mutation import Fault

FAULTS: Mapping[str, tuple[Fault, ...]] = {**BACKBONE, **ATTENTION, **VOCODER}
