"""A compiled program, read from its text: what each instruction reads from and writes to the chip's main memory."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.<>-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\(([^)]*)\)(.*)$")
_ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.-]+)|branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# They rename what is there, or what they stand for is counted elsewhere.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
_LIBRARIES = ('custom_call_target="__cublas', 'custom_call_target="__cudnn')
_WORKSPACE = re.compile(r", [su]8\[\d*\](?:\{[^}]*\})?\)$")  # the last result of a call of theirs, which none reads
_FREE_CALLS = ('custom_call_target="ConcatBitcast"', 'custom_call_target="AllocateBuffer"')
_SLICES = ("slice", "dynamic-slice", "gather")


@dataclass(frozen=True)
class Array:
    """One array of a type: its bytes with the tiles' padding, and whether it lies in the chip's main memory."""

    bytes: int
    in_memory: bool


@dataclass(frozen=True)
class Step:
    """What one instruction does each time it runs.

    Attributes:
        instruction, times: what, and how often.
        bytes: read from main memory and written to it, each time.
        op_name: of the source operation; of what moves data alone that of its reader, else of what made the data.
    """

    instruction: "Instruction"
    times: int
    bytes: int
    op_name: str


@dataclass(frozen=True)
class Instruction:
    """A line of a computation; a parameter's operand is its number, a constant's its value; `rest` is what follows."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @cached_property
    def arrays(self) -> list[Array]:
        library = self.opcode == "custom-call" and any(call in self.rest for call in _LIBRARIES)
        return arrays(_WORKSPACE.sub(")", self.type) if library else self.type)

    @cached_property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    @property
    def written(self) -> int:
        return sum(array.bytes for array in self.arrays if array.in_memory)

    @property
    def op_name(self) -> str:
        found = _OP_NAME.search(self.rest)
        return found[1] if found else ""

    @property
    def cycles(self) -> int:
        """The TPU compiler's own estimate."""
        found = _CYCLES.search(self.rest)
        return int(found[1]) if found else 0

    @property
    def called(self) -> list[str]:
        names = [name for one, several in _CALLED.findall(self.rest) for name in (one or several).split(",")]
        return [name.strip().lstrip("%") for name in names]


