"""What a training step will need on a machine that is not there: its real shardings, compiled by the real compiler."""

import importlib.util
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import ml_collections

from flatten_jax.bench import bundles, gpus
from flatten_jax.bench.hlo import Program
from flatten_jax.bench.roof import CHIPS, Part, roof
from flatten_jax.training.setup import model_of, training_of
from flatten_jax.training.sharding import check_divisible, make_mesh
from flatten_jax.training.step import abstract_state, make_train_step

# Memory of a chip in GiB: Google Cloud's "TPU system architecture" pages, one for each version.
HBM_GIB = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
_COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# Google Cloud's names of machines, "v4-32": kind -> (topology's kind, what is counted for a chip, dimensions).
_MACHINES = {
    **{kind: (kind, 2, 3) for kind in ("v4", "v5p")},
    **{kind: ("v6e" if kind == "v6e" else "v5e", 1, 2) for kind in ("v5litepod", "v5e", "v6e")},
}
_IMAGENET_STEPS = 1250  # an epoch's; only the schedule's constants depend on it


@dataclass(frozen=True)
class Plan:
    """What the compiler says of one training step, per chip.

    Attributes:
        topology, chips: what it was compiled for.
        batch_size: images a step, over all chips.
        bytes: arguments (the state, a batch), their outputs where not in place, and temporaries.
        capacity: bytes of memory, or None where unknown (CPU).
        flops, traffic: operations (2 for a multiply-add) and bytes read and written, by XLA's cost analysis, which
            counts the body of a loop (`--config.model.scan=True`) once; None on GPUs, where it has none.
        collectives: kind -> how many.
        cycles: the TPU compiler's own estimate, summed over instructions, loops counted once; None elsewhere.
        compile_seconds: on this machine.
        refused: the compiler's words where the step does not fit.
        roof: source operation -> the least time it can take, see `roof.roof`; empty where it was not asked for.
    """

    topology: str
    chips: int
    batch_size: int
    bytes: int = 0
    capacity: int | None = None
    flops: float | None = None
    traffic: float | None = None
    collectives: tuple[tuple[str, int], ...] = ()
    cycles: int | None = None
    compile_seconds: float = 0.0
    refused: str = ""
    roof: Mapping[str, Part] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return not self.refused and (self.capacity is None or self.bytes <= self.capacity)


def topology_devices(topology: str) -> list[jax.Device]:
    """Devices to compile for: TPUs, "v5e:4x8", GPUs of one machine, "h100:8", or virtual ones of this, "cpu:8".

    Raises:
        ValueError: an unknown topology, or `jax[tpu]` or JAX's CUDA plugin is not installed.
    """
    _check_no_machine(topology)
    platform, _, shape = topology.partition(":")
    if platform in ("cpu", *gpus.GPUS) and (not shape.isdecimal() or int(shape) < 1):
        raise ValueError(f"{topology=}: write {platform}:N with the number of devices, such as {platform}:8")
    if platform == "cpu":
        if len(jax.devices("cpu")) < int(shape):
            raise ValueError(f"{topology=}, but JAX was started with {len(jax.devices('cpu'))} CPU devices")
        return jax.devices("cpu")[: int(shape)]
    from jax.experimental import topologies

    # The two cores of a v4 chip are one device to JAX ("megacore"); libtpu would list them by themselves.
    options = {"chip_config_name": "megacore"} if platform == "v4" else {}
    try:
        if platform in gpus.GPUS:
            return gpus.describe(platform, int(shape))
        return topologies.get_topology_desc(topology, platform="tpu", **options).devices
    except Exception as error:  # a plugin's absence and its refusals have many types
        extra = "cuda" if platform in gpus.GPUS else "tpu"
        plugins = {"tpu": ("libtpu",), "cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin")}[extra]
        installed = any(importlib.util.find_spec(name) for name in plugins)
        raise ValueError(
            f"{topology=} cannot be described ({str(error).splitlines()[0][:120]}): "
            + (
                f"write it as v4:2x2x2, v5e:4x8, v5p:2x2x2, v6e:4x4, {', '.join(f'{name}:8' for name in gpus.GPUS)}"
                if installed
                else f"that needs pip install 'flatten_jax[train,{extra}]'; cpu:8 needs nothing"
            )
        ) from error


