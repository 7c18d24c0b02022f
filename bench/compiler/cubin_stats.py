"""Counts read from a kernel's binary, and the limits of the architectures.

An NVIDIA binary has no entry for spills. They show as a stack frame and as local loads and stores. Local arrays cause
these too; neither belongs into a kernel of this project.
"""

import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

KIB = 1024


@dataclass(frozen=True)
class Target:
    """An architecture: its name for the compiler, and what one multiprocessor (NVIDIA) or compute unit (AMD) has."""

    backend: str
    arch: int | str
    warp_size: int
    shared: int  # bytes that one block may have
    warps: int
    blocks: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163 * KIB, 64, 32),
    "sm_86": Target("cuda", 86, 32, 99 * KIB, 48, 16),
    "sm_89": Target("cuda", 89, 32, 99 * KIB, 48, 24),
    "sm_90": Target("cuda", 90, 32, 227 * KIB, 64, 32),
    "sm_100": Target("cuda", 100, 32, 227 * KIB, 64, 32),
    "sm_120": Target("cuda", 120, 32, 99 * KIB, 48, 24),
    "gfx942": Target("hip", "gfx942", 64, 64 * KIB, 32, 32),
}
TENSOR_MEMORY = 512  # columns, on the architectures that have it
RESERVED_SHARED = KIB  # what the system takes of each block's shared memory, beyond `Target.shared`


@dataclass(frozen=True)
class Stats:
    """One binary. Instruction counts are static: of the code, not of a run."""

    registers: int  # per thread
    stack: int  # bytes per thread
    spills: int  # local loads and stores; on AMD also the spilled vector registers that the compiler reports
    shared: int  # bytes per block, what the launch asks for and what the binary declares
    warps: int
    blocks: int  # that fit into one multiprocessor at a time
    occupancy: float  # share of its warps
    instructions: int  # without padding
    tensor_memory: int = 0  # columns
    accumulators: int = 0  # AMD: accumulation registers, part of `registers`
    scalar_registers: int = 0  # AMD: per warp
    loads: Mapping[str, int] = field(default_factory=dict)  # of global memory; bytes: "16", "2", "async 16", or "tma"
    matrix: Mapping[str, int] = field(default_factory=dict)  # by family: HMMA, HGMMA, UTCHMMA, mfma
    barriers: int = 0
    traps: int = 0
    early: Mapping[str, int] = field(default_factory=dict)  # accesses ahead of a dependent launch's wait
    sums: tuple[str, ...] = ()  # in which order floats are added: see `sums`

    @property
    def wide(self) -> int:
        """Loads of 16 bytes a thread or more, tiles fetched by TMA among them."""
        return sum(n for kind, n in self.loads.items() if kind.split()[-1] in ("tma", "16", "32"))

    @property
    def narrow(self) -> int:
        return sum(self.loads.values()) - self.wide


def statistics(kernel: Any, target: Target) -> Stats:
    """The counts of a kernel that Triton compiled for `target`."""
    counted = _nvidia(kernel, target) if target.backend == "cuda" else _amd(kernel, target)
    return replace(counted, sums=sums(kernel.asm.get("ttgir", "")))


def sums(ttgir: str) -> tuple[str, ...]:
    """Everything that decides the order in which a kernel adds floats. Two kernels that agree here round sums alike.

    For a reduction: the layout of its axis over registers, lanes and warps; an axis of two has one order. For a matrix
    product: the instruction, the length of the summed axis that a step takes, and its slices. The width of a tile
    across that axis has no effect.
    """
    layouts = dict(re.findall(r"^(#\w+) = #ttg\.(.*)$", ttgir, re.MULTILINE))
    within = r'(?:(?!"tt\.reduce").)*?'  # of one reduction: others may be of another type
    found, reduce = [], rf'"tt\.reduce"\({within}<\{{axis = (\d+){within}\) : \(tensor<([\dx]+)xf32, (.*?)>\) ->'
    for axis, shape, layout in re.findall(reduce, ttgir, re.DOTALL):
        text, i = layouts.get(layout, layout), int(axis)
        if shape.split("x")[i] == "2":
            continue
        parts = re.findall(r"(sizePerThread|threadsPerWarp|warpsPerCTA) = \[([\d, ]+)\]", text)
        along = " ".join(f"{name} {sizes.split(', ')[i]}" for name, sizes in parts) if "blocked" in text else text
        found.append(f"reduce {shape.split('x')[i]}: {along}")
    product = r"(tt\.dot|ttng\.warp_group_dot|ttng\.tc_gen5_mma) .*?(?:tensor|memdesc)<((?:\d+x)+)"
    for op, dims, layout in re.findall(product + r"(?:.*-> tensor<.*, (#\w+)>)?", ttgir):
        *slices, _, steps = dims[:-1].split("x")
        text = layouts.get(layout, layout)
        shape = re.search(r"instrShape = \[([\d, ]+)\]", text)
        sizes = shape[1].split(", ") if shape else []
        version = re.search(r"(version\w* = \d+)", text)
        # The last of three sizes is along K; where a product has slices, NVIDIA's are slices, M and N.
        depth = "x".join(sizes) if "mfma" in text else sizes[2] if len(sizes) > 2 and not slices else "all"
        step = f"in {slices[0]} slices" if slices else f"by {steps}"  # a slice adds in one order at any step
        found.append(f"product {step}: {op} {text.split('<')[0]} {version[1] if version else ''} of {depth}")
    return tuple(sorted(set(found)))