def arrays(text: str) -> list[Array]:
    """All arrays of a type as XLA prints it, `(bf16[8,196]{1,0:T(8,128)(2,1)S(1)}, f32[])`.

    The last dimensions are filled up to whole tiles, T(8,128); a memory space, S(1), is not the main memory.
    """
    found = []
    for kind, bits, dims, layout in _ARRAY.findall(text):
        if kind in ("token", "opaque"):
            continue
        shape = [int(dim) for dim in dims.split(",") if dim]
        order, _, attributes = layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", attributes)
        if tile and shape:
            minor = [int(dim) for dim in order.split(",")]
            for dim, side in zip(minor, reversed([int(side) for side in tile[1].split(",")]), strict=False):
                shape[dim] = -(-shape[dim] // side) * side
        size = 8 if kind == "pred" else int(bits)
        found.append(Array(math.prod(shape) * size // 8, "S(" not in attributes))
    return found


class Program:
    """The computations of a module: `compiled.as_text()` of a scheduled program, for TPUs or GPUs."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        here: dict[str, Instruction] = {}
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                here = self.computations[head[2]] = {}
                self.entry = head[2] if head[1] else self.entry
            elif found := _INSTRUCTION.match(line):
                root, name, kind, opcode, operands, rest = found.groups()
                literal = opcode in ("parameter", "constant")
                names = [operands] if literal else re.findall(r"%([\w.-]+)", operands)
                here[name] = Instruction(name, kind, opcode, tuple(names), rest, bool(root))
        if not self.entry:
            raise ValueError("the text has no ENTRY computation: expected that of a compiled program")

    def steps(self, computation: str = "", times: int = 1) -> Iterator[Step]:
        """In the order in which they run, into loops and calls.

        A loop without a known number of turns counts once, all branches of a conditional do.
        """
        here = self.computations[computation or self.entry]
        users = defaultdict(list)
        for one in here.values():
            for name in one.operands:
                users[name].append(one)
        for one in here.values():
            if one.opcode in ("while", "conditional", "call", "async-start"):
                turns = self._turns(one) if one.opcode == "while" else 1
                for name in one.called:
                    yield from self.steps(name, times * turns)
            elif one.opcode not in _FREE and not any(call in one.rest for call in _FREE_CALLS):
                yield Step(one, times, self._bytes(one, here), self._source(one, here, users))

    def _turns(self, loop: Instruction) -> int:
        if known := _TRIPS.search(loop.rest):
            return int(known[1])
        inside = self.computations[_CONDITION.search(loop.rest)[1]]  # on TPUs: `counter < turns`
        (root,) = (one for one in inside.values() if one.root)
        limit = inside.get(root.operands[-1])
        if root.opcode == "compare" and "direction=LT" in root.rest and limit and limit.opcode == "constant":
            return int(limit.operands[0])
        return 1

    def _source(self, one: Instruction, here: dict[str, Instruction], users: dict[str, list[Instruction]]) -> str:
        seen, rows = {one.name}, [[one]]
        while row := rows.pop(0) if rows else []:
            for near in row:
                name = near.op_name
                if not name and near.opcode == "fusion":
                    inside = reversed(self.computations[near.called[0]].values())
                    name = next((part.op_name for part in inside if part.op_name), "")
                if "/" in name or (name and near is not one):
                    return name
            after = [user for near in row for user in users[near.name] if user.opcode != "tuple"]
            before = [here[name] for near in row for name in near.operands if name in here]
            for more in (after, before):
                new = [near for near in more if near.name not in seen]
                seen |= {near.name for near in new}
                rows += [new] if new else []
        return one.op_name

    def _bytes(self, instruction: Instruction, here: dict[str, Instruction]) -> int:
        opcode = instruction.opcode
        if opcode.endswith("-start") or opcode == "async-done":
            return 0  # counted where it is done, or by what it calls
        if opcode.endswith("-done"):
            start = here[instruction.operands[0]]
            sources = [here[name].arrays for name in start.operands if name in here]
            return instruction.written + instruction.bytes * any(a.in_memory for source in sources for a in source)
        if opcode == "fusion":
            return self._fused(instruction, here)
        read = sum(self._read(here[name], name, [instruction]) for name in instruction.operands if name in here)
        return read + _written(instruction, here)

    def _fused(self, fusion: Instruction, here: dict[str, Instruction]) -> int:
        read = sum(self._read(here[name], name, [fusion]) for name in dict.fromkeys(fusion.operands))
        inside = self.computations[fusion.called[0]]
        (root,) = (one for one in inside.values() if one.root)
        results = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
        if len(results) != len(fusion.arrays):  # one operation with several
            return read + fusion.written
        for result, array in zip(results, fusion.arrays, strict=True):
            while result.opcode == "bitcast" and result.operands[0] in inside:
                result = inside[result.operands[0]]
            updates = result.opcode == "dynamic-update-slice"
            read += (_written(result, inside) if updates else array.bytes) * array.in_memory
        return read

    def _read(self, operand: Instruction, name: str, users: list[Instruction]) -> int:
        """Bytes of an operand in main memory that its users, who call it `name`, read: of slices what is cut out."""
        total = 0
        for user in users if operand.written else ():
            if user.opcode in _SLICES and user.operands[0] == name:
                total += user.bytes
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                pass  # it stays where it is
            elif user.opcode == "fusion":
                inside = self.computations[user.called[0]]
                for one in inside.values():
                    if one.opcode == "parameter" and user.operands[int(one.operands[0])] == name:
                        readers = [reader for reader in inside.values() if one.name in reader.operands]
                        total += self._read(operand, one.name, readers)
            else:
                total = operand.written
        return min(operand.written, total)


def _written(instruction: Instruction, here: dict[str, Instruction]) -> int:
    if instruction.opcode == "dynamic-update-slice" and instruction.operands[1] in here:
        return here[instruction.operands[1]].bytes
    return instruction.written