def _check_no_machine(topology: str) -> None:
    """ValueError for Google Cloud's name of a machine, with the topology that it is."""
    kind, _, count = topology.partition("-")
    if kind not in _MACHINES or not count.isdecimal():
        return
    kind, per_chip, dimensions = _MACHINES[kind]
    chips = int(count) // per_chip
    doublings = chips.bit_length() - 1
    if chips < 4 or chips != 1 << doublings:
        return
    sides = sorted(1 << (doublings + i) // dimensions for i in range(dimensions))
    sides = [2, 2, 1] if sides == [1, 2, 2] else sides
    raise ValueError(f"{topology=} is {chips} chips, which is written {kind}:{'x'.join(map(str, sides))}")


def plan(
    config: ml_collections.ConfigDict, topology: str, quick: bool = False, dump: TemporaryDirectory | None = None
) -> Plan:
    """Compile the training step of a config for a topology, from shapes alone.

    Args:
        quick: with the least effort at making it fast, which takes a tenth of the time. What is said of the memory is
            about the same (seen: 0.80 GiB for 0.75), traffic and cycles are not and are left out.
        dump: what `bundles.dump_to` gave, for the roof.

    Raises:
        ValueError: see `topology_devices`; or a roof is asked for of a chip that has no speed here, or of a quick plan.
    """
    kind = topology.partition(":")[0]
    if dump and (quick or kind not in CHIPS):
        raise ValueError(f"{topology=}, {quick=}: there is a roof of whole plans for {', '.join(CHIPS)} only")
    devices = topology_devices(topology)
    mesh = make_mesh(devices, fsdp=config.mesh.fsdp)
    batch_size = config.train.batch_size
    check_divisible(mesh, **{"train.batch_size": batch_size})
    training = training_of(config, model_of(config), mesh, _IMAGENET_STEPS)
    state, batch = abstract_state(training), training.task.abstract_batch(batch_size, mesh)
    if kind in gpus.GPUS:
        capacity, options = gpus.GPUS[kind].memory, gpus.COMPILER_OPTIONS
    else:
        capacity = HBM_GIB[kind] * 2**30 if kind in HBM_GIB else None
        options = {"exec_time_optimization_effort": -1.0} if quick else None
    known = dict(
        topology=topology,
        chips=len(devices),
        batch_size=batch_size,
        capacity=capacity,
    )
    began = time.monotonic()
    try:
        lowered = make_train_step(training).lower(state, batch)
        compiled = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if quick and "No such compile option" in str(error):
            raise ValueError(f"JAX {jax.__version__} cannot plan quickly, JAX 0.10 can: leave --quick out") from error
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Plan(**known, compile_seconds=time.monotonic() - began, refused=str(error).splitlines()[0])
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis() or {}, compiled.as_text()
    kinds = _COLLECTIVE.findall(text)
    cycles = [int(count) for count in _CYCLES.findall(text)]
    in_place = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Plan(
        **known,
        bytes=memory.argument_size_in_bytes + in_place + memory.temp_size_in_bytes,
        flops=cost.get("flops"),
        traffic=None if quick else cost.get("bytes accessed"),
        collectives=tuple((kind, kinds.count(kind)) for kind in sorted(set(kinds))),
        cycles=sum(cycles) if cycles and not quick else None,
        compile_seconds=time.monotonic() - began,
        roof=roof(Program(text), bundles.collect(Path(dump.name)) if CHIPS[kind].clock else {}, CHIPS[kind])
        if dump
        else {},
    )


HEADER = (
    "| model | dtype | topology | chips | batch | a chip | GiB a chip | fits | TFLOP | GB moved | M cycles (estimate) "
    "| collectives | compiled in |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def called(config: ml_collections.ConfigDict) -> str:
    """The model of a config, for people; of a segmenter its head and the image size too, which it is a matter of."""
    name = config.model.name
    if not config.segmentation.head:
        return name
    return f"{config.segmentation.head}_{name} at {' x '.join(map(str, config.model.image_size))}"


def row(config: ml_collections.ConfigDict, result: Plan) -> str:
    """A line of the table under HEADER; figures are per chip and step."""
    capacity = "" if result.capacity is None else f" of {result.capacity / 2**30:.0f}"
    cells = [
        called(config),
        config.model.dtype,
        result.topology,
        result.chips,
        result.batch_size,
        result.batch_size // result.chips,
        result.refused or f"{result.bytes / 2**30:.2f}{capacity}",
        "yes" if result.fits else "no",
        "-" if result.flops is None else f"{result.flops / 1e12:.2f}",
        "-" if result.traffic is None else f"{result.traffic / 1e9:.1f}",
        "-" if result.cycles is None else f"{result.cycles / 1e6:.1f}",
        ", ".join(f"{count} {kind}" for kind, count in result.collectives) or "none",
        f"{result.compile_seconds:.0f} s",
    ]
    return f"| {' | '.join(map(str, cells))} |"
