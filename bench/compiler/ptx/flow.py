"""Control and data flow of a function, without running it: blocks, liveness, what control rests on, exposed loads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from zonos2_triton.bench.compiler.ptx.counts import SPACES, classify
from zonos2_triton.bench.compiler.ptx.parse import Address, Function, Instruction, Register, Symbol

_INTEGERS = tuple(kind + bits for kind in "us" for bits in ("8", "16", "32", "64"))
_ENDS = ("bra", "ret", "exit", "trap")


def space(instruction: Instruction) -> str:
    """The state space of a memory instruction: param, shared, global, ..., or generic."""
    return next((part.split("::")[0] for part in instruction.opcode[1:] if part.split("::")[0] in SPACES), "generic")


def is_barrier(instruction: Instruction) -> bool:
    """Whether it waits for other warps."""
    return instruction.name in ("bar", "barrier") and not instruction.has("warp")


def waits_for_launch(instruction: Instruction) -> bool:
    """Whether it waits until the launch before has ended."""
    return instruction.name == "griddepcontrol" and instruction.has("wait")


@dataclass(frozen=True)
class Block:
    """Instructions first..last - 1, entered at the first and left after the last."""

    first: int
    last: int
    successors: tuple[int, ...]  # first instructions of blocks


def blocks(function: Function) -> dict[int, Block]:
    """The blocks by their first instruction. Barriers and the wait for the launch before end one."""
    code = function.instructions
    leaders = {0, len(code)} | {each.target for each in code if each.name == "bra"}
    leaders |= {
        i + 1 for i, each in enumerate(code) if each.name in _ENDS or is_barrier(each) or waits_for_launch(each)
    }
    order = sorted(leaders)
    found = {}
    for first, last in pairwise(order):
        end = code[last - 1]
        following = set()
        if end.name == "bra":
            following.add(end.target)
        if end.name not in _ENDS or end.guard is not None:
            following.add(last)
        found[first] = Block(first, last, tuple(sorted(following)))
    return found


def deaths(function: Function, by_first: dict[int, Block]) -> list[tuple[str, ...]]:
    """By instruction: the registers that it reads and that no later one reads."""
    code = function.instructions
    number = {name: i for i, name in enumerate(function.registers)}
    names = list(function.registers)

    def bits(registers: Sequence[Register]) -> int:
        found = 0
        for register in registers:
            found |= 1 << number[register.name]
        return found

    reads = [bits(each.reads) for each in code]
    writes = [0 if each.guard else bits(each.writes) for each in code]
    entering = dict.fromkeys([*by_first, len(code)], 0)
    changed = True
    leaving: dict[int, int] = {}
    order = sorted(by_first, reverse=True)
    while changed:
        changed = False
        for first in order:
            block = by_first[first]
            live = 0
            for after in block.successors:
                live |= entering[after]
            leaving[first] = live
            for i in range(block.last - 1, block.first - 1, -1):
                live = live & ~writes[i] | reads[i]
            if live != entering[first]:
                entering[first], changed = live, True
    found: list[tuple[str, ...]] = [()] * len(code)
    for first in order:
        live = leaving[first]
        for i in range(by_first[first].last - 1, first - 1, -1):
            dead = (reads[i] | bits(code[i].writes)) & ~live
            if dead:
                found[i] = tuple(names[bit] for bit in _set_bits(dead))
            live = live & ~writes[i] | reads[i]
    return found


def _set_bits(number: int) -> list[int]:
    found = []
    while number:
        low = number & -number
        found.append(low.bit_length() - 1)
        number ^= low
    return found


def needed(function: Function, holds_integers: Callable[[str], bool]) -> set[str]:
    """The registers that addresses, predicates and integers in memory rest on.

    holds_integers: by name of a pointer parameter, whether its tensor does. What is stored into other tensors, and the
    results of floating-point instructions that are stored into shared memory, count as zero.
    """
    code, origin, floats = function.instructions, _origins(function), _floats(function)
    makers: dict[str, list[Instruction]] = {}
    for each in code:
        for register in each.writes:
            makers.setdefault(register.name, []).append(each)
    wanted: set[str] = set()
    waiting: list[str] = []

    def want(registers: Sequence[Register]) -> None:
        for register in registers:
            if register.name not in wanted:
                wanted.add(register.name)
                waiting.append(register.name)

    def through_shared() -> None:
        for each in code:
            if each.name in ("st", "stmatrix") and space(each) == "shared":
                want([register for register in each.reads if register.name not in floats])

    for each in code:
        bases = [part.base for part in each.sources if isinstance(part, Address) and isinstance(part.base, Register)]
        bases += [each.guard] if each.guard else []
        if each.name in ("ld", "st", "ldmatrix", "stmatrix", "bra", "ret", "exit"):
            want(bases)
        if each.name in ("cp", "mbarrier", "bar", "barrier", "red", "atom"):
            want(each.reads)
        if each.name == "st" and space(each) != "shared":
            reached = {name for base in bases for name in origin.get(base.name, ())}
            if any(holds_integers(name) for name in reached):
                want(each.reads)
    shared_is_read = False
    while waiting:
        for each in makers.get(waiting.pop(), ()):
            want(each.reads)
            if not shared_is_read and each.name in ("ld", "ldmatrix") and space(each) == "shared":
                shared_is_read = True
                through_shared()
    return wanted


def _floats(function: Function) -> set[str]:
    """The registers that hold results of floating-point instructions, or copies of them."""
    found: set[str] = set()
    before = -1
    while before != (before := len(found)):
        for each in function.instructions:
            kind = classify(each)
            is_copy = each.name in ("mov", "selp", "shfl", "prmt", "movmatrix")
            if kind in ("float", "special", "matrix") and each.name != "setp":
                is_float = each.name != "cvt" or each.opcode[-2] not in _INTEGERS
            else:
                is_float = is_copy and any(register.name in found for register in each.reads)
            if is_float:
                found.update(register.name for register in each.writes if register.type != "pred")
    return found


def _origins(function: Function) -> dict[str, frozenset[str]]:
    """By register: the pointer parameters that it is computed from, without what memory holds."""
    pointers = {param.name for param in function.params if param.size == 8}
    found: dict[str, frozenset[str]] = {}
    changed = True
    while changed:
        changed = False
        for each in function.instructions:
            reached: set[str] = set()
            for part in each.sources:
                if isinstance(part, Address) and (each.name != "ld" or space(each) != "param"):
                    continue
                base = part.base if isinstance(part, Address) else part
                if isinstance(base, Register):
                    reached |= found.get(base.name, frozenset())
                if isinstance(base, Symbol) and base.name in pointers:
                    reached.add(base.name)
            for register in each.writes:
                if reached - found.get(register.name, frozenset()):
                    found[register.name] = found.get(register.name, frozenset()) | reached
                    changed = True
    return found


def exposed_loads(function: Function) -> list[int]:
    """Global loads in a loop whose value the same iteration uses: its latency is waited for in every iteration.

    A value that is only moved into the next iteration is not used. Blocks lie in order, as LLVM lays them out.
    """
    code = function.instructions
    loops = [(each.target, i) for i, each in enumerate(code) if each.name == "bra" and each.target <= i]
    found = []
    for i, each in enumerate(code):
        if each.name != "ld" or space(each) not in ("global", "generic"):
            continue
        inside = [(first, last) for first, last in loops if first <= i <= last]
        if inside and _is_used(code, i, min(last - first for first, last in inside), inside):
            found.append(i)
    return found


def _is_used(code: Sequence[Instruction], load: int, shortest: int, loops: Sequence[tuple[int, int]]) -> bool:
    last = next(last for first, last in loops if last - first == shortest)
    values = {register.name for register in code[load].writes}
    for each in code[load + 1 : last + 1]:
        if any(register.name in values for register in each.reads):
            if each.name != "mov":
                return True
            values.update(register.name for register in each.writes)
        elif not each.guard:
            values.difference_update(register.name for register in each.writes)
    return False
