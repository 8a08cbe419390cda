"""The least time that a compiled step can take on a chip: what its instructions compute, or read and write."""

import re
from dataclasses import dataclass

from flatten_jax.bench.gpus import GPUS
from flatten_jax.bench.hlo import Program


@dataclass(frozen=True)
class Chip:
    """Bytes a second of a chip's main memory, and cycles a second of a core (None: bytes alone are looked at)."""

    bandwidth: float
    clock: float | None


# Bandwidth from Google Cloud's "TPU system architecture" pages. The clock is the one at which the matrix units reach
# their published peak: 197 TFLOP/s by four of 128 x 128 in a v5e, 275 and 459 by eight in a v4 and a v5p.
CHIPS = {
    "v4": Chip(1228e9, 1.05e9),
    "v5e": Chip(819e9, 1.50e9),
    "v5p": Chip(2765e9, 1.75e9),
    **{name: Chip(gpu.bandwidth, None) for name, gpu in GPUS.items()},
}

# The first that is found in a source operation's path, or in that of the parameter that is moved.
_OPERATIONS = (
    ("inputs", r"/inputs/|^batch\b"),
    ("optimizer", r"/optimizer/"),
    ("depthwise", r"\b(dwc|dwconv)\b"),
    ("norm", r"\bnorm\w*\b"),
    ("patch embedding", r"\b(patch_embed|conv_embed|merge|downsample|stem)"),
    ("mlp", r"\bmlp\b"),
    ("attention: map", r"\bjit\(_map\)"),
    ("attention: projections", r"\b(q|k|v|qk|kv|qkv|proj|sr)(/jit\((affine|strided_conv)\)|\W+(kernel|bias)\b)"),
    ("attention: the rest", r"\battn\b|/Focused_"),
    ("head", r"\bhead\w*\b"),
    ("rest of the model", r"jvp\([A-Z]"),
)
OTHER = "loss and others"


@dataclass
class Part:
    """Of one source operation, per chip and step: seconds by the roof, by schedule and by memory alone, bytes, cycles.

    `cycles` are the compiler's own estimate, loops counted as often as they turn.
    """

    seconds: float = 0.0
    compute: float = 0.0
    memory: float = 0.0
    bytes: int = 0
    cycles: int = 0

    def __add__(self, other: "Part") -> "Part":
        return Part(*(getattr(self, name) + getattr(other, name) for name in vars(self)))


def operation(op_name: str) -> str:
    """What a source operation belongs to: "mlp", "norm", ..."""
    return next((name for name, pattern in _OPERATIONS if re.search(pattern, op_name)), OTHER)


def roof(program: Program, cycles: dict[str, int], chip: Chip) -> dict[str, Part]:
    """Seconds by source operation, the longest first, in forward and backward together.

    An instruction takes as long as its schedule or as its bytes, whichever is longer, one after the other; copies that
    run beside others use the time in which those leave memory idle. Not counted: traffic between chips, on-chip memory,
    the start of an instruction.

    Args:
        cycles: of each instruction's schedule, by its name (`bundles.collect`); none on GPUs.
    """
    parts: dict[str, Part] = {}
    idle, idle_before = 0.0, {}
    for step in program.steps():
        one = step.instruction
        compute = cycles.get(one.name, 0) * step.times / chip.clock if chip.clock else 0.0
        memory = step.bytes * step.times / chip.bandwidth
        if one.opcode.endswith("-done"):
            beside = min(memory, max(0.0, idle - idle_before.get(one.operands[0], idle)))
            idle -= beside
            seconds = memory - beside
        else:
            seconds = max(compute, memory)
            idle_before[one.name] = idle
            idle += seconds - memory
        name = operation(step.op_name)
        part = Part(seconds, compute, memory, step.bytes * step.times, one.cycles * step.times)
        parts[name] = parts.get(name, Part()) + part
    return dict(sorted(parts.items(), key=lambda item: -item[1].seconds))


HEADER = "| operation | ms | ms by schedule | ms by memory | GB | M cycles (estimate) |\n|---|---|---|---|---|---|"


def rows(parts: dict[str, Part]) -> list[str]:
    """The table's lines under HEADER, the sum last."""
    lines = []
    for name, part in [*parts.items(), ("**all: the roof**", sum(parts.values(), Part()))]:
        times = " | ".join(f"{1e3 * value:.2f}" for value in (part.seconds, part.compute, part.memory))
        lines.append(f"| {name} | {times} | {part.bytes / 1e9:.2f} | {part.cycles / 1e6:.1f} |")
    return lines
