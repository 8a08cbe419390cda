"""The device mesh and where arrays lie on it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes (or those given) in one axis, `data`."""
    devices = jax.devices() if devices is None else devices
    # Auto axes, stated: the default is Explicit, where folding heads into a sharded batch raises.
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def over_data(mesh: Mesh) -> NamedSharding:
    """The leading axis, the batch, split over the devices."""
    return NamedSharding(mesh, P("data"))


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


def to_host(tree: Any) -> Any:
    """Arrays of any sharding -> NumPy, waiting for them."""
    return jax.tree.map(np.asarray, jax.device_get(tree))
