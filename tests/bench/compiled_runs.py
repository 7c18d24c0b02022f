"""Runs compiled kernels on the PTX machine, in a process that compiles; a script for `test_compiled`.

Each argument is a task as JSON, [kernel, workload, sizes, dtype, target, check, fault]. The sizes replace some of the
workload's. The check is "exact" or the name of another invariant; the fault is one of MISTAKES, or null. A line of JSON
comes back for each: null, or the error.
"""

import json
import re
import sys
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import patch

import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.compiler.ptx import launch
from zonos2_triton.bench.compiler.ptx.parse import parse
from zonos2_triton.bench.proof import invariants
from zonos2_triton.bench.proof.verify import Case

# What is replaced in the PTX, by a pattern of its text; every place that matches.
MISTAKES = {
    "a stage less is waited for": (r"cp\.async\.wait_group \t?(\d+)", lambda m: f"cp.async.wait_group {int(m[1]) + 1}"),
    "no wait": (r"cp\.async\.wait_group[^;]*;", ""),
    "no barrier": (r"bar\.sync[^;]*;", ""),
    "another lane": (r"(shfl\.sync\.bfly\.b32[^,]*,[^,]*,\s*)16,", r"\g<1>8,"),
    "swapped registers": (r"(mma\.sync[^{]*\{[^}]*\}, \{ ?%r\d+, )(%r\d+), (%r\d+)", r"\1\3, \2"),
    "cut off": (r"cvt\.rn\.(bf16|f16)(x2)?\.f32", r"cvt.rz.\1\2.f32"),
}


def broken(fault):
    """`launch.read_kernel` with a fault in the text."""
    pattern, replacement = MISTAKES[fault]

    def read(kernel):
        text, places = re.subn(pattern, replacement, kernel.asm["ptx"])
        assert places, f"{kernel.metadata.name} has no place for {fault!r}"
        return parse(text, kernel.metadata.name), kernel.metadata.shared

    return patch.object(launch, "read_kernel", read)


def run(kernel, workload, sizes, dtype, target, check, fault):
    spec = KERNELS[kernel]
    found = next(w for w in spec.workloads if w.name == workload)
    case = Case(spec, replace(found, sizes=found.sizes | sizes), dtype=getattr(torch, dtype))

    def op(**inputs):
        with launch.on_cpu(target), broken(fault) if fault else nullcontext():
            return spec.op(**inputs)

    try:
        getattr(invariants, check)(case, op)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    # The checks of the interpreter are not those of the machine.
    invariants.run = lambda case, op=None, sequence=None, **more: case.run(op, **more)
    for task in sys.argv[1:]:
        print(json.dumps(run(*json.loads(task))), flush=True)
