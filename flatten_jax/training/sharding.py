"""The device mesh and where arrays lie on it.

| array | over `data` | over `fsdp` |
|---|---|---|
| a batch | its leading axis over both | |
| of the state, with SHARDED_SIZE elements or more | copied | its longest axis that divides |
| of the state, smaller or without such an axis | copied | copied |

The compiler derives the rest: it gathers a parameter where it is used, and scatters the sum of its gradients.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

SHARDED_SIZE = 2**14  # below, the latency of gathering costs more than the memory is worth


def make_mesh(devices: Sequence[jax.Device] | None = None, *, fsdp: int = 1) -> Mesh:
    """All devices of all processes (or those given), `fsdp` of them sharing one copy of the state: ("data", "fsdp")."""
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f"mesh.fsdp={fsdp} does not divide the {len(devices)} devices")
    # Auto axes, stated: the default is Explicit, where folding heads into a sharded batch raises.
    axis_types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((len(devices) // fsdp, fsdp), ("data", "fsdp"), axis_types=axis_types, devices=devices)


def describe_mesh(mesh: Mesh) -> str:
    """ "8 devices (4 data x 2 fsdp) of 1 process"."""
    processes = len({device.process_index for device in mesh.devices.flat})
    counts = " x ".join(f"{size} {axis}" for axis, size in mesh.shape.items())
    return f"{mesh.size} device{'s'[: mesh.size > 1]} ({counts}) of {processes} process{'es' if processes > 1 else ''}"


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def over_data(mesh: Mesh) -> NamedSharding:
    """The leading axis, the batch, split over all devices."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def by_size(mesh: Mesh, tree: Any) -> Any:
    """The sharding of every array of a state, or of its parameters, by the table above."""

    def sharding(x: Any) -> NamedSharding:
        fsdp = mesh.shape["fsdp"]
        axes = [axis for axis, length in enumerate(x.shape) if length % fsdp == 0]
        if fsdp == 1 or x.size < SHARDED_SIZE or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, P(*[None] * longest, "fsdp"))

    return jax.tree.map(sharding, tree)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's slice of a batch -> global arrays, the batch axis split over all devices."""
    sharding = over_data(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def check_divisible(mesh: Mesh, **batch_sizes: int) -> None:
    """ValueError where a batch size is not a multiple of the number of devices."""
    for name, size in batch_sizes.items():
        if size % mesh.size:
            down = size // mesh.size * mesh.size
            raise ValueError(f"{name}={size} is not divisible by the {mesh.size} devices; try {down or mesh.size}")


def bytes_per_device(tree: Any) -> int:
    """Memory that arrays take on each device."""
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


def to_host(tree: Any) -> Any:
    """Arrays of any sharding -> NumPy, waiting for them."""
    return jax.tree.map(np.asarray, jax.device_get(tree))
