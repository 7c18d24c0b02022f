"""Counts of one launch: what its programs executed, moved and waited for."""

from collections.abc import Mapping
from dataclasses import dataclass

from zonos2_triton.bench.compiler.ptx.parse import Instruction

CLASSES = (
    "int",
    "float",
    "special",
    "matrix",
    "shared_load",
    "shared_store",
    "ldmatrix",
    "global_load",
    "global_store",
    "cp_async",
    "atomic",
    "shuffle",
    "barrier",
    "branch",
    "other",
)
"""Classes of instructions. "special": the unit for ex2, rsqrt, division. "other", such as mov, is mostly free."""

TRAFFIC = (
    "wavefronts",
    "ideal_wavefronts",
    "load_sectors",
    "load_requests",
    "load_bytes",
    "store_sectors",
    "store_requests",
    "store_bytes",
    "async_sectors",
    "async_requests",
    "async_bytes",
)
"""Memory traffic of a program. Sectors are 32 bytes of global memory, requests are those of warps."""

AFTER_WAIT = ("cycles", "instructions", "longest_warp", "wavefronts", "ideal_wavefronts", "loaded_sectors")
"""Counts of a program that are kept apart for what comes after its wait for the launch before. Sectors are
those of loads and of copies; instructions leave "other" out."""

LATENCY = {
    "int": 5,
    "float": 5,
    "special": 20,
    "matrix": 33,
    "wgmma": 64,
    "shared_load": 30,
    "shared_store": 20,
    "ldmatrix": 33,
    "global": 700,
    "atomic": 900,
    "shuffle": 25,
    "barrier": 25,
    "branch": 12,
    "other": 2,
}
"""Cycles from the issue of an instruction to its result, on sm_90, rounded: published microbenchmarks of Ampere and
Hopper (Abdelkhalik et al. 2022, Luo et al. 2024). Those of "global" and "atomic" are for DRAM and a far L2."""

_SPECIAL = frozenset(["ex2", "lg2", "rcp", "rsqrt", "sqrt", "sin", "cos", "tanh", "div"])
_SHUFFLE = frozenset(["shfl", "redux", "vote", "match", "elect", "activemask"])
_OTHER = frozenset(
    ["mov", "cvta", "fence", "membar", "prefetch", "discard", "griddepcontrol", "nanosleep", "setmaxnreg", "mbarrier"]
)
_FLOATS = frozenset(["f16", "bf16", "f32", "f64", "f16x2", "bf16x2", "f32x2", "tf32", "e4m3x2", "e5m2x2"])


def classify(instruction: Instruction) -> str:
    """The class of an instruction, of CLASSES."""
    name, opcode = instruction.name, instruction.opcode
    if name in ("mma", "wgmma", "tcgen05"):
        return "matrix" if instruction.has("mma_async", "mma") or name == "mma" else "other"
    if name in ("ldmatrix", "stmatrix"):
        return "ldmatrix" if name == "ldmatrix" else "shared_store"
    if name in ("ld", "st"):
        space = next((part.split("::")[0] for part in opcode[1:] if part.split("::")[0] in SPACES), "generic")
        if space in ("param", "const"):
            return "other"
        return f"{'shared' if space == 'shared' else 'global'}_{'load' if name == 'ld' else 'store'}"
    if name == "cp":
        return "cp_async" if instruction.has("shared", "shared::cta", "shared::cluster") else "other"
    if name in ("atom", "red"):
        return "atomic"
    if name in _SHUFFLE:
        return "shuffle"
    if name in ("bar", "barrier"):
        return "other" if instruction.has("warp") else "barrier"
    if name in ("bra", "ret", "exit"):
        return "branch"
    if name in _SPECIAL and not (name == "div" and opcode[-1][0] in "su"):
        return "special"
    if name in _OTHER:
        return "other"
    return "float" if _FLOATS.intersection(opcode) else "int"


SPACES = ("param", "shared", "global", "local", "const")


@dataclass(frozen=True)
class Access:
    """One instruction that accesses memory, over all programs that ran."""

    text: str
    source: str
    executions: int  # by warps
    transactions: int  # wavefronts of shared memory, or sectors of global memory
    ideal: int  # wavefronts without conflicts

    @property
    def ways(self) -> float:
        """Wavefronts for each that would do; 1 is free of conflicts."""
        return self.transactions / self.ideal if self.ideal else 1.0


@dataclass(frozen=True)
class Counts:
    """Counts of one launch. Tuples by program hold those of the programs that ran, in order of the grid, x fastest."""

    kernel: str
    target: str
    grid: tuple[int, ...]
    programs: int  # of the grid
    ran: tuple[int, ...]  # those that the machine ran; the others are like them
    threads: int  # of a program
    live: tuple[bool, ...]  # by program: it writes to global memory
    instructions: Mapping[str, tuple[int, ...]]  # of warps, by class, by program
    longest_warp: tuple[int, ...]  # by program: instructions of the warp that has the most
    longest_warp_matrix: tuple[int, ...]  # matrix instructions of that warp
    traffic: Mapping[str, tuple[int, ...]]  # by kind, by program
    round_trips: tuple[int, ...]  # by program: the longest chain of dependent global accesses
    cycles: tuple[int, ...]  # by program: the longest chain of dependent instructions, by LATENCY
    until_wait: tuple[int, ...]  # by program: clocks until it has waited and its loads from before have arrived, or 0
    after_wait: Mapping[str, tuple[int, ...]]  # by program, of AFTER_WAIT; without a wait all
    bytes_under_way: int  # the most that cp.async of one program has under way
    conflicts: tuple[Access, ...] = ()  # instructions with bank conflicts, worst first
    exposed_loads: tuple[Access, ...] = ()  # global loads in a loop that are used in the iteration that issues them

    def total(self, kind: str) -> float:
        """The sum of a class of instructions or a kind of traffic over the grid, from the programs that ran."""
        numbers = self.instructions.get(kind) or self.traffic[kind]
        return sum(numbers) * self.programs / len(self.ran)

    def worst(self, kind: str) -> int:
        """The most that one program has."""
        return max(self.instructions.get(kind) or self.traffic[kind])

    @property
    def whole(self) -> dict[str, tuple[int, ...]]:
        """By program: what `after_wait` counts, of whole programs."""
        issued = [numbers for kind, numbers in self.instructions.items() if kind != "other"]  # moves are free
        loaded = [self.traffic["load_sectors"], self.traffic["async_sectors"]]
        return {
            "cycles": self.cycles,
            "instructions": tuple(map(sum, zip(*issued, strict=True))),
            "longest_warp": self.longest_warp,
            "wavefronts": self.traffic["wavefronts"],
            "ideal_wavefronts": self.traffic["ideal_wavefronts"],
            "loaded_sectors": tuple(map(sum, zip(*loaded, strict=True))),
        }

    def early(self, kind: str) -> tuple[int, ...]:
        """By program: what comes ahead of the wait."""
        return tuple(all_of - after for all_of, after in zip(self.whole[kind], self.after_wait[kind], strict=True))

    @property
    def live_programs(self) -> int:
        return round(sum(self.live) * self.programs / len(self.ran))

    @property
    def ways(self) -> float:
        """The worst conflict: wavefronts of one instruction for each that would do."""
        return max((access.ways for access in self.conflicts), default=1.0)
