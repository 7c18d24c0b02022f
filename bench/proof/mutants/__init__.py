"""The mutants of every operation, for `mutation.killed`."""

from collections.abc import Mapping
from dataclasses import replace

from zonos2_triton.bench.proof.mutants.attention import ATTENTION
from zonos2_triton.bench.proof.mutants.backbone import BACKBONE
from zonos2_triton.bench.proof.mutants.vocoder import VOCODER
from zonos2_triton.bench.proof.mutation import Mutant

MUTANTS: Mapping[str, tuple[Mutant, ...]] = {**BACKBONE, **ATTENTION, **VOCODER}


def distinct() -> set[Mutant]:
    """Those of code that kernels share stand in each of them; here each is once, by its file and its texts."""
    return {replace(fault, name="") for mutants in MUTANTS.values() for fault in mutants}
