"""PTX text as instructions: operands parsed once, labels resolved, each with the source line that it came from."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property


class PtxError(ValueError):
    """The machine cannot go on; the message names the kernel, the instruction and its PTX line."""


class UnknownInstruction(PtxError):
    """An instruction, or a form of one, that the machine does not know."""


@dataclass(frozen=True, slots=True)
class Register:
    """A virtual register. Types: pred, b16, b32, b64, b128; b8 is kept in b16."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Special:
    """A read-only register, such as %tid.x."""

    name: str


@dataclass(frozen=True, slots=True)
class Immediate:
    """A constant. A float is its bits."""

    value: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """The address of a parameter or of shared memory, or a word that is part of the instruction."""

    name: str


@dataclass(frozen=True, slots=True)
class Address:
    """[base + offset]"""

    base: "Register | Symbol | Immediate"
    offset: int


Scalar = Register | Special | Immediate | Symbol | None
"""None is `_`, a result that is thrown away."""
Operand = Scalar | Address | tuple[Scalar, ...]
"""A tuple is a vector {a, b}, or a pair of results a|b."""

NO_RESULT = (
    "st",
    "red",
    "bar",
    "barrier",
    "bra",
    "ret",
    "exit",
    "cp",
    "fence",
    "membar",
    "stmatrix",
    "prefetch",
    "discard",
    "griddepcontrol",
    "trap",
    "nanosleep",
    "pragma",
    "setmaxnreg",
    "applypriority",
)


@dataclass(frozen=True)
class Instruction:
    """One instruction of a function."""

    opcode: tuple[str, ...]  # ("ld", "global", "v4", "b32")
    operands: tuple[Operand, ...]
    text: str
    line: int  # in the PTX, from 1
    source: str = ""  # "file.py:12", then the lines that inlined it: "_math.py:27 < moe_router.py:164"
    guard: Register | None = None
    negated: bool = False  # runs where the guard is false
    target: int = -1  # branches: index of the instruction that follows the label

    @property
    def name(self) -> str:
        return self.opcode[0]

    @property
    def type(self) -> str:
        """The last part: the type of most instructions, the source type of cvt."""
        return self.opcode[-1]

    def has(self, *parts: str) -> bool:
        """Whether the opcode has one of these parts."""
        return any(part in self.opcode for part in parts)

    @cached_property
    def results(self) -> tuple[Scalar, ...]:
        """The registers that it writes; None where a result is thrown away. wgmma and tcgen05.ld: see `matrix`."""
        if self.name == "mbarrier":
            has_result = self.has("try_wait", "test_wait", "arrive") and not isinstance(self.operands[0], Address)
        elif self.name == "wgmma":
            has_result = self.has("mma_async")
        elif self.name == "tcgen05":
            has_result = self.has("ld")
        else:
            has_result = self.name not in NO_RESULT
        if not has_result or not self.operands:
            return ()
        first = self.operands[0]
        return first if isinstance(first, tuple) else (first,)  # type: ignore[return-value]

    @cached_property
    def sources(self) -> tuple[Scalar | Address, ...]:
        """The operands that it reads, in order, vectors flattened."""
        rest = self.operands[1:] if self.results else self.operands
        return tuple(part for operand in rest for part in (operand if isinstance(operand, tuple) else (operand,)))

    @cached_property
    def reads(self) -> tuple[Register, ...]:
        """The registers that it reads, those of addresses and its guard included."""
        bases = [part.base if isinstance(part, Address) else part for part in self.sources]
        if self.name == "wgmma" and self.results:  # its accumulator is its result
            bases += self.results
        return tuple(part for part in (*bases, self.guard) if isinstance(part, Register))

    @cached_property
    def writes(self) -> tuple[Register, ...]:
        return tuple(part for part in self.results if isinstance(part, Register))

    def where(self) -> str:
        """Text and place, for messages."""
        return f"`{self.text}` (PTX line {self.line}{', ' + self.source if self.source else ''})"


@dataclass(frozen=True)
class Param:
    name: str
    type: str  # u64, u32, f32, ..., or "b8" of an array
    size: int  # bytes
    pointer: bool


@dataclass(frozen=True)
class Function:
    """One kernel of a module."""

    name: str
    target: str  # sm_90a
    params: tuple[Param, ...]
    threads: int
    instructions: tuple[Instruction, ...]
    registers: dict[str, Register] = field(repr=False)
    version: str = ""  # of the PTX ISA


