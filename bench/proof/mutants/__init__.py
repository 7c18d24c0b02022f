"""The mutants of every operator, for `mutation.killed`."""

from collections.abc import Mapping
from dataclasses import replace

from zonos2_triton.bench.proof.mutants.attention import ATTENTION
from zonos2_triton.bench.proof.mutants.backbone import BACKBONE
from zonos2_triton.bench.proof.mutants.vocoder import VOCODER
from zonos2_triton.bench.proof.mutation import Mutant

MUTANTS: Mapping[str, tuple[Mutant, ...]] = {**BACKBONE, **ATTENTION, **VOCODER}


def distinct() -> set[Mutant]:
    """Each mutant once: several operators list those of the code that they share."""
    return {replace(mutant, name="") for mutants in MUTANTS.values() for mutant in mutants}