def _nvidia(kernel: Any, target: Target) -> Stats:
    usage, opcodes, early = _disassembled(kernel)
    warps, registers = kernel.metadata.num_warps, usage["REG"]
    shared = kernel.metadata.shared + max(0, usage["SHARED"] - RESERVED_SHARED * (int(target.arch) >= 90))
    blocks = _blocks(target, registers, shared, warps)
    loads, matrix = Counter[str](), Counter[str]()
    for opcode, n in opcodes.items():
        family = opcode.split(".")[0]
        if family in ("LDG", "LD"):
            loads[_load_bytes(opcode)] += n
        elif family == "LDGSTS":
            loads[f"async {_load_bytes(opcode)}"] += n
        elif family in ("UTMALDG", "UBLKCP"):
            loads["tma"] += n
        elif re.fullmatch(r"[A-Z]G?MMA|UTC[A-Z]+MMA", family):
            matrix[family] += n
    return Stats(
        registers=registers,
        stack=usage["STACK"],
        spills=_count(opcodes, "LDL", "STL"),
        shared=shared,
        warps=warps,
        blocks=blocks,
        occupancy=blocks * warps / target.warps,
        instructions=opcodes.total() - opcodes["NOP"],
        tensor_memory=kernel.metadata.tmem_size or 0,
        loads=dict(loads),
        matrix=dict(matrix),
        barriers=_count(opcodes, "BAR"),
        traps=opcodes["BPT.TRAP"],
        early=early,
    )


GLOBAL_ACCESS = re.compile(r"(LDG|STG|LD|ST|ATOM|ATOMG|RED|REDG|LDGSTS|UTMALDG|UTMASTG|UBLKCP)(\.|$)")


def _disassembled(kernel: Any) -> tuple[dict[str, int], Counter[str], dict[str, int]]:
    """Resource usage, opcodes, and accesses ahead of the last wait of a dependent launch.

    They are kept in Triton's cache beside the binary, for cuobjdump takes half a second.
    """
    from triton import knobs
    from triton.runtime.cache import get_cache_manager

    cache, name = get_cache_manager(kernel.hash), "disassembled.json"
    if known := cache.get_file(name):
        usage, opcodes, early = json.loads(Path(known).read_text(encoding="utf-8"))
        return usage, Counter(opcodes), early
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {key: int(n) for key, n in re.findall(r"\b(REG|STACK|SHARED):(\d+)", text)}
    listed = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", text, re.MULTILINE)
    wait = max((i for i, opcode in enumerate(listed) if opcode == "ACQBULK"), default=0)
    opcodes, early = Counter(listed), dict(Counter(filter(GLOBAL_ACCESS.match, listed[:wait])))
    cache.put(json.dumps([usage, opcodes, early]), name, binary=False)
    return usage, opcodes, early


def _blocks(target: Target, registers: int, shared: int, warps: int) -> int:
    """NVIDIA's occupancy rule: 4 partitions of 16384 registers, given to warps in units of 256."""
    per_warp = -(-max(registers, 1) * 32 // 256) * 256
    by_registers = 16384 // per_warp * 4 // warps
    by_shared = (target.shared + RESERVED_SHARED) // (shared + RESERVED_SHARED)
    return min(by_registers, by_shared, target.warps // warps, target.blocks)


def _load_bytes(opcode: str) -> str:
    widths = {"U8": "1", "S8": "1", "U16": "2", "S16": "2", "64": "8", "128": "16", "256": "32"}
    return next((widths[part] for part in opcode.split(".") if part in widths), "4")


def _amd(kernel: Any, target: Target) -> Stats:
    text = kernel.asm["amdgcn"]
    opcodes = Counter(re.findall(r"^\s+((?:s|v|ds|buffer|global|flat|scratch)_\w+)", text, re.MULTILINE))

    def recorded(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        return int(found[1]) if found else 0

    loads, matrix = Counter[str](), Counter[str]()
    for opcode, n in opcodes.items():
        if kind := re.match(r"(?:global|buffer|flat)_load_(?:lds_)?(\w+)", opcode):
            loads[_amd_load_bytes(kind[1])] += n
        elif family := re.match(r"v_(mfma|smfmac|wmma|swmmac)_", opcode):
            matrix[family[1]] += n
    warps, shared = kernel.metadata.num_warps, kernel.metadata.shared
    per_simd = re.search(r"; Occupancy: (\d+)", text)  # by registers: the compiler does not know the shared memory
    by_registers = (int(per_simd[1]) if per_simd else 0) * 4 // warps
    blocks = min(by_registers, target.shared // max(shared, 1), target.blocks)
    return Stats(
        registers=recorded("vgpr_count"),
        stack=recorded("private_segment_fixed_size"),
        spills=recorded("vgpr_spill_count") + _count(opcodes, "scratch_load", "scratch_store"),
        shared=shared,
        warps=warps,
        blocks=blocks,
        occupancy=blocks * warps / target.warps,
        instructions=opcodes.total() - opcodes["s_nop"],
        accumulators=recorded("agpr_count"),
        scalar_registers=recorded("sgpr_count"),
        loads=dict(loads),
        matrix=dict(matrix),
        barriers=_count(opcodes, "s_barrier"),
        traps=opcodes["s_trap"],
    )


def _amd_load_bytes(kind: str) -> str:
    widths = {"dwordx4": "16", "b128": "16", "dwordx3": "12", "b96": "12", "dwordx2": "8", "b64": "8"}
    widths |= {"dword": "4", "b32": "4", "ubyte": "1", "sbyte": "1", "u8": "1", "i8": "1"}
    return next((n for prefix, n in widths.items() if kind.startswith(prefix)), "2")  # ushort, short_d16, ...


def _count(opcodes: Counter[str], *families: str) -> int:
    return sum(n for opcode, n in opcodes.items() if opcode.split(".")[0].startswith(families))
