"""The rules of dependent launch (`kernels/_dependent_launch.py`), held by the compiled code.

Every path waits once. Ahead of the wait there is no trigger, no store and no atomic. Loads there are from the pointers
that `begin_early_loads` names. The binary has no more of them than the PTX. A kernel is launched as a dependent one if
and only if it waits.
"""

import ast
from collections.abc import Sequence
from typing import Any

from zonos2_triton.bench.compiler.cubin_stats import Stats
from zonos2_triton.bench.compiler.ptx.parse import Address, Function, Instruction, Register, Symbol, parse
from zonos2_triton.kernels._dependent_launch import begin_early_loads

ENDS = frozenset(["ret", "exit", "trap", "brx"])
LOADS = frozenset(["ld", "ldu", "cp"])
WRITES = frozenset(["st", "atom", "red", "multimem"])
GROUPS = frozenset(["commit_group", "wait_group", "wait_all"])  # of cp.async
NOT_GLOBAL = GROUPS | {"param", "shared", "shared::cta", "const", "local", "prefetch"}


def violations(kernel: Any, stats: Stats) -> list[str]:
    """The rules that a compiled kernel breaks, in words."""
    ptx = kernel.asm.get("ptx", "")
    dependent = bool(getattr(kernel.metadata, "launch_pdl", False))
    if not dependent and "griddepcontrol" not in ptx:
        return []
    function = parse(ptx)
    body = function.instructions
    waits = [i for i, each in enumerate(body) if each.name == "griddepcontrol" and each.has("wait")]
    if not dependent:
        return ["it waits for the previous launch, but has no launch_pdl"]
    if len(waits) != 1:
        return [f"launch_pdl, and {len(waits)} waits for the previous launch; there must be one"]
    [wait] = waits
    ahead = body[:wait]
    wrong = list(_paths(body, wait))
    if trigger := next((each for each in ahead if each.has("launch_dependents")), None):
        wrong.append(f"the next launch may start ahead of the wait for the previous one: {trigger.where()}")
    if write := next(
        (each for each in ahead if each.name in WRITES and not NOT_GLOBAL.intersection(each.opcode)), None
    ):
        wrong.append(f"ahead of the wait for the previous launch: {write.where()}")
    loads = [each for each in ahead if _is_global(each, LOADS)]
    early = _early(kernel.src.fn)
    names = _pointers(function, kernel.src)
    for load in loads:
        found = {names[each] for each in _parameters(load, body) if each in names}
        if not found or found - early:
            listed = ", ".join(sorted(found - early)) or "no argument that can be told"
            wrong.append(f"ahead of the wait for the previous launch, and no early load, from {listed}: {load.where()}")
            break
    if not wrong:
        wrong += _binary(stats, len(loads))
    return wrong


def _paths(body: Sequence[Instruction], wait: int) -> list[str]:
    """Why the wait may run never, or twice. Branches ahead of it go forward, and no further than to it."""
    wrong = []
    for i, each in enumerate(body):
        if (i < wait and (each.name in ENDS or each.target > wait)) or (i == wait and each.guard):
            return [f"not every path waits for the previous launch: {each.where()} comes first"]
        if each.name == "bra" and each.target <= wait <= i:
            wrong = [f"it may wait for the previous launch more than once: {each.where()} goes back"]
    return wrong


def _is_global(each: Instruction, names: frozenset[str]) -> bool:
    return each.name in names and not NOT_GLOBAL.intersection(each.opcode)


def _early(function: Any) -> set[str]:
    """The pointers that the kernel declares for early loads."""
    found = set()
    for node in ast.walk(function.parse()):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == begin_early_loads.fn.__name__:
            found |= set(ast.literal_eval(node.args[1]).split())
    return found


def _pointers(function: Function, source: Any) -> dict[str, str]:
    """Names of the kernel's pointers by those of PTX, which has no constants."""
    given = [name for name, kind in source.signature.items() if kind != "constexpr"]
    return {param.name: name for param, name in zip(function.params, given, strict=False) if param.pointer}


def _parameters(load: Instruction, body: Sequence[Instruction]) -> set[str]:
    """The kernel's parameters that the address of a load comes from. Loaded numbers are offsets."""
    addresses = [part for part in load.sources if isinstance(part, Address)]
    waiting = [addresses[load.name == "cp"].base]  # a copy has that in shared memory first
    seen, found = set(waiting), set()
    while waiting:
        register = waiting.pop()
        for each in body:
            if register not in each.writes:
                continue
            if each.name == "ld" and each.has("param"):
                bases = [part.base for part in each.sources if isinstance(part, Address)]
                found |= {base.name for base in bases if isinstance(base, Symbol)}
            elif each.name != "ld" and register.type == "b64":
                more = {part for part in each.sources if isinstance(part, Register) and part.type == "b64"} - seen
                waiting += more
                seen |= more
    return found


def _binary(stats: Stats, loads: int) -> list[str]:
    is_load = {opcode: opcode.split(".")[0] in ("LDG", "LD", "LDGSTS") for opcode in stats.early}
    listed = ", ".join(f"{n} {opcode}" for opcode, n in stats.early.items() if not is_load[opcode])
    if not listed and sum(stats.early.values()) > loads:
        listed = ", ".join(f"{n} {opcode}" for opcode, n in stats.early.items())
    return [f"the binary has accesses ahead of the wait for the previous launch: {listed}"] if listed else []