_TYPE = {kind + bits: "b" + bits for kind in "bus" for bits in ("16", "32", "64", "128")}
_TYPE |= {"pred": "pred", "b8": "b16", "u8": "b16", "s8": "b16", "f16": "b16", "bf16": "b16"}
_TYPE |= {"f32": "b32", "f16x2": "b32", "bf16x2": "b32", "f64": "b64"}
_SIZE = {"8": 1, "16": 2, "32": 4, "64": 8}
_SPECIAL = re.compile(
    r"%(n?tid|n?ctaid|cluster_n?ctaid|cluster_n?ctarank|n?clusterid|laneid|n?warpid|n?smid|clock(64)?|globaltimer"
    r"|lanemask_\w+|gridid|dynamic_smem_size|total_smem_size)(_lo|_hi)?(\.[xyz])?$"
)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)\s*((?:\.\w+[^\n{]*\s*)*)\{", re.S)
_PARAM = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(\.ptr\s+)?(?:\.align\s+\d+\s+|\.[a-z]\w*\s+)*([\w$]+)(?:\[(\d+)\])?"
)
_LABEL = re.compile(r"([$\w]+):(?!:)\s*")
_HEXADECIMAL = re.compile("[0-9a-fA-F]+")
_NUMBER = re.compile(r"-?(0[xX][0-9a-fA-F]+U?|\d+U?)$")
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)")
_PLACE = re.compile(r"([\w.<>$-]+):(\d+):\d+")


def parse(text: str, name: str | None = None) -> Function:
    """The kernel of that name, or the first. PtxError: the text has none, or ends within it."""
    versions = re.search(r"^\.version\s+([\d.]+)", text, re.M)
    target = re.search(r"^\.target\s+(\w+)", text, re.M)
    entries = [found for found in _ENTRY.finditer(text) if name in (None, found[1])]
    if target is None or not entries:
        first = text.strip().splitlines()[0][:80] if text.strip() else ""
        raise PtxError(f"this is no PTX with a kernel{' ' + name if name else ''}: it starts with {first!r}")
    entry = entries[0]
    threads = re.search(r"\.(?:req|max)ntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", entry[3])
    if threads is None:
        raise PtxError(f"{entry[1]} has no .reqntid: the number of its threads is not known")
    params = [
        Param(found[3], found[1], int(found[4] or 1) * _SIZE[re.sub(r"\D", "", found[1])], bool(found[2]))
        for found in _PARAM.finditer(entry[2])
    ]
    body = _Body(entry[1], text, entry.end())
    count = 1
    for part in threads.groups():
        count *= int(part or 1)
    version = versions[1] if versions else ""
    return Function(entry[1], target[1], tuple(params), count, body.instructions(), body.registers, version)


