"""The rules of dependent launch (`kernels/_dependent_launch.py`), held by the compiled code.

The wait stands in the entry block, so that every path waits once. Ahead of it there is no access to global memory, in
the PTX and in the binary. A kernel is launched as a dependent one if and only if it waits.
"""

from typing import Any

from zonos2_triton.bench.compiler.cubin_stats import Stats
from zonos2_triton.bench.compiler.ptx.parse import Instruction, parse

ENDS_BLOCK = frozenset(["bra", "brx", "ret", "exit", "trap"])
ACCESSES = frozenset(["ld", "ldu", "st", "atom", "red", "cp", "multimem"])
NOT_GLOBAL = frozenset(["param", "shared", "shared::cta", "const", "local", "prefetch"])


def violations(kernel: Any, stats: Stats) -> list[str]:
    """The rules that a compiled kernel breaks, in words."""
    ptx = kernel.asm.get("ptx", "")
    dependent = bool(getattr(kernel.metadata, "launch_pdl", False))
    if not dependent and "griddepcontrol" not in ptx:
        return []
    body = parse(ptx).instructions
    waits = [i for i, each in enumerate(body) if each.name == "griddepcontrol" and each.has("wait")]
    if not dependent:
        return ["it waits for the previous launch, but has no launch_pdl"]
    if len(waits) != 1:
        return [f"launch_pdl, and {len(waits)} waits for the previous launch; there must be one"]
    [wait] = waits
    wrong = []
    ahead = body[: wait + 1]
    if branch := next((each for each in ahead if each.name in ENDS_BLOCK or (each is body[wait] and each.guard)), None):
        wrong.append(f"not every path waits for the previous launch: {branch.where()} comes first")
    elif again := next((each for each in body if 0 <= each.target <= wait), None):
        wrong.append(f"it may wait for the previous launch more than once: {again.where()} goes back")
    if access := next(filter(_is_access, ahead), None):
        wrong.append(f"ahead of the wait for the previous launch: {access.where()}")
    if stats.early and not wrong:
        listed = ", ".join(f"{n} {opcode}" for opcode, n in stats.early.items())
        wrong.append(f"the binary has accesses ahead of the wait for the previous launch: {listed}")
    return wrong


def _is_access(each: Instruction) -> bool:
    return each.name in ACCESSES and not NOT_GLOBAL.intersection(each.opcode)