class _Body:
    """The statements of a function: scopes, registers and labels."""

    def __init__(self, name: str, text: str, start: int) -> None:
        self.name = name
        self.registers: dict[str, Register] = {}
        self._lines = text[start:].split("\n")
        self._first = text.count("\n", 0, start) + 1
        self._files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"(?:[^"]*/)?([^"/]+)"', text, re.M))
        self._ranges: dict[str, str] = {}  # %r -> b32
        self._scopes: list[dict[str, Register]] = []
        self._operands: dict[str, Operand] = {}
        self._scope_count = 0

    def instructions(self) -> tuple[Instruction, ...]:
        made: list[Instruction] = []
        labels: dict[str, int] = {}
        for kind, words, line, source in self._statements():
            if kind == "label":
                labels[words] = len(made)
            else:
                made.append(self._instruction(words, line, source))
        return tuple(self._linked(each, labels) for each in made)

    def _linked(self, each: Instruction, labels: dict[str, int]) -> Instruction:
        if each.name != "bra":
            return each
        label = each.operands[0]
        if not isinstance(label, Symbol) or label.name not in labels:
            raise PtxError(f"{self.name}: {each.where()} goes to a label that is not there")
        fields = each.opcode, each.operands, each.text, each.line, each.source, each.guard, each.negated
        return Instruction(*fields, labels[label.name])

    def _statements(self) -> Iterator[tuple[str, str, int, str]]:
        """("label" | "instruction", text, line, source), in order, up to the end of the function."""
        depth, pending, source, at = 1, "", "", 0
        for number, raw in enumerate(self._lines, self._first):
            if raw.lstrip().startswith(".loc"):
                source = self._source(raw)
                continue
            line = raw.split("//", 1)[0].strip()
            while line:
                if not pending:
                    at = number
                    if line[0] == "{":
                        depth, line = depth + 1, line[1:].lstrip()
                        self._scopes.append({})
                        self._scope_count += 1
                        continue
                    if line[0] == "}":
                        depth, line = depth - 1, line[1:].lstrip()
                        if not depth:
                            return
                        self._scopes.pop()
                        continue
                    if label := _LABEL.match(line):
                        yield "label", label[1], at, source
                        line = line[label.end() :]
                        continue
                head, semicolon, tail = line.partition(";")
                pending = f"{pending} {head.strip()}".strip()
                if not semicolon:
                    break
                line = tail.lstrip()
                if pending.startswith(".reg"):
                    self._declare(pending)
                elif pending and not pending.startswith("."):
                    yield "instruction", pending, at, source
                pending = ""
        raise PtxError(f"{self.name}: the PTX ends within the function, in {pending[:80]!r}")

    def _source(self, line: str) -> str:
        if places := _PLACE.findall(line.partition("//")[2]):
            return " < ".join(f"{file}:{number}" for file, number in places)
        found = _LOC.search(line)
        return f"{self._files.get(found[1], found[1])}:{found[2]}" if found else ""

    def _declare(self, text: str) -> None:
        words = text.split(None, 2)
        kind = _TYPE.get(words[1].lstrip("."))
        if kind is None:
            raise PtxError(f"{self.name}: registers of type {words[1]} are not known: {text}")
        for name in words[2].split(","):
            name = name.strip()
            if ranged := re.match(r"(%?[\w$]+)<\d+>$", name):
                self._ranges[ranged[1]] = kind
            elif self._scopes:
                unique = f"{name}#{self._scope_count}"
                self._scopes[-1][name] = self.registers[unique] = Register(unique, kind)
            else:
                self.registers[name] = Register(name, kind)

    def _instruction(self, text: str, line: int, source: str) -> Instruction:
        guard, negated, body = None, False, text
        if text.startswith("@"):
            name, _, body = text[1:].partition(" ")
            negated = name.startswith("!")
            found = self._scalar(name.lstrip("!"))
            if not isinstance(found, Register):
                raise PtxError(f"{self.name}: no predicate {name} at PTX line {line}: {text}")
            guard = found
        opcode, _, rest = body.strip().partition(" ")
        opcode, tab, more = opcode.partition("\t")
        operands = tuple(map(self._operand, _split(more + " " + rest if tab else rest)))
        return Instruction(tuple(opcode.split(".")), operands, " ".join(text.split()), line, source, guard, negated)

    def _operand(self, text: str) -> Operand:
        if self._scopes and any(self._scopes):
            return self._parsed(text)
        if text not in self._operands:
            self._operands[text] = self._parsed(text)
        return self._operands[text]

    def _parsed(self, text: str) -> Operand:
        if text[0] == "{":
            return tuple(self._scalar(part.strip()) for part in text.strip("{} ").split(","))
        if text[0] == "[":
            inside = text.strip("[] ")
            base, sign, offset = inside.partition("+")
            if not sign and "-" in inside[1:]:
                base, _, offset = inside.partition("-")
                offset = f"-{offset.strip()}"
            found = self._scalar(base.strip())
            if not isinstance(found, Register | Symbol | Immediate):
                raise PtxError(f"{self.name}: the address {text} is not known")
            return Address(found, int(offset.strip() or "0", 0))
        if "|" in text:
            return tuple(self._scalar(part.strip()) for part in text.split("|"))
        return self._scalar(text)

    def _scalar(self, text: str) -> Scalar:
        for scope in reversed(self._scopes):
            if text in scope:
                return scope[text]
        if text in self.registers:
            return self.registers[text]
        if text[0] == "%":
            if kind := self._ranges.get(text.rstrip("0123456789")):
                return self.registers.setdefault(text, Register(text, kind))
            if _SPECIAL.match(text):
                return Special(text)
            raise PtxError(f"{self.name}: the register {text} is not declared")
        if text == "_":
            return None
        if text[:2] in ("0f", "0F", "0d", "0D"):
            if not _HEXADECIMAL.fullmatch(text[2:]):
                raise PtxError(f"{self.name}: the number {text} is not known")
            return Immediate(int(text[2:], 16))
        if _NUMBER.match(text):
            return Immediate(int(text.rstrip("U"), 0))
        return Symbol(text)


def _split(text: str) -> list[str]:
    """Operands: text cut at commas that stand in no brackets."""
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        if letter in "{[":
            depth += 1
        elif letter in "}]":
            depth -= 1
        elif letter == "," and not depth:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts
